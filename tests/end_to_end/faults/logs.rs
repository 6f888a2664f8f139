//! A log that goes nowhere: the pipe is full and nobody reads it, or the disk is full.

use std::fs::{File, OpenOptions};
use std::io::{PipeReader, Read, Write, pipe};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Stdio;

use hailmary_client::{Address, Publisher, Subscriber};
use rustix::process::{Pid, Signal, kill_process};

use crate::support::evidence::{figure, tell};
use crate::support::{
    PATIENCE, Process, ask, assert_laws, hailmary, request, subscribe, sum, value, wait_until,
};

/// Events that go round while the log is stuck, each after the one before has arrived.
const ROUND_TRIPS: u64 = 200;

/// Reloads that fail meanwhile, each with so long a line that two have no room beside each other.
const RELOADS: u64 = 2;

/// Bytes of what the file names as a network and is none, as the log tells.
const WRONG_BYTES: usize = 600_000;

/// What became of events, and of lines of the log.
struct Outcome {
    received: u64,
    lost: u64,
    lines_lost: u64,
}

/// A bus that cannot say where it listens.
struct Mute {
    process: Process,
    bus: SocketAddr,
    admin: SocketAddr,
    directory: tempfile::TempDir,
}

impl Mute {
    /// On this loopback address, of which nobody else is given a port.
    fn start(ip: &str, log: Stdio) -> Self {
        let bus = UdpSocket::bind((ip, 0)).unwrap().local_addr().unwrap();
        let admin = TcpListener::bind((ip, 0)).unwrap().local_addr().unwrap();
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("bus.toml");
        std::fs::write(&file, "[listen]\n").unwrap();
        let unix = format!("unix://{}", directory.path().join("bus.sock").display());
        let mut command = hailmary();
        command.args(["serve", "--listen", &bus.to_string(), "--listen", &unix]);
        command.args(["--admin", &admin.to_string(), "--config"]);
        command.arg(&file).stderr(log);
        let process = Process(command.spawn().unwrap());
        let this = Self {
            process,
            bus,
            admin,
            directory,
        };
        wait_until("the bus to be ready", || {
            let stream = std::net::TcpStream::connect(admin);
            stream.is_ok().then_some(())
        });
        wait_until("the bus to be ready", || {
            this.get("/-/ready").contains("200 OK").then_some(())
        });
        this
    }

    fn get(&self, path: &str) -> String {
        ask(self.admin, &format!("GET {path}"), "Host: x\r\n")
    }

    fn signal(&self, signal: Signal) {
        let id = i32::try_from(self.process.0.id()).ok();
        kill_process(id.and_then(Pid::from_raw).unwrap(), signal).unwrap();
    }

    /// The data threads have something to say of this one.
    fn annoy(&self) {
        let deaf = UnixDatagram::bind(self.directory.path().join("deaf")).unwrap();
        for nonce in 0..100 {
            let to = self.directory.path().join("bus.sock");
            deaf.send_to(&request(subscribe(nonce, b"")), to).unwrap();
        }
    }

    /// The reloading thread has much to say of this one.
    fn reload(&self) {
        let wrong = "x".repeat(WRONG_BYTES);
        let text = format!("[access]\npublish = [{{ from = [\"{wrong}\"], topics = [] }}]\n");
        std::fs::write(self.directory.path().join("bus.toml"), text).unwrap();
        for number in 1..=RELOADS {
            self.signal(Signal::HUP);
            wait_until("a reload", || {
                (sum(&self.get("/metrics"), "reloads_total") == number).then_some(())
            });
        }
    }

    /// Events go round, whatever there is to log.
    fn work(&self) -> Outcome {
        let at: Address = self.bus.to_string().parse().unwrap();
        let subscriber = Subscriber::builder(&at).pattern("a").name("live");
        let mut subscriber = subscriber.connect(PATIENCE).unwrap();
        let publisher = Publisher::connect(&at).unwrap();
        self.annoy();
        self.reload();
        for number in 0..ROUND_TRIPS {
            publisher.publish("a", &number.to_string());
            let event = subscriber.recv_timeout(PATIENCE).unwrap().unwrap();
            assert_eq!(event.payload, number.to_string().as_bytes());
        }
        assert!(self.get("/-/healthy").contains("200 OK"));
        let page = self.get("/metrics");
        assert_laws(&page);
        assert_eq!(value(&page, "copies_total"), ROUND_TRIPS);
        let stats = subscriber.close();
        assert_eq!((stats.received, stats.lost), (ROUND_TRIPS, 0));
        Outcome {
            received: stats.received,
            lost: stats.lost,
            lines_lost: value(&page, "log_lines_lost_total"),
        }
    }

