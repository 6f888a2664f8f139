//! Another configuration while events flow: put in use as a whole, without a loss, or not at all.

use std::collections::BTreeSet;
use std::fs;
use std::net::{SocketAddr, UdpSocket};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use hailmary_client::{Address, Publisher, Subscriber, SubscriberStats};
use hailmary_proto::v1::frame::Control;
use hailmary_proto::v1::refusal::Reason;
use hailmary_proto::v1::{Frame, Stamp};
use prost::Message;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use crate::support::{
    ByHand, EndOnDrop, PATIENCE, Serving, ask, assert_laws, datagram, event, hailmary, subscribe,
    sum, value, wait_until,
};

/// How long one wait lasts before it is looked whether all is over.
const LOOK: Duration = Duration::from_millis(10);

/// Time between two datagrams of a publisher over UDP: as many as a buffer holds any number of
/// reloads' worth of.
const PACE: Duration = Duration::from_micros(200);

/// Datagrams that a publisher over a Unix socket sends at that pace: more than wait there at most,
/// and fewer.
const CROWD: u64 = 16;
#[cfg(not(feature = "portable"))]
const FEW: u64 = 2;

/// Reloads under load.
const RELOADS: u64 = 13;

/// More than this kernel's default, for what comes while a processor is wanted elsewhere.
const BUFFER_BYTES: usize = 8 << 20;

/// A bus and its file.
struct Scene {
    directory: TempDir,
    file: PathBuf,
    bus: Serving,
}

impl Scene {
    fn start(text: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        Self::start_in(directory, text)
    }

    /// With a bus that may put Unix sockets where it had none when it started.
    fn start_unconfined(text: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("bus.toml");
        fs::write(&file, text).unwrap();
        let mut command = hailmary();
        command.args(["serve", "--admin", "127.0.0.1:0", "--confine", "off"]);
        command.arg("--config").arg(&file);
        Self {
            bus: Serving::start_as(command),
            directory,
            file,
        }
    }

    fn start_in(directory: TempDir, text: &str) -> Self {
        let file = directory.path().join("bus.toml");
        fs::write(&file, text).unwrap();
        let bus = Serving::start_configured(file.to_str().unwrap());
        Self {
            directory,
            file,
            bus,
        }
    }

    /// Puts another text in the file's place, in one step.
    fn write(&self, text: &str) {
        let new = self.directory.path().join("new.toml");
        fs::write(&new, text).unwrap();
        fs::rename(new, &self.file).unwrap();
    }

    /// Has the bus reload, and gives what its API says of it.
    fn reload(&self) -> Value {
        let before = sum(&self.bus.get("/metrics"), "reloads_total");
        hang_up(&self.bus);
        self.bus
            .wait_for("/metrics", |page| sum(page, "reloads_total") == before + 1);
        self.status()["reload"].take()
    }

    /// Has it use another text.
    fn put_in_use(&self, text: &str) {
        self.write(text);
        let told = self.reload();
        assert_eq!(told["outcome"], "ok", "{told}");
        assert_eq!(told["error"], Value::Null);
    }

    fn status(&self) -> Value {
        self.json("/api/v1/status")
    }

    fn json(&self, path: &str) -> Value {
        let answer = self.bus.get(path);
        let (_, body) = answer.split_once("\r\n\r\n").unwrap();
        serde_json::from_str(body).unwrap()
    }

    /// The sockets of the listeners, by their names.
    fn listeners(&self) -> BTreeSet<(String, Vec<u64>)> {
        let status = self.status();
        let listeners = status["listeners"].as_array().unwrap().iter();
        let inode = |inode: &Value| inode.as_u64().unwrap();
        listeners
            .map(|it| {
                let inodes = it["inodes"].as_array().unwrap().iter().map(inode);
                (it["address"].as_str().unwrap().to_owned(), inodes.collect())
            })
            .collect()
    }

    /// How many sockets and files it has open, the admin's clients among them.
    fn descriptors(&self) -> usize {
        let directory = format!("/proc/{}/fd", self.bus.id());
        fs::read_dir(directory).unwrap().count()
    }

    /// Waits till it has no more of them open than before.
    fn wait_for_descriptors(&self, before: usize) {
        wait_until("all that was opened to be closed", || {
            (self.descriptors() <= before).then_some(())
        });
    }

    /// Everything that it has logged since the last look, till a line has this in it.
    fn wait_for_line(&self, wanted: &str) -> String {
        let mut all = String::new();
        wait_until(wanted, || {
            let line = self.bus.logged()?;
            all.extend([&line, "\n"]);
            all.contains(wanted).then_some(())
        });
        all
    }
}

fn hang_up(bus: &Serving) {
    let id = i32::try_from(bus.id()).ok().and_then(Pid::from_raw);
    kill_process(id.unwrap(), Signal::HUP).unwrap();
}

/// A subscriber of the configuration, which counts what comes and what its stamps tell of losses.
struct Static {
    socket: UdpSocket,
    received: AtomicU64,
}

