//! What most faults have in common: a bus that other hosts may subscribe to, events that are
//! published on its own host, and the books.

use std::process::Command;

use hailmary_client::Publisher;

use crate::support::hosts::{ALL_HOSTS, Host};
use crate::support::{Serving, Subscribing, assert_laws, hailmary, sum_of, value};

/// A running bus and a publisher beside it.
pub struct Scene {
    pub bus: Serving,
    pub publisher: Publisher,
    published: u64,
    _directory: tempfile::TempDir,
}

impl Scene {
    /// With these lines of configuration, on loopback and these hosts' addresses.
    pub fn start(configuration: &str, reach: &[&str]) -> Self {
        Self::start_by(hailmary(), "127.0.0.1", configuration, reach)
    }

    /// With these lines of configuration, on another host that has this address.
    pub fn start_on(host: &Host, address: &str, configuration: &str) -> Self {
        let program = host.command(env!("CARGO_BIN_EXE_hailmary"));
        Self::start_by(program, address, configuration, &[])
    }

    fn start_by(mut program: Command, home: &str, configuration: &str, reach: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("bus.toml");
        let from = format!("[\"127.0.0.0/8\", \"{ALL_HOSTS}\"]");
        let rule = format!("[{{ from = {from}, topics = [\">\"] }}]");
        let access = format!("[access]\npublish = {rule}\nsubscribe = {rule}\n");
        std::fs::write(&file, configuration.to_owned() + &access).unwrap();
        program.args(["serve", "--config", file.to_str().unwrap()]);
        program.args(["--admin", &format!("{home}:0")]);
        for host in [&[home], reach].concat() {
            program.args(["--listen", &format!("{host}:0")]);
        }
        let bus = Serving::start_as(program);
        Self {
            publisher: Publisher::connect(&bus.address().parse().unwrap()).unwrap(),
            bus,
            published: 0,
            _directory: directory,
        }
    }

    /// Publishes so many events of topic `a` and waits till the bus has dealt with them.
    pub fn publish(&mut self, events: u64, payload: &[u8]) {
        for _ in 0..events {
            self.publisher.publish("a", payload);
        }
        self.published += events;
        self.bus
            .wait_for_metric("ingress_events_total", self.published);
    }

    /// Publishes bursts of so many events of 1,000 bytes, each when all of the one before it has
    /// reached this subscriber: so no buffer is full but those of the faulty. It is to print
    /// nothing else.
    pub fn publish_bursts(&mut self, bursts: u64, events: u64, living: &Subscribing) {
        for _ in 0..bursts {
            self.publish(events, &[b'x'; 1_000]);
            for _ in 0..events {
                living.line();
            }
        }
    }

    /// Publishes a last event, which these subscribers get behind all that is on its way to them.
    pub fn publish_end(&mut self, subscribers: &[&Subscribing]) {
        self.publish(1, b"end");
        for subscriber in subscribers {
            while subscriber.line() != "a\tend" {}
        }
    }

    /// Starts a subscriber of topic `a` on another host, at the bus's listener of this index.
    pub fn subscribe(&self, host: &Host, listener: usize, name: &str) -> Subscribing {
        let program = host.command(env!("CARGO_BIN_EXE_hailmary"));
        let bus = &self.bus.listening[listener];
        Subscribing::start_by(program, bus, &["a", "--name", name])
    }

    /// How many events have been published.
    pub fn published(&self) -> u64 {
        self.published
    }

    /// The metrics, after both laws were found to hold, and that no event was lost on the way in.
    pub fn books(&self) -> String {
        let page = self.bus.get("/metrics");
        assert_laws(&page);
        assert_eq!(value(&page, "ingress_events_total"), self.published);
        assert_eq!(value(&page, "ingress_lost_events_total"), 0);
        page
    }
}

/// Copies for a subscriber that were handed to the kernel.
pub fn sent(page: &str, subscriber: &str) -> u64 {
    value(
        page,
        &format!("egress_events_total{{subscriber=\"{subscriber}\"}}"),
    )
}

/// Copies for a subscriber that were dropped, for whatever reason.
pub fn dropped(page: &str, subscriber: &str) -> u64 {
    let label = format!("subscriber=\"{subscriber}\"");
    sum_of(page, "egress_dropped_events_total", &label)
}

/// Copies for a subscriber that were dropped for this reason.
pub fn dropped_as(page: &str, subscriber: &str, reason: &str) -> u64 {
    let labels = format!("subscriber=\"{subscriber}\",reason=\"{reason}\"");
    value(page, &format!("egress_dropped_events_total{{{labels}}}"))
}

/// What a subscriber said of itself at its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    pub received: u64,
    pub lost: u64,
    pub dropped_by_bus: u64,
}

impl Summary {
    /// Ends a subscriber and reads its last line.
    pub fn of(subscriber: Subscribing) -> Self {
        subscriber.signal("TERM");
        Self::read(&subscriber.output().1)
    }

    /// Reads a subscriber's last line.
    pub fn read(line: &str) -> Self {
        let words = line.split([' ', ',']).filter_map(|word| word.parse().ok());
        let [received, lost, dropped_by_bus] = words.collect::<Vec<u64>>()[..] else {
            panic!("{line}");
        };
        Self {
            received,
            lost,
            dropped_by_bus,
        }
    }
}
