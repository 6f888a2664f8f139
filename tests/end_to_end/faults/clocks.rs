//! Wall clocks that jump: the bus's, a publisher's, a subscriber's.

use std::io::Write;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::evidence::{figure, tell};
use crate::support::wall_clock::WallClock;
use crate::support::{
    Process, Serving, Subscribing, assert_laws, hailmary, sum_of, value, wait_until,
};

use super::scene::Summary;

const HOUR_S: i64 = 3_600;
const YEAR_S: i64 = 365 * 24 * HOUR_S;

/// How far the clock jumps, one after the other, and back at last.
const JUMPS_S: [i64; 4] = [-HOUR_S, 24 * HOUR_S, -50 * YEAR_S, 0];

/// Events between two jumps.
const EVENTS: u64 = 100;

/// Several renewals fit in, a busy machine's stalls between them, and it is not long to wait for.
const LEASE: Duration = Duration::from_secs(8);

/// Time between two events where time is to pass.
const PACE: Duration = Duration::from_millis(100);

/// Whose clock jumps.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Whose {
    Bus,
    Publisher,
    Subscriber,
}

/// A bus, a publisher and a subscriber, each a process of its own, one of them with a clock that
/// the test sets.
struct Jumping {
    clock: WallClock,
    bus: Serving,
    publisher: Option<(Process, ChildStdin)>,
    subscriber: Subscribing,
    published: u64,
    _directory: tempfile::TempDir,
}

impl Jumping {
    fn start(whose: Whose, policy: &str) -> Option<Self> {
        let clock = WallClock::new()?;
        let program = |who| match who == whose {
            true => clock.lend(hailmary()),
            false => hailmary(),
        };
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("bus.toml");
        let lease_ms = LEASE.as_millis();
        let limits = format!("[limits]\nlease_ms = {lease_ms}\nlease_ms_max = {lease_ms}\n");
        std::fs::write(&file, limits + policy).unwrap();
        let mut serve = program(Whose::Bus);
        serve.args(["serve", "--admin", "127.0.0.1:0", "--listen", "127.0.0.1:0"]);
        serve.args(["--config", file.to_str().unwrap()]);
        let bus = Serving::start_as(serve);
        let arguments = ["a", "--name", "far"];
        let subscriber =
            Subscribing::start_by(program(Whose::Subscriber), bus.address(), &arguments);
        let publisher = Some(publish_lines(program(Whose::Publisher), bus.address()));
        Some(Self {
            clock,
            bus,
            publisher,
            subscriber,
            published: 0,
            _directory: directory,
        })
    }

    fn publish(&mut self, events: u64) -> String {
        let (_, lines) = self.publisher.as_mut().unwrap();
        lines
            .write_all(&b"x\n".repeat(usize::try_from(events).unwrap()))
            .unwrap();
        self.published += events;
        let page = self
            .bus
            .wait_for_metric("ingress_events_total", self.published);
        assert_laws(&page);
        page
    }

    fn receive(&self, events: u64) {
        for _ in 0..events {
            self.subscriber.line();
        }
    }

    /// Jumps by the clock, with events and a line of the log behind each.
    fn jump(&mut self) -> String {
        for ahead_s in JUMPS_S {
            self.clock.set_ahead(ahead_s);
            self.publish(EVENTS);
            self.receive(EVENTS);
            while self.bus.logged().is_some() {}
            self.bus.signal("HUP");
            wait_until("a line of the log", || {
                self.bus.logged().filter(|line| line.contains("reloaded"))
            });
        }
        // A clock that is wrong for good: leases go on.
        self.clock.set_ahead(JUMPS_S[2]);
        let start = Instant::now();
        while start.elapsed() < LEASE + LEASE / 4 {
            self.publish(1);
            self.receive(1);
            std::thread::sleep(PACE);
        }
        self.clock.set_ahead(0);
        self.publish(EVENTS)
    }

    /// Ends the publisher and the subscriber and gives what they said.
    fn end(mut self) -> Summary {
        let (mut publisher, lines) = self.publisher.take().unwrap();
        drop(lines);
        assert!(publisher.0.wait().unwrap().success());
        Summary::of(self.subscriber)
    }
}