impl Static {
    fn new() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let large = socket2::SockRef::from(&socket);
        large.set_recv_buffer_size(BUFFER_BYTES).unwrap();
        socket.set_read_timeout(Some(LOOK)).unwrap();
        Self {
            socket,
            received: AtomicU64::new(0),
        }
    }

    fn entry(&self, name: &str, topics: &str) -> String {
        let address = self.socket.local_addr().unwrap();
        format!("[[subscriber]]\nname = \"{name}\"\naddress = \"{address}\"\ntopics = [{topics}]\n")
    }

    fn received(&self) -> u64 {
        self.received.load(Ordering::Acquire)
    }

    /// Takes the frames of one flow, of which the bus drops nothing, till all is over. Several
    /// data threads hand them over in any order.
    fn take(&self, is_over: &AtomicBool) {
        let mut buffer = vec![0; 65_536];
        let (mut received, mut end) = (0, 0);
        while !is_over.load(Ordering::Relaxed) {
            let Ok(length) = self.socket.recv(&mut buffer) else {
                continue;
            };
            let frame = Frame::decode(&buffer[..length]).unwrap();
            let stamp = frame.stamp.unwrap();
            let events = frame.events.len() as u64;
            received += events;
            end = end.max(stamp.sequence + events);
            assert_eq!(stamp.dropped, 0);
            self.received.store(received, Ordering::Release);
        }
        assert_eq!(received, end, "it was one flow");
    }
}

fn stamped(sender: u64, sequence: u64, topic: &str) -> Vec<u8> {
    let frame = Frame {
        events: vec![event(topic)],
        stamp: Some(Stamp {
            sender,
            sequence,
            ..Stamp::default()
        }),
        ..Frame::default()
    };
    frame.encode_to_vec()
}

/// Publishes over UDP till all is over or nobody listens there any more, and says how many events
/// the kernel took in for the bus.
fn publish_udp(bus: SocketAddr, sender: u64, is_over: &AtomicBool) -> u64 {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.connect(bus).unwrap();
    let mut sent = 0;
    while !is_over.load(Ordering::Relaxed) {
        if socket.send(&stamped(sender, sent, "a.udp")).is_err() {
            return sent - 1; // The one before found nobody.
        }
        sent += 1;
        thread::sleep(PACE);
    }
    sent
}

/// The same over a Unix socket, which says at once what it does not take.
fn publish_unix(bus: &Path, sender: u64, burst: u64, is_over: &AtomicBool) -> u64 {
    let socket = UnixDatagram::unbound().unwrap();
    socket.connect(bus).unwrap();
    let mut sent = 0;
    while !is_over.load(Ordering::Relaxed) {
        if socket.send(&stamped(sender, sent, "a.unix")).is_err() {
            return sent;
        }
        sent += 1;
        if sent % burst == 0 {
            thread::sleep(PACE);
        }
    }
    sent
}

/// A subscriber by lease that takes everything.
fn listen(bus: &Address, received: &AtomicU64, is_over: &AtomicBool) -> SubscriberStats {
    let subscriber = Subscriber::builder(bus).pattern("a.>").name("listener");
    let subscriber = subscriber.receive_buffer_bytes(BUFFER_BYTES);
    let mut subscriber = subscriber.connect(PATIENCE).unwrap();
    while !is_over.load(Ordering::Relaxed) {
        subscriber.recv_timeout(LOOK).unwrap();
        received.store(subscriber.stats().received, Ordering::Release);
    }
    subscriber.close()
}

fn udp(name: &str) -> SocketAddr {
    name.strip_prefix("udp://").unwrap().parse().unwrap()
}

/// Listeners that stay and one of each kind that goes, and a subscriber that gets everything.
struct Load {
    scene: Scene,
    workers: u32,
    subscriber: Static,
    stays: PathBuf,
    goes: PathBuf,
}

impl Load {
    const STAYS: &str = "\"127.0.0.1:0\"";

    fn start(workers: u32) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let (stays, goes) = (path("stays.sock"), path("goes.sock"));
        let subscriber = Static::new();
        let udp = format!("{}, \"127.0.0.2:0\"", Self::STAYS);
        let text = text(workers, &subscriber, &udp, &[&stays, &goes], 0);
        Self {
            scene: Scene::start_in(directory, &text),
            workers,
            subscriber,
            stays,
            goes,
        }
    }

    /// Has the bus listen where it is to stay, at more addresses, and with more than that.
    fn put_in_use(&self, udp: &str, linger_us: usize, more: &str) {
        let udp = format!("{}{udp}", Self::STAYS);
        let text = text(
            self.workers,
            &self.subscriber,
            &udp,
            &[&self.stays],
            linger_us,
        );
        self.scene.put_in_use(&(text + more));
    }

    /// Everything that goes, and then everything else, again and again.
    fn reload(&self, have_gone: impl Fn() -> bool) {
        let bus = &self.scene.bus;
        let unused = Static::new();
        let more = unused.entry("unused", "\"b.>\"") + "[[topic]]\nmatch = \"a.udp\"\n";
        self.put_in_use("", 500, &more);
        wait_until("the end of those whose listener has gone", || {
            have_gone().then_some(())
        });
        assert!(!self.goes.exists() && self.stays.exists());
        for round in 1..RELOADS {
            match round % 2 {
                0 => self.put_in_use(", \"127.0.0.3:0\"", 500, ""),
                _ => self.put_in_use("", 0, ""),
            }
            let events = value(&bus.get("/metrics"), "matched_events_total");
            bus.wait_for_metric("matched_events_total", events + 100);
        }
    }

    /// What the bus says when all is over of what it was sent.
    fn assert_books(&self, page: &str, sent: u64, listener: &SubscriberStats) {
        let SubscriberStats {
            received,
            lost,
            dropped_by_bus,
            ..
        } = listener;
        assert_eq!((*received, *lost, *dropped_by_bus), (sent, 0, 0));
        assert_eq!(value(page, "leases_granted_total"), 1, "the lease stayed");
        assert_eq!(sum(page, "ingress_dropped_frames_total"), 0);
        assert_eq!(value(page, "ingress_lost_events_total"), 0);
        assert_laws(page);
        assert_eq!(value(page, "reloads_total{outcome=\"ok\"}"), RELOADS);
        for name in &self.scene.bus.listening {
            let frames = format!("ingress_frames_total{{listener=\"{name}\"}}");
            assert!(value(page, &frames) > 0, "the counts of {name} stayed");
        }
    }
}

