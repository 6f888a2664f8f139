//! Subscribers on another host, whose datagrams leave as segments of few messages.
//!
//! The hosts are network namespaces with a cable between them (veth(4)). The test starts itself
//! again inside one of them; both vanish with their processes.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use hailmary_proto::v1::{Event, Frame};
use prost::Message;

use crate::support::{Serving, Subscribing, assert_laws, sum};

/// Set for the test inside of its namespace.
const INSIDE: &str = "HAILMARY_TEST_INSIDE_NAMESPACE";

/// The bus's and the subscribers' host. The range is for tests of devices (RFC 2544).
const HOSTS: [&str; 2] = ["198.18.0.1", "198.18.0.2"];

/// Events of one datagram: those of two fill some forty frames, which a receive buffer holds.
const EVENTS: usize = 250;

/// Makes new namespaces of users and of networks for a program.
const UNSHARE: [&str; 3] = ["--user", "--map-root-user", "--net"];

/// Whether the test is to go on here. If not it has been run, or cannot be.
fn is_inside(test: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let try_out = "ip link add cable type veth peer name other";
    let trial = Command::new("unshare")
        .args(UNSHARE)
        .args(["sh", "-c", &format!("command -v nsenter && {try_out}")])
        .output();
    if !trial.is_ok_and(|trial| trial.status.success()) {
        eprintln!(
            "skipped: `unshare {} {try_out}` or nsenter(1) does not work",
            UNSHARE.join(" ")
        );
        return false;
    }
    let status = Command::new("unshare")
        .args(UNSHARE)
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--ignored", "--nocapture"])
        .env(INSIDE, "1")
        .status();
    assert!(status.unwrap().success());
    false
}

fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status();
    assert!(status.unwrap().success(), "ip {arguments}");
}

/// The subscribers' host: a process in a namespace of its own, ended when dropped.
struct Host(Child);

impl Host {
    /// With a cable to this one, for packets of so many bytes.
    fn connect(mtu_bytes: u32) -> Self {
        let mut child = Command::new("unshare")
            .args(["--net", "sh", "-c", "echo there; exec cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = String::new();
        let stdout = child.stdout.take().unwrap();
        BufReader::new(stdout).read_line(&mut said).unwrap();
        assert_eq!(said, "there\n");
        let host = Self(child);
        let id = host.0.id();
        let mtu = format!("mtu {mtu_bytes}");
        ip("link set lo up");
        ip(&format!(
            "link add cable {mtu} type veth peer name cable {mtu} netns {id}"
        ));
        ip(&format!("address add {}/24 dev cable", HOSTS[0]));
        ip("link set cable up");
        for arguments in [
            &format!("address add {}/24 dev cable", HOSTS[1]),
            "link set cable up",
            "link set lo up",
        ] {
            let status = host.command("ip").args(arguments.split(' ')).status();
            assert!(status.unwrap().success(), "ip {arguments}");
        }
        host
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        let id = self.0.id().to_string();
        command.args(["--net", "--target", &id, program]);
        command
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // Ended already is as good.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Packets that have left by the cable: a message of segments is one.
fn packets_sent() -> u64 {
    let table = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
    let line = table
        .lines()
        .find_map(|line| line.trim().strip_prefix("cable:"));
    let packets = line.unwrap().split_whitespace().nth(9).unwrap();
    packets.parse().unwrap()
}

/// Payloads of unlike lengths, so that hardly two frames are of one size.
fn payloads() -> Vec<String> {
    let payload = |number| format!("{number:06}{}", "x".repeat(number * 37 % 101));
    (0..2 * EVENTS).map(payload).collect()
}

/// Sends events to two subscribers over a cable, and says how many frames the bus sent in how
/// many packets.
fn send_over(mtu_bytes: u32) -> (u64, u64) {
    let host = Host::connect(mtu_bytes);
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("bus.toml");
    let access = "[access]\nsubscribe = [{ from = [\"198.18.0.0/24\"], topics = [\">\"] }]\n";
    std::fs::write(&file, access).unwrap();
    let reach = format!("{}:0", HOSTS[0]);
    let bus = Serving::start(
        &["--config", file.to_str().unwrap()],
        &["127.0.0.1:0", &reach],
    );
    let count = (2 * EVENTS).to_string();
    let wants = ["a", "--format", "raw", "--count", &count];
    let subscribers = [0, 1].map(|_| {
        let program = host.command(env!("CARGO_BIN_EXE_hailmary"));
        Subscribing::start_by(program, &bus.listening[1], &wants)
    });
    let before = packets_sent();
    let publisher = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    for half in payloads().chunks(EVENTS) {
        let event = |payload: &String| Event {
            topic: "a".to_owned(),
            payload: payload.clone().into_bytes(),
            ..Event::default()
        };
        let frame = Frame {
            events: half.iter().map(event).collect(),
            ..Frame::default()
        };
        publisher
            .send_to(&frame.encode_to_vec(), bus.udp())
            .unwrap();
    }
    for subscriber in subscribers {
        let (printed, last) = subscriber.output();
        assert!(printed.lines().eq(payloads()), "{printed}");
        let all = format!("received {count}, lost 0 on the way, dropped 0 by the bus");
        assert_eq!(last, all);
    }
    let page = bus.wait_for_metric("copies_total", 4 * EVENTS as u64);
    assert_laws(&page);
    assert_eq!(sum(&page, "egress_dropped_events_total"), 0);
    (sum(&page, "egress_frames_total"), packets_sent() - before)
}

// The fallback sends no segments, so that there it would be as many packets as frames.
#[test]
#[cfg(not(feature = "portable"))]
#[ignore = "needs network namespaces"]
fn frames_for_another_host_leave_together() {
    if is_inside("segments::frames_for_another_host_leave_together") {
        let (frames, packets) = send_over(1_500);
        assert!(packets < frames / 2, "{frames} frames in {packets} packets");
    }
}

#[test]
#[ignore = "needs network namespaces"]
fn frames_over_the_ways_mtu_leave_one_by_one() {
    if is_inside("segments::frames_over_the_ways_mtu_leave_one_by_one") {
        let (frames, packets) = send_over(1_280);
        assert!(packets > frames, "{frames} frames in {packets} packets");
    }
}
