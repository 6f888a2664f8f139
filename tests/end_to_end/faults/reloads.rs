//! Reloads that are broken in every way: the old configuration stays in use, and not one event is
//! lost meanwhile.

use std::fs::{self, File};
use std::net::{SocketAddr, UdpSocket};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use hailmary_proto::v1::Frame;
use prost::Message;
use rustix::process::{Pid, Signal, kill_process};

use crate::support::evidence::{figure, tell};
use crate::support::{
    EndOnDrop, PATIENCE, Serving, assert_laws, datagram, event, hailmary, sum, value, wait_until,
};

const LISTEN: &str = "[listen]\nudp = [\"127.0.0.1:0\"]\n";

/// Signals sent at least while the file is replaced all the time.
const SIGNALS: u64 = 3_000;

/// Reloads that they are to bring about at least.
const RELOADS: u64 = 10;

/// Events that flowed while something was done.
#[derive(Clone, Copy, Default)]
struct Flow {
    sent: u64,
    received: u64,
}

/// Sends events and takes each before the next, till all is over. None is ever missing.
fn pump(bus: SocketAddr, subscriber: &UdpSocket, is_over: &AtomicBool) -> Flow {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let datagram = datagram(vec![event("a")]);
    let mut buffer = [0; 1_500];
    let mut flow = Flow::default();
    while !is_over.load(Ordering::Relaxed) {
        socket.send_to(&datagram, bus).unwrap();
        let length = subscriber.recv(&mut buffer).unwrap();
        let frame = Frame::decode(&buffer[..length]).unwrap();
        let stamp = frame.stamp.unwrap();
        let told = (stamp.sequence, stamp.dropped, frame.events.len());
        assert_eq!(told, (flow.sent, 0, 1));
        flow.sent += 1;
        flow.received += frame.events.len() as u64;
    }
    flow
}

/// A bus that reloads, and a subscriber in its configuration.
struct Reloading {
    directory: tempfile::TempDir,
    file: PathBuf,
    good: String,
    bus: Serving,
    subscriber: UdpSocket,
}

impl Reloading {
    fn start() -> Self {
        Self::start_by(hailmary())
    }

    /// A bus that may read anything, whatever is put into its file's place.
    fn start_unconfined() -> Self {
        let mut program = hailmary();
        program.env("HAILMARY_CONFINE", "off");
        Self::start_by(program)
    }

    fn start_by(mut program: Command) -> Self {
        let subscriber = UdpSocket::bind("127.0.0.1:0").unwrap();
        subscriber.set_read_timeout(Some(PATIENCE)).unwrap();
        let address = subscriber.local_addr().unwrap();
        let good = format!(
            "{LISTEN}[[subscriber]]\nname = \"fixed\"\naddress = \"{address}\"\ntopics = [\"a\"]\n"
        );
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("bus.toml");
        fs::write(&file, &good).unwrap();
        program.args(["serve", "--admin", "127.0.0.1:0", "--config"]);
        program.arg(&file);
        let bus = Serving::start_as(program);
        Self {
            directory,
            file,
            good,
            bus,
            subscriber,
        }
    }

    /// Does something while events flow, and gives how many did.
    fn while_events_flow(&self, work: impl FnOnce()) -> Flow {
        let is_over = AtomicBool::new(false);
        let flow = thread::scope(|threads| {
            let (bus, subscriber, over) = (self.bus.udp(), &self.subscriber, &is_over);
            let pump = threads.spawn(move || pump(bus, subscriber, over));
            let end = EndOnDrop(&is_over);
            work();
            drop(end);
            pump.join().unwrap()
        });
        let page = self.bus.wait_for_metric("matched_events_total", flow.sent);
        assert_laws(&page);
        assert_eq!(value(&page, "copies_total"), flow.sent);
        assert_eq!(sum(&page, "egress_dropped_events_total"), 0);
        assert_eq!(sum(&page, "ingress_dropped_frames_total"), 0);
        assert_eq!(flow.received, flow.sent);
        flow
    }

    fn hang_up(&self) {
        let id = i32::try_from(self.bus.id()).ok().and_then(Pid::from_raw);
        kill_process(id.unwrap(), Signal::HUP).unwrap();
    }