/// A file with these UDP listeners and Unix sockets.
fn text(
    workers: u32,
    subscriber: &Static,
    udp: &str,
    unix: &[&PathBuf],
    linger_us: usize,
) -> String {
    let unix: Vec<_> = unix.iter().map(|path| path.display().to_string()).collect();
    format!(
        "[listen]\nudp = [{udp}]\nunix = {unix:?}\n\
         [loop]\nworkers = {workers}\nlinger_us = {linger_us}\n{}",
        subscriber.entry("fixed", "\"a.>\""),
    )
}

/// Listeners that come and go under load, with so many data threads.
fn nothing_in_flight_is_lost(workers: u32) {
    let load = Load::start(workers);
    let bus = &load.scene.bus;
    let [udp_stays, udp_goes] = [0, 1].map(|index| udp(&bus.listening[index]));
    let before = load.scene.listeners();
    let lease: Address = bus.address().parse().unwrap();
    let (is_over, is_drained) = (AtomicBool::new(false), AtomicBool::new(false));
    let received = AtomicU64::new(0);
    let Load {
        subscriber,
        stays,
        goes,
        ..
    } = &load;

    thread::scope(|threads| {
        let _ends = [EndOnDrop(&is_over), EndOnDrop(&is_drained)];
        threads.spawn(|| subscriber.take(&is_drained));
        let listener = threads.spawn(|| listen(&lease, &received, &is_drained));
        bus.wait_for("/metrics", |page| value(page, "leases") == 1);
        let publishers = [
            threads.spawn(|| publish_udp(udp_stays, 1, &is_over)),
            threads.spawn(|| publish_udp(udp_stays, 2, &is_over)),
            threads.spawn(|| publish_unix(stays, 3, CROWD, &is_over)),
            threads.spawn(|| publish_udp(udp_goes, 4, &is_over)),
            threads.spawn(|| publish_unix(goes, 5, CROWD, &is_over)),
        ];
        bus.wait_for_metric("matched_events_total", 1_000);
        load.reload(|| publishers[3..].iter().all(|it| it.is_finished()));
        is_over.store(true, Ordering::Relaxed);
        let sent: u64 = publishers.map(|it| it.join().unwrap()).iter().sum();
        let page = bus.wait_for("/metrics", |page| {
            sum(page, "ingress_events_total") == sent
                && received.load(Ordering::Acquire) == sent
                && subscriber.received() == sent
        });
        is_drained.store(true, Ordering::Relaxed);
        load.assert_books(&page, sent, &listener.join().unwrap());
    });
    let after = load.scene.listeners();
    let stay: BTreeSet<_> = before.intersection(&after).collect();
    assert_eq!(stay.len(), 2, "{before:?} {after:?}");
    assert_eq!(load.scene.bus.stop().0, 0);
}

#[test]
fn nothing_in_flight_is_lost_and_what_stays_is_not_touched() {
    nothing_in_flight_is_lost(1);
}

#[test]
fn nothing_in_flight_is_lost_by_several_workers() {
    nothing_in_flight_is_lost(2);
}

const LISTEN: &str = "[listen]\nudp = [\"127.0.0.1:0\"]\n";

/// Files that are wrong and would change something, too, with what is told of them.
fn wrong_files(other: &str, unix: &Path, taken: SocketAddr) -> Vec<(String, String)> {
    let unix = unix.display();
    let restart = "loop.workers is 1 and would be 3: that takes a restart".to_owned();
    let file = |text: &str, told: &str| (format!("{LISTEN}{other}{text}"), told.to_owned());
    let listen = |text: &str, told: String| (format!("[listen]\n{text}\n{other}"), told);
    vec![
        (String::new(), "the file is empty".to_owned()),
        file("[acces]\n", ":7: unknown field `acces`"),
        file("[loop", ":7: "),
        file(
            "[[topic]]\nmatch = \"a..b\"\n[loop]\nlinger_us = 99999\n",
            ":8: \"a..b\": ",
        ),
        file("[loop]\nworkers = 3\n", &restart),
        listen(
            &format!("udp = [\"127.0.0.1:0\", \"127.0.0.2:0\", \"{taken}\"]\nunix = [\"{unix}\"]"),
            format!("udp://{taken} is in use"),
        ),
        listen(
            &format!("udp = [\"127.0.0.2:0\"]\nunix = [\"{unix}\", \"/nonexistent/bus.sock\"]"),
            "cannot listen on unix:///nonexistent/bus.sock".to_owned(),
        ),
    ]
}