fn publish_lines(mut program: Command, bus: &str) -> (Process, ChildStdin) {
    let mut child: Child = program
        .args(["pub", "a", "--lines", "--to", bus])
        .stdin(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let lines = child.stdin.take().unwrap();
    (Process(child), lines)
}

/// The sum of a histogram of durations, in seconds.
fn seconds(page: &str, histogram: &str) -> f64 {
    let sample = format!("hailmary_{histogram}_sum ");
    let line = page.lines().find_map(|line| line.strip_prefix(&sample));
    line.unwrap().parse().unwrap()
}

fn tell_jumps(name: &str, fault: &str, whose: Whose) {
    let Some(mut scene) = Jumping::start(whose, "") else {
        return;
    };
    let start = Instant::now();
    // Of all events together, should each have taken as long as the test.
    let passed = || start.elapsed().as_secs_f64() * 1_000.0;
    scene.publish(EVENTS);
    scene.receive(EVENTS);
    let before = scene.jump();
    scene.receive(EVENTS);
    // Times of other years are long behind, and every age is counted to its end.
    let after = scene.publish(EVENTS);
    let grown = seconds(&after, "event_age_seconds") - seconds(&before, "event_age_seconds");
    assert!(grown > 0.0 && grown < passed(), "{grown} s");
    assert_eq!(value(&after, "event_age_seconds_count"), scene.published);
    // What the bus measures by itself knows nothing of wall clocks.
    let forwarding = seconds(&after, "forward_latency_seconds");
    assert!(forwarding > 0.0 && forwarding < passed(), "{forwarding} s");
    let ended = value(&after, "leases_expired_total");
    assert_eq!((ended, value(&after, "leases_granted_total")), (0, 1));
    assert_eq!(value(&after, "ingress_lost_events_total"), 0);
    let published = scene.published;
    scene.receive(EVENTS);
    let summary = scene.end();
    let all = Summary {
        received: published,
        lost: 0,
        dropped_by_bus: 0,
    };
    assert_eq!(summary, all);
    let figures = [
        figure("jumps", JUMPS_S.len(), "jumps"),
        figure("published", published, "events"),
        figure("lost or dropped", published - summary.received, "events"),
        figure("leases that ended", ended, "leases"),
    ];
    tell(
        name,
        fault,
        "No event is lost, leases hold, the log goes on, and so do the metrics of ages and \
         latencies.",
        &figures,
    );
}

#[test]
fn the_buss_clock_may_jump() {
    let fault = "The clock of the bus's host jumps back an hour, on a day, back 50 years.";
    tell_jumps("clock_of_the_bus", fault, Whose::Bus);
}

#[test]
fn a_publishers_clock_may_jump() {
    let fault = "The clock of a publisher's host jumps back an hour, on a day, back 50 years.";
    tell_jumps("clock_of_a_publisher", fault, Whose::Publisher);
}

#[test]
fn a_subscribers_clock_may_jump() {
    let fault = "The clock of a subscriber's host jumps back an hour, on a day, back 50 years.";
    tell_jumps("clock_of_a_subscriber", fault, Whose::Subscriber);
}

/// Events that are dropped as stale, of those that come after a jump.
fn stale_after(scene: &mut Jumping, ahead_s: i64) -> u64 {
    let stale = |page: &str| sum_of(page, "ingress_dropped_events_total", "reason=\"stale\"");
    let before = stale(&scene.bus.get("/metrics"));
    scene.clock.set_ahead(ahead_s);
    stale(&scene.publish(EVENTS)) - before
}

#[test]
fn events_are_as_old_as_the_two_clocks_say_where_a_topic_has_an_age() {
    let policy = "[[topic]]\nmatch = \"a\"\nmax_age_ms = 600000\n";
    let mut told = Vec::new();
    for (whose, what) in [
        (Whose::Bus, "dropped where the bus's clock is a day ahead"),
        (
            Whose::Publisher,
            "dropped where the publisher's clock is an hour behind",
        ),
    ] {
        let Some(mut scene) = Jumping::start(whose, policy) else {
            return;
        };
        let stale = JUMPS_S.map(|ahead_s| stale_after(&mut scene, ahead_s));
        let expected = match whose {
            Whose::Bus => [0, EVENTS, 0, 0],
            _ => [EVENTS, 0, EVENTS, 0],
        };
        assert_eq!(stale, expected);
        let fresh = scene.published - stale.iter().sum::<u64>();
        scene.receive(fresh);
        assert_eq!(scene.end().received, fresh);
        told.push(figure(what, EVENTS, "events"));
    }
    told.push(figure("of", EVENTS, "events"));
    tell(
        "clocks_apart_and_an_age",
        "The clocks of a publisher and the bus are further apart than a topic's max_age_ms.",
        "What looks older is dropped and counted as stale, what looks younger, or is of the \
         future, passes. As soon as the clocks agree, all passes again.",
        &told,
    );
}