    /// Works where so many lines of the log are lost at the least.
    fn tell_of(&self, name: &str, fault: &str, least: u64) {
        let outcome = self.work();
        let lines = outcome.lines_lost;
        assert!(lines >= least, "{lines}");
        let promise = "Events flow, reloads and a stop work as ever; the log lines that are lost \
                       are counted.";
        let figures = [
            figure("events delivered meanwhile", outcome.received, "events"),
            figure("events lost", outcome.lost, "events"),
            figure("log lines counted as lost", lines, "lines"),
        ];
        tell(name, fault, promise, &figures);
    }

    /// Ends it by SIGTERM.
    fn stop(mut self) {
        self.signal(Signal::TERM);
        let status = wait_until("the bus to stop", || self.process.0.try_wait().unwrap());
        assert_eq!(status.code(), Some(0));
    }
}

/// A pipe that takes no more.
fn full_pipe() -> (PipeReader, Stdio) {
    let (reader, writer) = pipe().unwrap();
    // Opened anew: whether a write waits is not to be the bus's setting, too.
    let path = format!("/proc/self/fd/{}", writer.as_raw_fd());
    let mut options = OpenOptions::new();
    options.write(true).custom_flags(libc::O_NONBLOCK);
    let mut filler: File = options.open(Path::new(&path)).unwrap();
    while filler.write(&[b'\n'; 4_096]).is_ok() {}
    while filler.write(b"\n").is_ok() {}
    (reader, writer.into())
}

#[test]
fn a_bus_that_cannot_start_ends_though_nobody_reads_why() {
    let taken = UdpSocket::bind("127.0.80.4:0").unwrap();
    let (_reader, log) = full_pipe();
    let mut command = hailmary();
    let address = taken.local_addr().unwrap().to_string();
    command.args(["serve", "--admin", "off", "--listen", &address]);
    let mut process = Process(command.stderr(log).spawn().unwrap());
    let status = wait_until("the bus to end", || process.0.try_wait().unwrap());
    assert_eq!(status.code(), Some(1));
}

#[test]
fn a_pipe_that_nobody_reads_holds_up_nothing() {
    let (reader, log) = full_pipe();
    let bus = Mute::start("127.0.80.1", log);
    bus.tell_of(
        "log_blocked",
        "Nobody reads the pipe that the log goes to.",
        1,
    );
    bus.stop();
    drop(reader);
}

#[test]
fn a_pipe_that_is_read_again_tells_how_many_lines_it_missed() {
    let (mut reader, log) = full_pipe();
    let bus = Mute::start("127.0.80.2", log);
    let lost = bus.work().lines_lost;
    let mut said = Vec::new();
    wait_until("a word of the lost lines", || {
        let mut buffer = [0; 4_096];
        let length = reader.read(&mut buffer).unwrap();
        said.extend_from_slice(&buffer[..length]);
        let told = format!("log lines were lost, since the start lost_lines={lost}\n");
        let end = String::from_utf8_lossy(&said[said.len().saturating_sub(200)..]).into_owned();
        end.contains(&told).then_some(())
    });
    // In the order of their writing, and whole.
    let said = String::from_utf8(said).unwrap();
    let first = said.find("admin listening").unwrap();
    assert!(first < said.find("not reloaded").unwrap());
    bus.stop();
    let mut rest = String::new();
    reader.read_to_string(&mut rest).unwrap();
    assert!(rest.lines().last().unwrap().contains("stopped"), "{rest}");
}

#[test]
fn a_full_disk_holds_up_nothing() {
    let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
    let bus = Mute::start("127.0.80.3", full.into());
    // What it said at its start, of each reload, and of who took no answers.
    let least = 2 * RELOADS + 1;
    bus.tell_of(
        "log_disk_full",
        "The disk that the log goes to is full.",
        least,
    );
    bus.stop();
}