impl Scene {
    /// What shows which file is in use.
    fn in_use(&self) -> (Value, BTreeSet<(String, Vec<u64>)>) {
        (self.json("/api/v1/subscribers"), self.listeners())
    }

    /// Reloads what is wrong, which changes nothing and is told everywhere.
    fn assert_kept(&self, wanted: &str) {
        const FAILED: &str = "reloads_total{outcome=\"failed\"}";
        let failed = value(&self.bus.get("/metrics"), FAILED);
        let before = self.in_use();
        let descriptors = self.descriptors();
        let told = self.reload();
        assert_eq!(told["outcome"], "failed", "{told}");
        let error = told["error"].as_str().unwrap();
        assert!(error.contains(wanted), "{error:?} lacks {wanted:?}");
        let lines = self.wait_for_line("not reloaded");
        let line = lines.lines().last().unwrap();
        assert!(line.contains("ERROR"), "{lines}");
        assert_eq!(value(&self.bus.get("/metrics"), FAILED), failed + 1);
        assert_eq!(self.in_use(), before, "{wanted}");
        self.wait_for_descriptors(descriptors);
    }
}

#[test]
fn what_is_wrong_changes_nothing_and_is_told() {
    let subscriber = Static::new();
    let good = format!("{LISTEN}{}", subscriber.entry("fixed", "\"a\""));
    let scene = Scene::start_unconfined(&good);
    let page = scene.bus.get("/metrics");
    for outcome in ["ok", "failed"] {
        let sample = format!("hailmary_reloads_total{{outcome=\"{outcome}\"}} 0\n");
        assert!(page.contains(&sample), "{page}");
    }
    assert_eq!(scene.status()["reload"], Value::Null);
    let other = subscriber.entry("other", "\"b\"");
    let taken = UdpSocket::bind("127.0.0.1:0").unwrap();
    let unix = scene.directory.path().join("new.sock");
    for (text, wanted) in wrong_files(&other, &unix, taken.local_addr().unwrap()) {
        scene.write(&text);
        scene.assert_kept(&wanted);
        assert!(!unix.exists(), "{wanted}");
    }
    fs::remove_file(&scene.file).unwrap();
    scene.assert_kept("cannot be read: No such file");
    fs::create_dir(&scene.file).unwrap();
    scene.assert_kept("cannot be read: it is no regular file");
    fs::remove_dir(&scene.file).unwrap();
    // Nobody ever writes to it: what waited for that would wait for ever.
    let mut mkfifo = Command::new("mkfifo");
    assert!(mkfifo.arg(&scene.file).status().unwrap().success());
    scene.assert_kept("cannot be read: it is no regular file");
    fs::remove_file(&scene.file).unwrap();
    scene.write(&format!("{good}{}", "#\n".repeat(1 << 19)));
    scene.assert_kept("cannot be read: it is longer than 1048576 bytes");
    fs::write(&scene.file, b"[listen]\n# \xff\n").unwrap();
    scene.assert_kept("cannot be read: ");

    let publisher = UdpSocket::bind("127.0.0.1:0").unwrap();
    let datagram = datagram(vec![event("a"), event("b")]);
    publisher.send_to(&datagram, scene.bus.udp()).unwrap();
    let sent = "egress_events_total{subscriber=\"fixed\"}";
    let page = scene.bus.wait_for_metric(sent, 1);
    assert_eq!(value(&page, "unmatched_events_total"), 1);
    scene.put_in_use(&(good + &other));
    let names = scene.json("/api/v1/subscribers");
    assert_eq!(names.as_array().unwrap().len(), 2);
}

#[test]
fn all_that_is_wrong_is_told_as_check_does() {
    let scene = Scene::start(LISTEN);
    scene.write("[loop]\nworkers = 0\nlinger_us = 99999\n");
    let told = scene.reload();
    let mut check = hailmary();
    check.arg("check").arg(&scene.file);
    let said = String::from_utf8(check.output().unwrap().stderr).unwrap();
    let error = told["error"].as_str().unwrap();
    assert_eq!(error.lines().count(), 2);
    assert!(said.contains(error), "{said} {error}");
}

