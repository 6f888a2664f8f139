//! A real bus, as a user would start it, on ports that are free.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, ChildStderr, Command, Output, Stdio};
use std::sync::mpsc;
use std::time::Duration;

/// How long any one condition may take: far more than it does, for machines under load.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The program.
pub fn hailmary() -> Command {
    Command::new(env!("CARGO_BIN_EXE_hailmary"))
}

/// A running bus. Ended by its id when dropped.
pub struct Serving {
    child: Child,
    /// Names of its listeners, in order.
    pub listening: Vec<String>,
    /// Its admin's address.
    pub admin: SocketAddr,
    stderr: BufReader<ChildStderr>,
}

impl Serving {
    /// Starts a bus on these listeners (`127.0.0.1:0` if none) and waits till it says where.
    pub fn start(arguments: &[&str], listeners: &[&str]) -> Self {
        let listeners = if listeners.is_empty() {
            &["127.0.0.1:0"]
        } else {
            listeners
        };
        let mut command = hailmary();
        command
            .args(["serve", "--admin", "127.0.0.1:0"])
            .args(arguments);
        for listener in listeners {
            command.args(["--listen", listener]);
        }
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        let mut listening = Vec::new();
        let mut said = String::new();
        let admin = loop {
            let mut line = String::new();
            assert_ne!(
                stderr.read_line(&mut line).unwrap(),
                0,
                "the bus ended: {said}"
            );
            said.push_str(&line);
            if let Some((_, address)) = line.split_once("admin listening address=http://") {
                break address.trim().parse().unwrap();
            }
            if let Some((_, address)) = line.split_once("listening address=\"") {
                listening.push(address.trim().trim_end_matches('"').to_owned());
            }
        };
        let serving = Self {
            child,
            listening,
            admin,
            stderr,
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
        let mut stream = TcpStream::connect(self.admin).unwrap();
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    /// Asks the admin till it answers what is wanted.
    pub fn wait_for(&self, path: &str, is_wanted: impl Fn(&str) -> bool) -> String {
        let start = std::time::Instant::now();
        loop {
            let answer = self.get(path);
            if is_wanted(&answer) {
                return answer;
            }
            assert!(start.elapsed() < PATIENCE, "{path} stayed at\n{answer}");
        }
    }

    /// One metric's value, labels included in the name.
    pub fn metric(&self, name: &str) -> u64 {
        value(&self.get("/metrics"), name)
    }

    /// Scrapes till a metric has reached a value.
    pub fn wait_for_metric(&self, name: &str, least: u64) -> String {
        self.wait_for("/metrics", |page| value(page, name) >= least)
    }

    /// Bytes of memory that are resident.
    pub fn resident_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status
            .lines()
            .find(|line| line.starts_with("VmRSS:"))
            .unwrap();
        line.split_whitespace()
            .nth(1)
            .unwrap()
            .parse::<u64>()
            .unwrap()
            * 1024
    }

    /// Sends SIGTERM and says the exit status and what it said at the end.
    pub fn stop(mut self) -> (i32, String) {
        let id = self.child.id().to_string();
        assert!(
            Command::new("kill")
                .args(["-TERM", &id])
                .status()
                .unwrap()
                .success()
        );
        let mut said = String::new();
        self.stderr.read_to_string(&mut said).unwrap();
        (self.child.wait().unwrap().code().unwrap(), said)
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        // Ended already is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One metric's value on a scraped page, or 0 where it is absent.
pub fn value(page: &str, name: &str) -> u64 {
    let name = format!("hailmary_{name} ");
    let line = page.lines().find_map(|line| line.strip_prefix(&name));
    line.map_or(0, |value| value.parse().unwrap())
}

/// The sum of a metric over its labels.
pub fn sum(page: &str, name: &str) -> u64 {
    let plain = format!("hailmary_{name} ");
    let labelled = format!("hailmary_{name}{{");
    page.lines()
        .filter(|line| line.starts_with(&plain) || line.starts_with(&labelled))
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

/// A subscriber as a process, once it has said that it is subscribed.
pub struct Subscribing {
    child: Child,
    stderr: mpsc::Receiver<String>,
}

impl Subscribing {
    /// Starts one and waits for its lease.
    pub fn start(bus: &str, arguments: &[&str]) -> Self {
        let mut child = hailmary()
            .args(["sub", "--from", bus])
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let (sender, stderr) = mpsc::channel();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        assert_eq!(stderr.recv_timeout(PATIENCE).as_deref(), Ok("subscribed"));
        Self { child, stderr }
    }

    /// Waits for its end: its output, and its last line of standard error.
    pub fn output(self) -> (Output, String) {
        let output = self.child.wait_with_output().unwrap();
        (output, self.stderr.iter().last().unwrap_or_default())
    }
}
