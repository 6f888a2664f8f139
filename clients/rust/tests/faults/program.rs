//! Many publishers at the real program, as `HAILMARY_PROGRAM` names it.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};

use hailmary_client::{Address, Event, Publisher, ping};

use crate::cases::Plan;
use crate::common::PATIENCE;
use crate::process;
use crate::publisher::counts_of;

/// The program to test against.
const PROGRAM_VARIABLE: &str = "HAILMARY_PROGRAM";

/// Fewer datagrams than the bus's socket holds whatever the kernel grants it.
const BURST_PUBLISHERS: usize = 50;

/// What the test itself has open, at most.
const DESCRIPTORS_ASIDE: u64 = 100;

pub(crate) fn run(plan: &Plan) -> &'static str {
    let Ok(program) = std::env::var(PROGRAM_VARIABLE) else {
        return "ignored, HAILMARY_PROGRAM names no program to test against";
    };
    if !process::allow_descriptors(plan.at_once as u64 + DESCRIPTORS_ASIDE) {
        return "ignored, the system allows too few descriptors";
    }
    let bus = Bus::start(&program);
    for _ in 0..plan.publishers / plan.at_once {
        publish_in_turn(plan.at_once, &bus.address);
    }
    let counts = bus.scrape();
    let wanted = |name: &str| plan.bus.get(name).copied();
    for (name, metric) in [
        ("events", "ingress_events_total"),
        ("events", "unmatched_events_total"),
        ("lost", "ingress_lost_events_total"),
        ("sender_dropped", "ingress_sender_dropped_events_total"),
    ] {
        assert_eq!(counts.get(metric).copied(), wanted(name), "{metric}");
    }
    assert!(bus.resident_mib() < plan.memory_mib_max);
    "ok"
}

/// All of them publish, then drop one event each, and publish again.
fn publish_in_turn(count: usize, bus: &Address) {
    let publishers: Vec<_> = (0..count)
        .map(|_| Publisher::connect(bus).unwrap())
        .collect();
    for topics in [&["a.b"][..], &["a..b", "a.b"]] {
        for some in publishers.chunks(BURST_PUBLISHERS) {
            for publisher in some {
                for topic in topics {
                    publisher.publish_event(&Event::new(topic, "payload"));
                }
            }
            // Till the bus has read them all.
            ping(bus, PATIENCE).unwrap();
        }
    }
    for publisher in publishers {
        let counts = counts_of(&publisher.stats());
        let told: Vec<_> = counts.into_iter().filter(|&(_, count)| count > 0).collect();
        assert_eq!(told, [("sent", 2), ("invalid", 1)]);
    }
}

/// A running bus. Ended by its id when dropped.
struct Bus {
    process: Child,
    address: Address,
    admin: String,
}

impl Bus {
    fn start(program: &str) -> Self {
        let mut process = Command::new(program)
            .args(["serve", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"])
            .args(["--log-format", "json"])
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = BufReader::new(process.stderr.take().unwrap());
        let mut lines = log.lines().map(Result::unwrap);
        let mut address_of = |message: &str| {
            let said = |line: &String| line.contains(&format!("\"message\":\"{message}\""));
            let line = lines.find(said).unwrap();
            let line: serde_json::Value = serde_json::from_str(&line).unwrap();
            line["address"].as_str().unwrap().to_owned()
        };
        let address = address_of("listening").parse().unwrap();
        let admin = address_of("admin listening").replace("http://", "");
        Self {
            process,
            address,
            admin,
        }
    }

    /// Its counters, by their names without the prefix, those without labels alone.
    fn scrape(&self) -> BTreeMap<String, u64> {
        let mut connection = TcpStream::connect(&self.admin).unwrap();
        let request = "GET /metrics HTTP/1.0\r\nHost: bus\r\n\r\n";
        connection.write_all(request.as_bytes()).unwrap();
        let mut text = String::new();
        connection.read_to_string(&mut text).unwrap();
        text.lines()
            .filter_map(|line| line.strip_prefix("hailmary_")?.split_once(' '))
            .filter_map(|(name, value)| Some((name.to_owned(), value.parse().ok()?)))
            .collect()
    }

    /// The memory that it has; 0 where the system does not tell.
    fn resident_mib(&self) -> u64 {
        let path = format!("/proc/{}/status", self.process.id());
        let status = fs::read_to_string(path).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
        kib.unwrap_or(0) / 1024
    }
}

impl Drop for Bus {
    fn drop(&mut self) {
        // Ended already is as good.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