#[test]
fn flags_count_at_each_reading_and_the_admins_address_takes_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("bus.toml");
    let admin = "[listen]\nudp = [\"127.0.0.9:1\"]\nadmin = \"127.0.0.1:0\"\n";
    fs::write(&file, admin).unwrap();
    let mut command = hailmary();
    command.args(["serve", "--listen", "127.0.0.1:0", "--config"]);
    command.arg(&file);
    let scene = Scene {
        bus: Serving::start_as(command),
        directory,
        file,
    };
    let before = scene.listeners();
    scene.put_in_use(&admin.replace("127.0.0.9:1", "127.0.0.9:2"));
    assert_eq!(scene.listeners(), before);
    for (other, told) in [("127.0.0.1:1", "127.0.0.1:1"), ("off", "off")] {
        scene.write(&admin.replace("127.0.0.1:0", other));
        let wanted = format!("listen.admin is 127.0.0.1:0 and would be {told}: that takes");
        scene.assert_kept(&wanted);
    }
}

#[test]
fn without_a_file_a_hang_up_is_told_and_ends_nothing() {
    let bus = Serving::start(&[], &[]);
    hang_up(&bus);
    bus.wait_for_metric("reloads_total{outcome=\"failed\"}", 1);
    let status = bus.get("/api/v1/status");
    assert!(status.contains("started without --config"), "{status}");
    assert_eq!(bus.stop().0, 0);
}

#[test]
fn rights_that_are_taken_are_taken_from_the_next_event_on() {
    let listen = "[listen]\nudp = [\"127.0.0.1:0\"]\n[limits]\nlease_ms = 300000\n";
    let rules = |publish: &str, subscribe: &str| {
        format!(
            "{listen}[access]\npublish = [{{ from = [\"127.0.0.0/8\"], topics = [\">\"] }}{publish}]\n\
             subscribe = [{{ from = [\"127.0.0.0/8\"], topics = [\">\"] }}{subscribe}]\n"
        )
    };
    let scene = Scene::start(&rules("", ""));
    let bus = &scene.bus;
    let subscriber = ByHand::new();
    let cookie = match subscriber.ask(bus.udp(), subscribe(7, b"")) {
        Control::Challenge(challenge) => challenge.cookie,
        other => panic!("{other:?}"),
    };
    let granted = subscriber.ask(bus.udp(), subscribe(7, &cookie));
    assert!(matches!(granted, Control::Lease(_)), "{granted:?}");
    let publisher = UdpSocket::bind("127.0.0.1:0").unwrap();
    let publish = |topics: &[&str]| {
        let events = topics.iter().map(|topic| event(topic)).collect();
        publisher.send_to(&datagram(events), bus.udp()).unwrap();
    };
    publish(&["a", "b"]);
    assert_eq!(subscriber.receive().events.len(), 2);

    // Less to see, and the lease stays.
    scene.put_in_use(&rules(
        "",
        ", { from = [\"127.0.0.1\"], topics = [\"a\"], deny = true }",
    ));
    publish(&["a", "b"]);
    let seen = subscriber.receive().events;
    assert_eq!((seen.len(), seen[0].topic.as_str()), (1, "b"));

    // Less to publish: this source was trusted till now.
    let deny = ", { from = [\"127.0.0.1\"], topics = [\"b\"], deny = true }";
    scene.put_in_use(&rules(deny, ""));
    publish(&["a", "b"]);
    let seen = subscriber.receive().events;
    assert_eq!((seen.len(), seen[0].topic.as_str()), (1, "a"));
    scene.put_in_use(&format!("{listen}[access]\npublish = []\n"));
    publish(&["a", "b"]);
    let not_allowed = "ingress_dropped_frames_total{reason=\"not_allowed\"}";
    bus.wait_for_metric(not_allowed, 1);

    // Nothing to see: the lease ends, and the subscriber learns it when it asks.
    scene.put_in_use(&format!("{listen}[access]\nsubscribe = []\n"));
    let page = bus.wait_for_metric("leases_revoked_total", 1);
    assert_eq!(value(&page, "leases"), 0);
    assert_eq!(value(&page, "leases_expired_total"), 0);
    assert_eq!(value(&page, "leases_granted_total"), 1);
    match subscriber.ask(bus.udp(), subscribe(7, &cookie)) {
        Control::Refusal(refusal) => assert_eq!(refusal.reason(), Reason::NotAllowed),
        other => panic!("{other:?}"),
    }
    publish(&["a"]);
    let page = bus.wait_for_metric("unmatched_events_total", 1);
    assert_laws(&page);
    let told = scene.wait_for_line("leases_revoked=1");
    assert!(told.contains("reloaded"), "{told}");
}

