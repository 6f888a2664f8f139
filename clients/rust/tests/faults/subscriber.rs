//! One subscription, the runs of a bus, and the way between them.

use hailmary_client::SubscriberStats;
use hailmary_proto::v1::refusal::Reason;

use crate::bus::{FIRST_ID, Fate, Script, Way, stranger_says};
use crate::cases::{SubscriberCase, SubscriberStep};
use crate::session::SessionDriver;
use crate::socket::SocketDriver;

pub(crate) type NamedCounts = Vec<(&'static str, u64)>;

/// What a subscription runs on. A case whose step a driver does not know must not be
/// over it.
pub(crate) trait Driver {
    fn subscribe(&mut self);
    fn start(&mut self);
    fn stop(&mut self);
    fn relocate(&mut self);
    /// Till the bus has granted a lease, and the subscriber has it.
    fn await_lease(&mut self, bus: &mut Script);
    fn deliver(&mut self, datagram: &[u8]);
    fn pass_time(&mut self, ms: u64, bus: &mut Script);
    fn jump(&mut self, ms: i64);
    fn close(&mut self);
    fn close_descriptor(&mut self);
    fn receive_fails(&mut self);
    fn counts(&self) -> NamedCounts;
    /// What the bus was asked, where it does not depend on the machine's speed.
    fn requests(&self) -> Option<&[&'static str]>;
}

pub(crate) fn run(case: &SubscriberCase, over: &str) {
    let driver: Box<dyn Driver> = match over {
        "session" => Box::new(SessionDriver::new()),
        _ => Box::new(SocketDriver::new(over)),
    };
    let mut world = World {
        driver,
        bus: Script::new(FIRST_ID),
        held: vec![],
    };
    case.steps.iter().for_each(|step| world.take(step));
    case.stats.check(&world.driver.counts());
    if let Some(requests) = world.driver.requests() {
        assert_eq!(requests, unfolded(&case.requests));
    }
}

/// `renew x 3` is three of them.
fn unfolded(requests: &[String]) -> Vec<&str> {
    let mut kinds = vec![];
    for request in requests {
        let (kind, times) = request.split_once(" x ").unwrap_or((request, "1"));
        kinds.extend(std::iter::repeat_n(kind, times.parse().unwrap()));
    }
    kinds
}

struct World {
    driver: Box<dyn Driver>,
    bus: Script,
    held: Vec<Vec<u8>>,
}

impl World {
    fn take(&mut self, step: &SubscriberStep) {
        match step {
            SubscriberStep::Subscribe => self.driver.subscribe(),
            SubscriberStep::BusStarts | SubscriberStep::BusGoesOn => self.driver.start(),
            SubscriberStep::BusStandsStill => self.driver.stop(),
            SubscriberStep::BusRestarts => {
                self.bus = Script::new(self.bus.id + 1);
                self.driver.stop();
                self.driver.start();
            }
            SubscriberStep::BusMoves => {
                self.bus = Script::new(self.bus.id + 1);
                self.driver.relocate();
            }
            SubscriberStep::BusDrops { events } => self.bus.drop_events(*events),
            SubscriberStep::BusRefuses { reason } => {
                self.bus.refusal = Some(Reason::from_str_name(reason).unwrap());
            }
            SubscriberStep::BusAdmits => self.bus.refusal = None,
            SubscriberStep::Lease { ms } => self.lease(*ms),
            SubscriberStep::LeaseLapses => self.bus.forget(),
            SubscriberStep::Events { events, way } => self.send(*events, way),
            SubscriberStep::Release => self.release(),
            SubscriberStep::Stranger { sends } => {
                self.driver.deliver(&stranger_says(sends, self.bus.id));
            }
            SubscriberStep::TimePasses { ms } => self.driver.pass_time(*ms, &mut self.bus),
            SubscriberStep::ClockJumps { ms } => self.driver.jump(*ms),
            SubscriberStep::Close => self.driver.close(),
            SubscriberStep::CloseDescriptor => self.driver.close_descriptor(),
            SubscriberStep::ReceiveFails => self.driver.receive_fails(),
            SubscriberStep::Report { received, lost } => self.check_report(*received, *lost),
            SubscriberStep::Stats { are } => are.check(&self.driver.counts()),
        }
    }

    fn lease(&mut self, ms: u32) {
        self.bus.lease_ms = ms;
        self.bus.has_granted = false;
        self.driver.subscribe();
        self.driver.await_lease(&mut self.bus);
    }

    fn send(&mut self, events: u64, way: &Way) {
        let datagram = self.bus.events(events);
        if matches!(way, Way::Named(Fate::Held)) {
            self.held.push(datagram);
            return;
        }
        for arriving in way.take(datagram) {
            self.driver.deliver(&arriving);
        }
    }

    /// The last one first.
    fn release(&mut self) {
        while let Some(datagram) = self.held.pop() {
            self.driver.deliver(&datagram);
        }
    }

    fn check_report(&self, received: u64, lost: u64) {
        let report = self.bus.reports.last().unwrap();
        assert_eq!((report.bus, report.dropped), (self.bus.id, 0));
        assert_eq!((report.received, report.lost), (received, lost));
    }
}

pub(crate) fn counts_of(stats: &SubscriberStats) -> NamedCounts {
    vec![
        ("received", stats.received),
        ("lost", stats.lost),
        ("dropped_by_bus", stats.dropped_by_bus),
        ("duplicates", stats.duplicates),
        ("awaited", stats.awaited),
        ("lapses", stats.lapses),
        ("bus_restarts", stats.bus_restarts),
        ("ignored_frames", stats.ignored_frames),
    ]
}