    /// Removes what is in the file's place, of whatever kind.
    fn clear(&self) {
        let _ = fs::remove_dir(&self.file);
        let _ = fs::remove_file(&self.file);
    }

    /// Reloads, which fails and says why, and leaves all as it was.
    fn assert_kept(&self, wanted: &str) {
        const FAILED: &str = "reloads_total{outcome=\"failed\"}";
        let of = |path: &str| {
            self.bus
                .get(path)
                .split_once("\r\n\r\n")
                .unwrap()
                .1
                .to_owned()
        };
        let in_use = |status: &str| {
            let status: serde_json::Value = serde_json::from_str(status).unwrap();
            status["listeners"][0]["inodes"].clone()
        };
        let before = (
            in_use(&of("/api/v1/status")),
            value(&of("/metrics"), FAILED),
        );
        let reloads = sum(&of("/metrics"), "reloads_total");
        self.hang_up();
        let page = self
            .bus
            .wait_for("/metrics", |page| sum(page, "reloads_total") > reloads);
        assert_eq!(value(&page, FAILED), before.1 + 1, "{wanted}: {page}");
        let status = of("/api/v1/status");
        assert_eq!(in_use(&status), before.0, "{wanted}");
        let status: serde_json::Value = serde_json::from_str(&status).unwrap();
        let error = status["reload"]["error"].as_str().unwrap();
        assert!(error.contains(wanted), "{error:?} lacks {wanted:?}");
        let names = of("/api/v1/subscribers");
        assert_eq!(names.matches("\"name\":").count(), 1, "{names}");
    }
}