#[test]
fn a_storm_of_signals_ends_with_the_last_file() {
    const SIGNALS: usize = 4_000;
    let subscriber = Static::new();
    let text = |name: &str, linger_us: usize| {
        format!(
            "[listen]\nudp = [\"127.0.0.1:0\"]\n[loop]\nlinger_us = {linger_us}\n{}\
             [[subscriber]]\nname = \"{name}\"\naddress = \"127.0.0.1:9\"\ntopics = [\"b\"]\n",
            subscriber.entry("fixed", "\"a.>\""),
        )
    };
    let scene = Scene::start(&text("first", 0));
    let bus = &scene.bus;
    let to = bus.udp();
    let is_over = AtomicBool::new(false);
    thread::scope(|threads| {
        let _end = EndOnDrop(&is_over);
        threads.spawn(|| subscriber.take(&is_over));
        threads.spawn(|| publish_udp(to, 1, &is_over));
        bus.wait_for_metric("matched_events_total", 100);
        let descriptors = scene.descriptors();
        let memory = bus.resident_bytes();
        for number in 0..SIGNALS {
            match number % 40 {
                0 => scene.write(&text("one", 0)),
                10 => scene.write("[broken"),
                20 => scene.write(&text("two", 500)),
                30 => fs::remove_file(&scene.file).unwrap(),
                _ => {}
            }
            hang_up(bus);
            if number % 100 == 0 {
                assert_laws(&bus.get("/metrics"));
            }
        }
        scene.write(&text("last", 100));
        hang_up(bus);
        bus.wait_for("/api/v1/subscribers", |page| page.contains("\"last\""));
        // What the storm left behind is one more at most, of the same file.
        let told = scene.reload();
        assert_eq!(told["outcome"], "ok");
        let page = bus.get("/metrics");
        assert!(sum(&page, "reloads_total") < SIGNALS as u64);
        scene.wait_for_descriptors(descriptors);
        let growth = bus.resident_bytes().saturating_sub(memory);
        assert!(growth < 8 << 20, "{growth} bytes");
        let events = value(&page, "matched_events_total");
        bus.wait_for_metric("matched_events_total", events + 100);
        assert!(subscriber.received() > events, "and all came");
        assert_eq!(value(&page, "ingress_lost_events_total"), 0);
        assert_laws(&page);
    });
    assert_eq!(scene.bus.stop().0, 0);
}

#[test]
fn the_admin_reloads_for_this_host_where_it_may() {
    const POST: &str = "POST /-/reload";
    let offered = format!("{LISTEN}admin_reload = true\n");
    let scene = Scene::start(LISTEN);
    let bus = &scene.bus;
    let host = "Host: localhost\r\n";
    let status = |answer: &str| answer.split(' ').nth(1).unwrap().to_owned();
    let answer = ask(bus.admin, POST, host);
    assert_eq!(status(&answer), "403");
    assert!(answer.contains("admin_reload = true"), "{answer}");

    scene.put_in_use(&offered);
    scene.write(&format!("{offered}[[topic]]\nmatch = \"a\"\n"));
    for (request, lines, wanted) in [
        ("GET /-/reload", host, "405"),
        (POST, "Host: bus.example\r\n", "403"),
        (POST, "", "403"),
        (
            POST,
            "Host: localhost\r\nOrigin: http://localhost:7278\r\n",
            "403",
        ),
        (POST, "Host: localhost\r\nOrigin: null\r\n", "403"),
        (
            POST,
            "Host: localhost\r\nX-Forwarded-For: 10.0.0.1\r\n",
            "403",
        ),
    ] {
        assert_eq!(
            status(&ask(bus.admin, request, lines)),
            wanted,
            "{request} {lines}"
        );
    }
    assert_eq!(sum(&bus.get("/metrics"), "reloads_total"), 1);
    let answer = ask(bus.admin, POST, host);
    assert_eq!(status(&answer), "200");
    assert!(answer.contains("reloaded: 0 listeners opened"), "{answer}");
    assert!(
        bus.get("/metrics")
            .contains("topic_events_total{topic=\"a\"} 0")
    );

    scene.write("[listen]\nupd = 1\n");
    let answer = ask(bus.admin, POST, host);
    assert_eq!(status(&answer), "500");
    assert!(
        answer.contains("bus.toml:2: unknown field `upd`"),
        "{answer}"
    );
    scene.write(&offered);
    assert_eq!(status(&ask(bus.admin, POST, host)), "200");
    scene.write(LISTEN);
    assert_eq!(status(&ask(bus.admin, POST, host)), "200");
    assert_eq!(
        status(&ask(bus.admin, POST, host)),
        "403",
        "the file says no now"
    );
}

#[test]
fn all_who_ask_at_once_are_answered_by_few_reloads() {
    let scene = Scene::start(&format!("{LISTEN}admin_reload = true\n"));
    let admin = scene.bus.admin;
    thread::scope(|threads| {
        let post = || ask(admin, "POST /-/reload", "Host: 127.0.0.1\r\n");
        let all: Vec<_> = (0..20).map(|_| threads.spawn(post)).collect();
        for answer in all {
            let answer = answer.join().unwrap();
            assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
        }
    });
    let reloads = sum(&scene.bus.get("/metrics"), "reloads_total");
    assert!((1..20).contains(&reloads), "{reloads}");
}

