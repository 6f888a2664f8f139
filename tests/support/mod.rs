//! A real bus, as a user would start it, on ports that are free, and its subscribers.

#[cfg(target_os = "linux")]
pub mod evidence;
#[cfg(target_os = "linux")]
pub mod hosts;
#[cfg(target_os = "linux")]
pub mod wall_clock;
pub mod way;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use hailmary_proto::v1::frame::Control;
use hailmary_proto::v1::{Event, Frame, Subscribe};
use hailmary_proto::write::{UNPROVEN_REQUEST_BYTES_MIN, pad};
use prost::Message;

/// How long any one condition may take: far more than it does, for machines under load.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The program.
pub fn hailmary() -> Command {
    Command::new(env!("CARGO_BIN_EXE_hailmary"))
}

/// Tries till there is something, and says what it waited for if there never is.
pub fn wait_until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(start.elapsed() < PATIENCE, "waited in vain for {what}");
    }
}

/// Ends the threads that look at it also where the test fails.
pub struct EndOnDrop<'a>(pub &'a AtomicBool);

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A process, ended by its id when dropped.
pub struct Process(pub Child);

impl Process {
    fn signal(&self, name: &str) {
        let id = self.0.id().to_string();
        let status = Command::new("kill").args(["-s", name, &id]).status();
        assert!(status.unwrap().success());
        match name {
            "STOP" => wait_until("all threads to stand still", || {
                self.are_all('T').then_some(())
            }),
            "KILL" => wait_until("all threads to end", || self.are_all('Z').then_some(())),
            _ => {}
        }
    }

    /// Whether all threads are in this state. One of them takes the signal, and the others run on
    /// until it has a processor to do so.
    fn are_all(&self, state: char) -> bool {
        let Ok(threads) = std::fs::read_dir(format!("/proc/{}/task", self.0.id())) else {
            return true; // Not told on this system.
        };
        threads.map_while(Result::ok).all(|thread| {
            let stat = std::fs::read_to_string(thread.path().join("stat"));
            // The state stands behind the name, which is in parentheses.
            stat.is_ok_and(|stat| {
                stat.rsplit(") ")
                    .next()
                    .is_some_and(|s| s.starts_with(state))
            })
        })
    }

    fn wait(&mut self) -> i32 {
        self.0.wait().unwrap().code().unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Ended already is as good.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Lines as they come, read by a thread, so that no pipe is ever full.
pub fn lines(stream: impl Read + Send + 'static) -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            let _ = sender.send(line);
        }
    });
    receiver
}

/// All lines till the stream's end.
fn rest(lines: &mpsc::Receiver<String>) -> String {
    let mut text = String::new();
    loop {
        match lines.recv_timeout(PATIENCE) {
            Ok(line) => text.extend([&line, "\n"]),
            Err(mpsc::RecvTimeoutError::Disconnected) => return text,
            Err(mpsc::RecvTimeoutError::Timeout) => panic!("it never ends: {text}"),
        }
    }
}

/// A running bus. Ended by its id when dropped.
pub struct Serving {
    process: Process,
    /// Names of its listeners, in order.
    pub listening: Vec<String>,
    /// Its admin's address.
    pub admin: SocketAddr,
    said: mpsc::Receiver<String>,
}

impl Serving {
    /// Starts a bus on these listeners (`127.0.0.1:0` if none) and waits till it says where.
    pub fn start(arguments: &[&str], listeners: &[&str]) -> Self {
        Self::start_by(hailmary(), arguments, listeners)
    }

    /// Starts a bus that may have so many descriptors, by the flags of the shell's `ulimit`.
    pub fn start_limited(ulimit: &str, listeners: &[&str]) -> Self {
        let mut shell = Command::new("sh");
        let program = env!("CARGO_BIN_EXE_hailmary");
        shell.args([
            "-c",
            &format!("ulimit {ulimit} && exec \"$0\" \"$@\""),
            program,
        ]);
        Self::start_by(shell, &[], listeners)
    }