/// Puts something into the file's place, and what is said of it.
type Broken = (&'static str, fn(&Path));

/// What is no file of text.
const NO_TEXTS: [Broken; 12] = [
    ("No such file", |_| {}),
    ("it is no regular file", |file| {
        fs::create_dir(file).unwrap()
    }),
    ("it is no regular file", |file| {
        let mut mkfifo = Command::new("mkfifo");
        assert!(mkfifo.arg(file).status().unwrap().success());
    }),
    ("it is no regular file", |file| link("/dev/zero", file)),
    ("it is no regular file", |file| link("/dev/full", file)),
    // One that leads to itself, one that may be opened and not read, one without an end.
    ("symbolic links", |file| symlink(file, file).unwrap()),
    ("cannot be read: ", |file| link("/proc/self/mem", file)),
    ("it is longer than 1048576 bytes", |file| {
        File::create(file).unwrap().set_len(100 << 20).unwrap();
    }),
    ("it is longer than 1048576 bytes", |file| {
        fs::write(file, "# all is well\n".repeat(100_000)).unwrap();
    }),
    ("the file is empty", |file| fs::write(file, "").unwrap()),
    ("the file is empty", |file| {
        fs::write(file, "\n# nothing\n\n").unwrap();
    }),
    ("it is no UTF-8 after its first 2", |file| {
        fs::write(file, b"# \xff\xfe[\0l\0").unwrap();
    }),
];

fn link(to: &str, file: &Path) {
    symlink(to, file).unwrap();
}

/// What is put behind a good file, and what is said of it.
const WRONG_LINES: [(&str, &str); 44] = [
    ("\0", ""),
    ("[loop", ""),
    ("[loop]\n[loop]", "duplicate"),
    ("[acces]", "unknown field `acces`"),
    ("[loop]\nworker = 1", "unknown field `worker`"),
    ("[loop]\nworkers = 0", "workers must be 1 to 64"),
    ("[loop]\nworkers = 65", "workers must be 1 to 64"),
    ("[loop]\nworkers = -1", "invalid value"),
    ("[loop]\nworkers = 1.5", "invalid type"),
    ("[loop]\nworkers = \"1\"", "invalid type"),
    (
        "[loop]\nworkers = 3",
        "loop.workers is 1 and would be 3: that takes a restart",
    ),
    ("[loop]\nlinger_us = 10001", "linger_us must be"),
    (
        "[loop]\nreceive_buffer_bytes = 4095",
        "receive_buffer_bytes must be",
    ),
    (
        "[loop]\nreceive_buffer_bytes = 1073741825",
        "receive_buffer_bytes must be",
    ),
    (
        "[loop]\nsend_buffer_bytes = 4095",
        "send_buffer_bytes must be",
    ),
    ("[loop]\nsend_buffer_bytes = 99999999999999999999", ""),
    ("[canary]\ninterval_ms = 9", "interval_ms must be"),
    ("[canary]\ninterval_ms = 3600001", "interval_ms must be"),
    ("[limits]\nleases = -1", "invalid value"),
    ("[limits]\nlease_ms = 999", "lease_ms must be"),
    ("[limits]\nlease_ms_max = 300001", "lease_ms_max must be"),
    (
        "[limits]\nlease_ms = 5000\nlease_ms_max = 4000",
        "must not be over",
    ),
    (
        "[limits]\nmembers_per_group = 0",
        "members_per_group must be",
    ),
    (
        "[limits]\nmembers_per_group = 4097",
        "members_per_group must be",
    ),
    ("sample = 0.0", "0.0: "),
    ("sample = 1.1", "1.1: "),
    ("sample = nan", "NaN: "),
    ("events_per_second = 0", "0: "),
    ("events_per_second = 4294967296", "4294967296: "),
    ("max_frame_bytes = 507", "507: "),
    ("max_frame_bytes = 65508", "65508: "),
    ("group = \"a b\"", "\"a b\": "),
    (
        "[[subscriber]]\nname = \"fixed\"\naddress = \"127.0.0.1:9\"\ntopics = [\"b\"]",
        "already",
    ),
    (
        "[[subscriber]]\nname = \"_hailmary.x\"\naddress = \"127.0.0.1:9\"\ntopics = [\"b\"]",
        "own",
    ),
    (
        "[[subscriber]]\nname = \"x\"\naddress = \"127.0.0.1:9\"\ntopics = []",
        "at least one",
    ),
    (
        "[[subscriber]]\nname = \"x\"\naddress = \"no.such.invalid:9\"\ntopics = [\"b\"]",
        "no.such",
    ),
    (
        "[[subscriber]]\nname = \"x\"\naddress = \"127.0.0.1:70000\"\ntopics = [\"b\"]",
        "70000",
    ),
    ("[[topic]]\nmatch = \"a..b\"", "\"a..b\": "),
    (
        "[[topic]]\nmatch = \"a\"\npriority = \"highest\"",
        "unknown variant",
    ),
    ("[[topic]]\nmatch = \"a\"\nmax_age_ms = 0", "0: "),
    (
        "[[topic]]\nmatch = \"a\"\nmax_age_ms = 86400001",
        "86400001: ",
    ),
    ("[[topic]]\nmatch = \"a\"\nevents_per_second = 0", "0: "),
    (
        "[access]\npublish = [{ from = [\"10.0.0.0/33\"], topics = [\">\"] }]",
        "10.0.0.0/33",
    ),
    (
        "[access]\nsubscribe = [{ from = [\"300.0.0.0/8\"], topics = [\">\"] }]",
        "300.0.0.0/8",
    ),
];

/// Where a bus cannot listen, and what is said of it.
fn wrong_listeners(taken: SocketAddr) -> Vec<(String, String)> {
    let long = format!("unix = [\"/{}\"]", "x".repeat(107));
    let cases = [
        ("udp = [\"127.0.0.1\"]", "an address is IP:PORT"),
        ("udp = [\"no.such.invalid:1\"]", "an address is IP:PORT"),
        ("udp = [\"127.0.0.1:65536\"]", "an address is IP:PORT"),
        // Reserved for documentation (RFC 5737): no host has it.
        ("udp = [\"192.0.2.1:0\"]", "192.0.2.1"),
        ("udp = []", "both empty"),
        ("unix = [\"bus.sock\"]", "absolute"),
        (&long, "at most 107 bytes"),
        (
            "unix = [\"/nonexistent/bus.sock\"]",
            "/nonexistent/bus.sock",
        ),
        ("unix = [\"/dev/null\"]", "/dev/null"),
    ];
    let owned = |(text, wanted): (&str, &str)| (text.to_owned(), wanted.to_owned());
    let mut cases: Vec<_> = cases.into_iter().map(owned).collect();
    cases.push((format!("udp = [\"{taken}\"]"), format!("{taken} is in use")));
    cases
}

#[test]
fn what_cannot_be_read_changes_nothing() {
    let scene = Reloading::start_unconfined();
    let flow = scene.while_events_flow(|| {
        for (wanted, put) in NO_TEXTS {
            scene.clear();
            put(&scene.file);
            scene.assert_kept(wanted);
        }
    });
    scene.clear();
    tell_of(
        "reload_unreadable",
        "is no file of text",
        NO_TEXTS.len(),
        flow,
    );
    assert_eq!(scene.bus.stop().0, 0);
}

#[test]
fn what_is_wrong_changes_nothing() {
    let scene = Reloading::start();
    let taken = UdpSocket::bind("127.0.0.1:0").unwrap();
    let listeners = wrong_listeners(taken.local_addr().unwrap());
    let flow = scene.while_events_flow(|| {
        for (text, wanted) in WRONG_LINES {
            fs::write(&scene.file, format!("{}{text}\n", scene.good)).unwrap();
            scene.assert_kept(wanted);
        }
        for (text, wanted) in &listeners {
            fs::write(&scene.file, format!("[listen]\n{text}\n")).unwrap();
            scene.assert_kept(wanted);
        }
    });
    let files = WRONG_LINES.len() + listeners.len();
    tell_of(
        "reload_wrong",
        "is wrong or says what is impossible",
        files,
        flow,
    );
    assert_eq!(scene.bus.stop().0, 0);
}

fn tell_of(name: &str, what: &str, files: usize, flow: Flow) {
    let figures = [
        figure("files, each wrong in another way", files, "files"),
        figure("events delivered meanwhile", flow.received, "events"),
        figure("events lost", flow.sent - flow.received, "events"),
    ];
    tell(
        name,
        &format!("A configuration that is to be put in use {what}."),
        "The one before stays in use and not one event is lost; the log, a metric and the API say \
         why.",
        &figures,
    );
}

#[test]
fn a_file_that_is_replaced_while_it_is_read_is_read_whole() {
    let scene = Reloading::start();
    let texts = ["b", "c"].map(|topic| {
        let padding = "# as long as may be\n".repeat(20_000);
        format!("{padding}{}[[topic]]\nmatch = \"{topic}\"\n", scene.good)
    });
    let is_over = AtomicBool::new(false);
    let (mut signals, mut reloads) = (0, 0);
    let flow = scene.while_events_flow(|| {
        thread::scope(|threads| {
            let _end = EndOnDrop(&is_over);
            threads.spawn(|| {
                for text in texts.iter().cycle() {
                    let new = scene.directory.path().join("new.toml");
                    fs::write(&new, text).unwrap();
                    fs::rename(new, &scene.file).unwrap();
                    if is_over.load(Ordering::Relaxed) {
                        return;
                    }
                }
            });
            wait_until("many reloads", || {
                // Those that come while one is under way are one.
                (0..SIGNALS / RELOADS).for_each(|_| scene.hang_up());
                signals += SIGNALS / RELOADS;
                reloads = sum(&scene.bus.get("/metrics"), "reloads_total");
                (signals >= SIGNALS && reloads > RELOADS).then_some(())
            });
        });
        let page = scene.bus.get("/metrics");
        assert_eq!(value(&page, "reloads_total{outcome=\"failed\"}"), 0);
        // One of the two, and not both.
        let labels = ["b", "c"].map(|topic| page.contains(&format!("{{topic=\"{topic}\"}}")));
        assert!(labels[0] || labels[1], "{page}");
    });
    let figures = [
        figure("signals", signals, "signals"),
        figure("reloads, at least", reloads, "reloads"),
        figure("events delivered meanwhile", flow.received, "events"),
        figure("events lost", flow.sent - flow.received, "events"),
    ];
    tell(
        "reload_storm",
        "Thousands of SIGHUPs come while the file is replaced by rename without a pause.",
        "Each reload takes one file or the other, whole, and not one event is lost.",
        &figures,
    );
    assert_eq!(scene.bus.stop().0, 0);
}