#[test]
fn a_listener_that_comes_back_counts_on() {
    // No other test is given a port of this address.
    let address = "127.0.91.1:0";
    let port = UdpSocket::bind(address).unwrap().local_addr().unwrap();
    let with = format!("[listen]\nudp = [\"127.0.0.1:0\", \"{port}\"]\n");
    let without = "[listen]\nudp = [\"127.0.0.1:0\"]\n";
    let scene = Scene::start(&with);
    let bus = &scene.bus;
    let publisher = UdpSocket::bind("127.0.0.1:0").unwrap();
    let frames = format!("ingress_frames_total{{listener=\"udp://{port}\"}}");
    for round in 1..=3 {
        publisher
            .send_to(&datagram(vec![event("a")]), port)
            .unwrap();
        let page = bus.wait_for_metric(&frames, round);
        assert!(page.contains(&format!(
            "ingress_buffer_bytes{{listener=\"udp://{port}\"}}"
        )));
        scene.put_in_use(without);
        let page = bus.get("/metrics");
        assert_eq!(value(&page, &frames), round);
        assert!(!page.contains(&format!(
            "ingress_buffer_bytes{{listener=\"udp://{port}\"}}"
        )));
        assert_eq!(scene.listeners().len(), 1);
        UdpSocket::bind(port).unwrap();
        scene.put_in_use(&with);
    }
    let page = bus.get("/metrics");
    let lines = page
        .lines()
        .filter(|line| line.starts_with("hailmary_ingress_frames_total{"));
    assert_eq!(lines.count(), 2, "{page}");
}

#[test]
fn buffers_change_on_the_sockets_that_there_are() {
    let text = |bytes: usize| {
        format!(
            "[listen]\nudp = [\"127.0.0.1:0\"]\n[loop]\nworkers = 2\n\
             receive_buffer_bytes = {bytes}\nsend_buffer_bytes = {bytes}\n"
        )
    };
    let scene = Scene::start(&text(100_000));
    let before = scene.listeners();
    for bytes in [50_000, 150_000] {
        scene.put_in_use(&text(bytes));
        let status = scene.status();
        let listener = &status["listeners"][0];
        assert_eq!(listener["wanted_buffer_bytes"], bytes);
        assert_eq!(listener["granted_buffer_bytes"], bytes);
        // Of two sockets, by the kernel's account, which doubles.
        assert_eq!(listener["buffer_bytes"], 4 * bytes);
        assert_eq!(scene.listeners(), before);
    }
}

/// Waits till all probes are back that were sent to listeners that are closed now.
fn assert_none_is_missing(scene: &Scene) {
    const SENT: &str = "hailmary_canary_sent_total{listener=\"";
    let open = scene.listeners();
    scene.bus.wait_for("/metrics", |page| {
        let streams = page.lines().filter_map(|line| line.strip_prefix(SENT));
        let names = streams.filter_map(|rest| rest.split('"').next());
        let mut closed = names.filter(|name| open.iter().all(|(other, _)| other != name));
        closed.all(|name| {
            let count = |of: &str| value(page, &format!("{of}{{listener=\"{name}\"}}"));
            count("canary_sent_total") == count("canary_latency_seconds_count")
        })
    });
}

#[test]
fn a_canary_follows_the_listeners() {
    let directory = tempfile::tempdir().unwrap();
    let unix = directory.path().join("bus.sock");
    let text = |interval_ms: u32, more: &str| {
        format!("[listen]\nudp = [\"127.0.0.1:0\"{more}]\n[canary]\ninterval_ms = {interval_ms}\n")
    };
    let both = |interval_ms| {
        let unix = format!("unix = [\"{}\"]\n[canary]", unix.display());
        text(interval_ms, ", \"127.0.0.2:0\"").replace("[canary]", &unix)
    };
    let scene = Scene::start_unconfined(&text(0, ""));
    let bus = &scene.bus;
    let returned = |page: &str| sum(page, "canary_latency_seconds_count");
    let streams = |page: &str| {
        let lines = page.lines();
        lines
            .filter(|line| line.starts_with("hailmary_canary_sent_total{"))
            .count()
    };
    assert!(!bus.get("/metrics").contains("canary"));
    let mut shown = 0;
    for (text, wanted) in [
        (text(10, ""), 1),
        (both(10), 3),
        (both(20), 3),
        (text(10, ""), 3),
        (both(10), 4),
    ] {
        scene.put_in_use(&text);
        let page = bus.get("/metrics");
        assert_eq!(streams(&page), wanted, "{page}");
        let before = returned(&page);
        assert!(before >= shown, "no count falls");
        let page = bus.wait_for("/metrics", |page| returned(page) >= before + 10);
        assert_laws(&page);
        shown = returned(&page);
        assert_eq!(sum(&page, "canary_lost_total"), 0);
        assert_none_is_missing(&scene);
        assert_eq!(sum(&page, "ingress_dropped_events_total"), 0, "{page}");
    }
    scene.put_in_use(&text(0, ""));
    assert_eq!(scene.status()["canary"], Value::Null);
    assert!(bus.threads("canary").is_empty());
    assert!(!scene.bus.get("/api/v1/subscribers").contains("canary"));
    assert!(
        returned(&bus.get("/metrics")) >= shown,
        "what was counted stays"
    );
}