    /// Starts a bus that listens where its file says.
    pub fn start_configured(file: &str) -> Self {
        let mut command = hailmary();
        command.args(["serve", "--admin", "127.0.0.1:0", "--config", file]);
        Self::start_as(command)
    }

    fn start_by(mut command: Command, arguments: &[&str], listeners: &[&str]) -> Self {
        let listeners = if listeners.is_empty() {
            &["127.0.0.1:0"]
        } else {
            listeners
        };
        command
            .args(["serve", "--admin", "127.0.0.1:0"])
            .args(arguments);
        for listener in listeners {
            command.args(["--listen", listener]);
        }
        Self::start_as(command)
    }

    /// Starts a bus by a command that says all, and waits till it says where it listens.
    pub fn start_as(mut command: Command) -> Self {
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let said = lines(child.stderr.take().unwrap());
        let process = Process(child);
        let mut listening = Vec::new();
        let mut heard = Vec::new();
        let admin = loop {
            let Ok(line) = said.recv_timeout(PATIENCE) else {
                panic!("the bus ended: {heard:?}");
            };
            match address_in(&line) {
                Some(("listening", address)) => listening.push(address),
                Some((_, address)) => {
                    break address.strip_prefix("http://").unwrap().parse().unwrap();
                }
                None => {}
            }
            heard.push(line);
        };
        let serving = Self {
            process,
            listening,
            admin,
            said,
        };
        serving.wait_for("/-/ready", |answer| answer.contains("200 OK"));
        serving
    }

    /// The first listener's address.
    pub fn address(&self) -> &str {
        &self.listening[0]
    }

    /// The first listener's UDP address.
    pub fn udp(&self) -> SocketAddr {
        self.address()
            .strip_prefix("udp://")
            .unwrap()
            .parse()
            .unwrap()
    }

    /// What the admin answers, head included.
    pub fn get(&self, path: &str) -> String {
        self.try_get(path).unwrap()
    }

    /// What the admin answers, if it does.
    pub fn try_get(&self, path: &str) -> std::io::Result<String> {
        let mut stream = TcpStream::connect(self.admin)?;
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    }

    /// The process.
    pub fn id(&self) -> u32 {
        self.process.0.id()
    }

    /// Asks the admin till it answers what is wanted.
    pub fn wait_for(&self, path: &str, is_wanted: impl Fn(&str) -> bool) -> String {
        let start = Instant::now();
        loop {
            let answer = self.get(path);
            if is_wanted(&answer) {
                return answer;
            }
            assert!(start.elapsed() < PATIENCE, "{path} stayed at\n{answer}");
        }
    }

    /// Scrapes till a metric has reached a value.
    pub fn wait_for_metric(&self, name: &str, least: u64) -> String {
        self.wait_for("/metrics", |page| value(page, name) >= least)
    }

    /// The next line that it logs, if there is one already.
    pub fn logged(&self) -> Option<String> {
        self.said.try_recv().ok()
    }

    /// Bytes of memory that are resident.
    pub fn resident_bytes(&self) -> u64 {
        1024 * self.status("VmRSS:")
    }

    /// How often the data thread has gone to sleep.
    pub fn sleeps(&self) -> u64 {
        self.status("voluntary_ctxt_switches:")
    }

    /// A number of the first thread's status, which is the data thread (proc(5)).
    fn status(&self, key: &str) -> u64 {
        let id = self.process.0.id();
        let status = std::fs::read_to_string(format!("/proc/{id}/task/{id}/status")).unwrap();
        number(&status, key)
    }

    /// How often each thread has gone to sleep whose name begins so (proc(5)).
    pub fn threads(&self, name: &str) -> Vec<u64> {
        let directory = format!("/proc/{}/task", self.process.0.id());
        let read = |file: PathBuf| std::fs::read_to_string(file).unwrap();
        let threads = std::fs::read_dir(directory).unwrap();
        threads
            .map(|thread| thread.unwrap().path())
            .filter(|thread| read(thread.join("comm")).starts_with(name))
            .map(|thread| number(&read(thread.join("status")), "voluntary_ctxt_switches:"))
            .collect()
    }

