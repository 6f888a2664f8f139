//! A bus that is killed without a word, again and again: whoever was there comes back by itself.

use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use hailmary_client::{Address, Publisher, Subscriber};

use super::long_or;
use crate::support::evidence::{figure, tell};
use crate::support::{PATIENCE, Serving, assert_laws, hailmary, value, wait_until};

/// Buses that are killed side by side, each with subscribers of its own.
const LANES: (u8, u8) = (10, 4);

/// How often each is.
const RESTARTS: (u32, u32) = (100, 25);

/// The shortest lease: subscribers look for the bus three times as often.
const LEASE: Duration = Duration::from_secs(1);

/// Below those that Linux gives out. Which one is by the process, of which several may run.
const PORTS: std::ops::Range<u32> = 20_000..30_000;

/// How long a subscriber listens before the other one does.
const LOOK: Duration = Duration::from_millis(2);

/// Where a bus listens each time.
struct Lane {
    udp: String,
    admin: String,
    directory: tempfile::TempDir,
}

impl Lane {
    /// On a loopback address of its own, and a port below those that are given out to anybody: one
    /// that is bound on all addresses would take it while the bus is dead.
    fn new(number: u8) -> Self {
        let port = PORTS.start + std::process::id() % (PORTS.end - PORTS.start);
        let address = format!("127.0.81.{number}:{port}");
        Self {
            udp: address.clone(),
            admin: address,
            directory: tempfile::tempdir().unwrap(),
        }
    }

    fn unix(&self) -> PathBuf {
        self.directory.path().join("bus.sock")
    }

    fn start(&self) -> Serving {
        let mut command = hailmary();
        let unix = format!("unix://{}", self.unix().display());
        command.args(["serve", "--admin", &self.admin, "--listen", &self.udp]);
        command.args(["--listen", &unix]);
        Serving::start_as(command)
    }

    /// How long it was from each start to an event at each subscriber.
    fn run(&self, restarts: u32) -> Vec<Duration> {
        let mut bus = self.start();
        let addresses: [Address; 2] =
            [0, 1].map(|listener: usize| bus.listening[listener].parse().unwrap());
        let subscribe = |address: &Address| {
            let subscriber = Subscriber::builder(address).pattern("a").lease(LEASE);
            subscriber.connect(PATIENCE).unwrap()
        };
        let mut subscribers = [subscribe(&addresses[0]), subscribe(&addresses[1])];
        let publisher = Publisher::connect(&addresses[0]).unwrap();
        let mut times = Vec::new();
        for round in 1..=restarts {
            bus.kill();
            let start = Instant::now();
            bus = self.start();
            await_events(&mut subscribers, &publisher, round, start, &mut times);
            // Where the machine stands still for a lease, it ends and is granted anew.
            let page = bus.wait_for("/metrics", |page| value(page, "leases") == 2);
            assert_laws(&page);
            // Of nothing but this run.
            let granted = value(&page, "leases_granted_total");
            assert!(granted >= 2, "{page}");
            assert_eq!(granted - value(&page, "leases_expired_total"), 2, "{page}");
        }
        for subscriber in subscribers {
            assert_eq!(subscriber.close().bus_restarts, u64::from(restarts));
        }
        assert_eq!(bus.stop().0, 0);
        let left = std::fs::read_dir(self.directory.path()).unwrap().count();
        assert_eq!(left, 0, "files are left");
        times
    }
}

/// Publishes till each subscriber has an event of this round.
fn await_events(
    subscribers: &mut [Subscriber; 2],
    publisher: &Publisher,
    round: u32,
    start: Instant,
    times: &mut Vec<Duration>,
) {
    let payload = round.to_be_bytes();
    let mut waiting = [true; 2];
    wait_until("both subscribers to be back", || {
        publisher.publish("a", &payload);
        for (subscriber, waits) in subscribers.iter_mut().zip(&mut waiting) {
            // Also the one that is back: it holds its lease by listening.
            if let Some(event) = subscriber.recv_timeout(LOOK).unwrap()
                && event.payload == payload
                && std::mem::take(waits)
            {
                times.push(start.elapsed());
            }
        }
        (waiting == [false; 2]).then_some(())
    });
}

#[test]
fn who_was_there_comes_back_by_itself() {
    let (lanes, restarts) = (long_or(LANES.0, LANES.1), long_or(RESTARTS.0, RESTARTS.1));
    let lanes: Vec<_> = (1..=lanes).map(Lane::new).collect();
    let mut times: Vec<_> = thread::scope(|scope| {
        let run = |lane| scope.spawn(move || Lane::run(lane, restarts));
        let threads: Vec<_> = lanes.iter().map(run).collect();
        let times = threads
            .into_iter()
            .flat_map(|thread| thread.join().unwrap());
        times.collect()
    });
    times.sort_unstable();
    let (kills, starts) = (lanes.len() * restarts as usize, times.len() / 2);
    assert_eq!(starts, kills);
    let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap();
    let figures = [
        figure("kills", kills, "kills"),
        figure(
            "of them without both subscribers back",
            kills - starts,
            "kills",
        ),
        figure(
            "from the start to an event, median",
            ms(times[starts]),
            "ms",
        ),
        figure("the longest", ms(times[times.len() - 1]), "ms"),
    ];
    tell(
        "bus_killed",
        "The bus is killed by SIGKILL and started again, time after time, at the same UDP port, \
         Unix socket and admin port.",
        "It starts at once whatever was left behind, and subscribers come back by themselves.",
        &figures,
    );
}