#[test]
fn a_publisher_goes_on_through_reloads() {
    let text = |names: usize| {
        let entry = |name: usize| {
            format!(
                "[[subscriber]]\nname = \"s{name}\"\naddress = \"127.0.0.1:9\"\ntopics = [\"b\"]\n"
            )
        };
        let entries: String = (0..names).map(entry).collect();
        format!("[listen]\nudp = [\"127.0.0.1:0\"]\n{entries}")
    };
    let scene = Scene::start(&text(1));
    let address: Address = scene.bus.address().parse().unwrap();
    let mut subscriber = Subscriber::builder(&address)
        .pattern("a")
        .connect(PATIENCE)
        .unwrap();
    let publisher = Publisher::connect(&address).unwrap();
    for round in 2..6 {
        publisher.publish("a", &round.to_string());
        let event = subscriber.recv_timeout(PATIENCE).unwrap().unwrap();
        assert_eq!(event.payload, round.to_string().as_bytes());
        scene.put_in_use(&text(round));
    }
    let pong = publisher.ping(PATIENCE).unwrap();
    assert_eq!((pong.received, pong.lost), (4, 0), "its flow goes on, too");
    let page = scene.bus.get("/metrics");
    assert_eq!(value(&page, "leases_granted_total"), 1);
    assert_eq!(value(&page, "challenges_total"), 1);
}

#[cfg(not(feature = "portable"))]
#[test]
fn a_lease_over_unix_outlives_the_first_rules_that_name_users() {
    let directory = tempfile::tempdir().unwrap();
    let [bus, own] = ["bus.sock", "own.sock"].map(|name| directory.path().join(name));
    let subscriber = UnixDatagram::bind(own).unwrap();
    subscriber.set_read_timeout(Some(PATIENCE)).unwrap();
    let receive = || {
        let mut buffer = [0; 1500];
        let length = subscriber.recv(&mut buffer).unwrap();
        Frame::decode(&buffer[..length]).unwrap()
    };
    let ask = |cookie: &[u8]| {
        let datagram = crate::support::request(subscribe(7, cookie));
        subscriber.send_to(&datagram, &bus).unwrap();
        receive().control.unwrap()
    };
    let text = |from: &str| {
        format!(
            "[listen]\nudp = [\"127.0.0.1:0\"]\nunix = [\"{}\"]\n\
             [limits]\nlease_ms = 300000\n[access]\n\
             publish = [{{ from = [\"127.0.0.0/8\"], topics = [\">\"] }}]\n\
             subscribe = [{{ from = [{from}], topics = [\">\"] }}]\n",
            bus.display()
        )
    };
    let scene = Scene::start(&text("\"127.0.0.0/8\""));
    let Control::Challenge(challenge) = ask(b"") else {
        panic!("no challenge");
    };
    assert!(matches!(ask(&challenge.cookie), Control::Lease(_)));

    let own = format!("\"uid:{}\"", rustix::process::getuid().as_raw());
    scene.put_in_use(&text(&own));
    let publisher = UdpSocket::bind("127.0.0.1:0").unwrap();
    let publish = |topic: &str| {
        let datagram = datagram(vec![event(topic)]);
        publisher.send_to(&datagram, scene.bus.udp()).unwrap();
    };
    publish("before");
    let page = scene.bus.wait_for_metric("unmatched_events_total", 1);
    assert_eq!(value(&page, "leases"), 1, "it stays, and sees nothing yet");
    assert!(matches!(ask(&challenge.cookie), Control::Lease(_)));
    publish("after");
    assert_eq!(receive().events[0].topic, "after");
    let page = scene.bus.get("/metrics");
    assert_eq!(value(&page, "leases_revoked_total"), 0);
    assert_eq!(value(&page, "leases_granted_total"), 1);
    assert_laws(&page);
}

#[cfg(not(feature = "portable"))]
#[test]
fn users_are_told_apart_on_the_sockets_that_there_are() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("bus.sock");
    let subscriber = Static::new();
    let text = |from: &str| {
        format!(
            "[listen]\nudp = [\"127.0.0.1:0\"]\nunix = [\"{}\"]\n[access]\n\
             publish = [{{ from = [{from}], topics = [\">\"] }}]\n{}",
            path.display(),
            subscriber.entry("fixed", "\"a.>\"")
        )
    };
    let all = "\"127.0.0.0/8\"";
    let own = format!("\"uid:{}\"", rustix::process::getuid().as_raw());
    let scene = Scene::start(&text(all));
    let before = scene.listeners();
    let is_over = AtomicBool::new(false);
    let sent = thread::scope(|threads| {
        let _end = EndOnDrop(&is_over);
        let publisher = threads.spawn(|| publish_unix(&path, 1, FEW, &is_over));
        for from in [&own, all, &own, all, &own] {
            let page = scene.bus.get("/metrics");
            let events = value(&page, "matched_events_total");
            scene
                .bus
                .wait_for_metric("matched_events_total", events + 200);
            scene.put_in_use(&text(from));
        }
        is_over.store(true, Ordering::Relaxed);
        publisher.join().unwrap()
    });
    let page = scene.bus.wait_for_metric("matched_events_total", sent);
    assert_eq!(sum(&page, "ingress_dropped_frames_total"), 0, "{page}");
    assert_eq!(scene.listeners(), before);
    scene.put_in_use(&text("\"uid:4294967294\""));
    let publisher = UnixDatagram::unbound().unwrap();
    publisher
        .send_to(&datagram(vec![event("a.b")]), &path)
        .unwrap();
    let not_allowed = "ingress_dropped_frames_total{reason=\"not_allowed\"}";
    scene.bus.wait_for_metric(not_allowed, 1);
}