    /// Sends it a signal, and after STOP waits till it stands still.
    pub fn signal(&self, name: &str) {
        self.process.signal(name);
    }

    /// Sends SIGTERM and says the exit status and what it said at the end.
    pub fn stop(self) -> (i32, String) {
        self.stop_by("TERM")
    }

    /// Sends a signal and says the exit status and what it said at the end.
    pub fn stop_by(mut self, signal: &str) -> (i32, String) {
        self.process.signal(signal);
        let said = rest(&self.said);
        (self.process.wait(), said)
    }

    /// Ends it without a chance to clean up, and waits till it has.
    pub fn kill(self) {
        drop(self.process);
    }
}

/// What an admin answers to a request with these lines in its head, its own head included.
pub fn ask(admin: SocketAddr, request: &str, lines: &str) -> String {
    let mut stream = TcpStream::connect(admin).unwrap();
    let head = format!("{request} HTTP/1.1\r\nConnection: close\r\n{lines}\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// A bus by a configuration file, which goes with it.
pub struct Configured {
    serving: Serving,
    _directory: tempfile::TempDir,
}

impl Configured {
    /// Starts a bus on a free port by this text.
    pub fn start(text: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("bus.toml");
        std::fs::write(&file, text).unwrap();
        Self {
            serving: Serving::start(&["--config", file.to_str().unwrap()], &[]),
            _directory: directory,
        }
    }
}

impl std::ops::Deref for Configured {
    type Target = Serving;

    fn deref(&self) -> &Serving {
        &self.serving
    }
}

/// The first number behind a key, of a line each.
fn number(text: &str, key: &str) -> u64 {
    let value = text.lines().find_map(|line| line.strip_prefix(key));
    let number = value.unwrap().split_whitespace().next().unwrap();
    number.parse().unwrap()
}

/// The message of a line that tells an address, and the address: of a text or a JSON line.
fn address_in(line: &str) -> Option<(&'static str, String)> {
    let (said, address) = match serde_json::from_str::<serde_json::Value>(line) {
        Ok(object) => {
            let field = |name: &str| object.get(name)?.as_str().map(str::to_owned);
            (field("message")?, field("address")?)
        }
        Err(_) => {
            let (said, address) = line.split_once(" address=")?;
            (said.to_owned(), address.trim_matches('"').to_owned())
        }
    };
    ["admin listening", "listening"]
        .into_iter()
        .find(|message| said.ends_with(message))
        .map(|message| (message, address))
}

/// One metric's value on a scraped page. With labels it is 0 where it is absent: what they name
/// may be yet to come. Without labels it is always there, or the name is wrong.
pub fn value(page: &str, name: &str) -> u64 {
    let sample = format!("hailmary_{name} ");
    match page.lines().find_map(|line| line.strip_prefix(&sample)) {
        Some(value) => value.parse().unwrap(),
        None if name.ends_with('}') => 0,
        None => panic!("there is no {name} without labels in\n{page}"),
    }
}

/// The sum of a metric over its labels.
pub fn sum(page: &str, name: &str) -> u64 {
    sum_of(page, name, "")
}

/// The sum of a metric over the labels in which `label` occurs.
pub fn sum_of(page: &str, name: &str, label: &str) -> u64 {
    let plain = format!("hailmary_{name} ");
    let labelled = format!("hailmary_{name}{{");
    page.lines()
        .filter(|line| line.starts_with(&plain) || line.starts_with(&labelled))
        .filter(|line| line.contains(label))
        .map(|line| line.rsplit_once(' ').unwrap().1.parse::<u64>().unwrap())
        .sum()
}

/// Both laws of the ledger.
pub fn assert_laws(page: &str) {
    assert_eq!(
        sum(page, "ingress_events_total"),
        sum(page, "ingress_dropped_events_total")
            + sum(page, "unmatched_events_total")
            + sum(page, "matched_events_total"),
        "{page}"
    );
    assert_eq!(
        sum(page, "copies_total"),
        sum(page, "egress_events_total") + sum(page, "egress_dropped_events_total"),
        "{page}"
    );
}

/// A subscriber as a process, once it has said that it is subscribed. Ended by its id when
/// dropped.
pub struct Subscribing {
    process: Process,
    stdout: mpsc::Receiver<String>,
    stderr: mpsc::Receiver<String>,
}

impl Subscribing {
    /// Starts one and waits for its lease.
    pub fn start(bus: &str, arguments: &[&str]) -> Self {
        Self::start_by(hailmary(), bus, arguments)
    }

    /// Starts one by a command that starts the program.
    pub fn start_by(mut program: Command, bus: &str, arguments: &[&str]) -> Self {
        let mut child = program
            .args(["sub", "--from", bus])
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stdout = lines(child.stdout.take().unwrap());
        let stderr = lines(child.stderr.take().unwrap());
        let process = Process(child);
        assert_eq!(stderr.recv_timeout(PATIENCE).as_deref(), Ok("subscribed"));
        Self {
            process,
            stdout,
            stderr,
        }
    }

    /// The next line that it prints.
    pub fn line(&self) -> String {
        self.stdout.recv_timeout(PATIENCE).unwrap()
    }

    /// The next line that it prints, if there is one already.
    pub fn try_line(&self) -> Option<String> {
        self.stdout.try_recv().ok()
    }

    /// Its process.
    pub fn id(&self) -> u32 {
        self.process.0.id()
    }

    /// Sends it a signal, and after STOP or KILL waits till it stands still or has ended.
    pub fn signal(&self, name: &str) {
        self.process.signal(name);
    }

    /// Waits for its end: what it has printed since, and its last line of standard error.
    pub fn output(mut self) -> (String, String) {
        let output = rest(&self.stdout);
        let errors = rest(&self.stderr);
        assert_eq!(self.process.wait(), 0, "{errors}");
        let last = errors.lines().last().unwrap_or_default();
        (output, last.to_owned())
    }
}

/// An event of this topic and nothing else.
pub fn event(topic: &str) -> Event {
    Event {
        topic: topic.to_owned(),
        ..Event::default()
    }
}

/// The datagram of these events and nothing else.
pub fn datagram(events: Vec<Event>) -> Vec<u8> {
    let frame = Frame {
        events,
        ..Frame::default()
    };
    frame.encode_to_vec()
}

/// The datagram of a request, padded as its answer deserves.
pub fn request(control: Control) -> Vec<u8> {
    let mut frame = Frame {
        control: Some(control),
        ..Frame::default()
    };
    pad(&mut frame, UNPROVEN_REQUEST_BYTES_MIN);
    frame.encode_to_vec()
}

/// A subscriber played by hand.
pub struct ByHand(UdpSocket);

impl ByHand {
    /// On an address of its own.
    pub fn new() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self(socket)
    }

    /// Sends a request and waits for no answer.
    pub fn tell(&self, bus: SocketAddr, control: Control) {
        self.0.send_to(&request(control), bus).unwrap();
    }

    /// Sends a request and gives its answer.
    pub fn ask(&self, bus: SocketAddr, control: Control) -> Control {
        self.tell(bus, control);
        self.receive().control.unwrap()
    }

    /// The next frame.
    pub fn receive(&self) -> Frame {
        let mut buffer = [0; 1500];
        let length = self.0.recv(&mut buffer).unwrap();
        Frame::decode(&buffer[..length]).unwrap()
    }
}

/// A request for a lease on all topics.
pub fn subscribe(nonce: u64, cookie: &[u8]) -> Control {
    Control::Subscribe(Subscribe {
        topics: vec![">".to_owned()],
        cookie: cookie.to_vec(),
        nonce,
        ..Subscribe::default()
    })
}
