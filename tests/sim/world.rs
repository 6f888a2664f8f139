//! One history: buses, publishers and subscribers on a network, from one seed to its end.
//!
//! First everything runs while faults happen, and each step of a bus is held against the oracle.
//! Then faults stop, and whoever lives must get what is published. Then all go, and nothing of
//! them may stay.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::panic::{AssertUnwindSafe, catch_unwind};

use hailmary_proto::flow::WINDOW;
use hailmary_proto::v1::frame::Control;
use hailmary_proto::v1::{Frame, Subscribe};
use prost::Message;

use super::bus::{Bus, Datagram, Host, RECEIVE_BYTES_MAX};
use super::clock::{Clock, MS, Nanos, SECOND};
use super::datagrams;
use super::faults::{ALL, Faults, Mishap};
use super::law::{Broken, Kept, law};
use super::network::Network;
use super::oracle::Oracle;
use super::plan::{Asked, Plan, draw_patterns};
use super::publisher::{Habits, PROBE, Publisher};
use super::rng::Rng;
use super::seen::Seen;
use super::subscriber::{Life, Order, Subscriber, draw_slowness};
use super::trace::{Telling, Trace, fact, place};

/// How long faults happen.
const ROUGH: Nanos = 12 * SECOND;

/// The longest that leases and cookies of before may be in the way of those who live.
const CALM: Nanos = 45 * SECOND;

/// What a history may take: past it something spins.
const STEPS_MAX: u64 = 400_000;

/// What a data thread may hold at the end beyond the start, in bytes: tables and frames keep the room
/// that their fullest turn took, which is the most datagrams of a batch to the most subscribers.
const STAYS_PER_DATA_THREAD: u64 = 256 << 10;

/// What a bus keeps of a sender, in bytes, till others speak: its flow, at each data thread.
const STAYS_PER_SENDER: u64 = 2 << 10;

/// Datagrams that a hostile host remembers, to send them once more.
const REMEMBERED_MAX: usize = 64;

/// What is to happen, and when.
#[derive(Debug)]
enum Happening {
    Arrival {
        from: SocketAddr,
        to: SocketAddr,
        bytes: Vec<u8>,
    },
    Bus(usize),
    Publisher(usize),
    Subscriber(usize),
    Mishap,
    /// Parts of the network find each other again.
    Reunion,
}

/// A bus, and what must come of it.
#[derive(Debug)]
struct Station {
    listener: SocketAddr,
    egress: SocketAddr,
    own: SocketAddr,
    clock: Clock,
    plan: Plan,
    host: Host,
    bus: Bus,
    oracle: Oracle,
    wake_at: Nanos,
    stopped_until: Nanos,
    /// How long after a datagram came it is read, at the most.
    latency: Nanos,
}

/// What a history came to.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    pub hash: u64,
    pub steps: u64,
    pub simulated: Nanos,
    pub events: u64,
    pub copies: u64,
    pub datagrams: u64,
    pub lost: u64,
    pub doubled: u64,
    pub bent: u64,
    pub overflowed: u64,
    pub mishaps: u64,
    pub leases: u64,
    pub stricter: u64,
    /// Whether somebody could say what nobody said.
    pub lied: bool,
    /// What occurred.
    pub seen: Seen,
    /// The most bytes that a bus held at its end beyond those of its start.
    pub stays_most: u64,
}

/// A history.
#[derive(Debug)]
pub struct World {
    now: Nanos,
    rng: Rng,
    faults: Faults,
    network: Network,
    queue: BTreeMap<(Nanos, u64), Happening>,
    queued: u64,
    stations: Vec<Station>,
    publishers: Vec<Publisher>,
    subscribers: Vec<Subscriber>,
    sinks: Vec<SocketAddr>,
    order: Order,
    is_rough: bool,
    next_port: u16,
    remembered: Vec<(SocketAddr, SocketAddr, Vec<u8>)>,
    trace: Trace,
    summary: Summary,
}

/// Runs a seed's history: what it came to, or which law was broken when, and its last events.
pub fn run(seed: u64, telling: Telling) -> (Result<Summary, Broken>, Vec<String>) {
    let mut world = World::new(seed, telling);
    let result = catch_unwind(AssertUnwindSafe(|| {
        world.live()?;
        world.check_memory()?;
        Ok(world.sum_up())
    }));
    let result = result.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        Err(Broken {
            law: "nothing panics",
            how: text.unwrap_or_default(),
        })
    });
    let at_step = |broken: Broken| Broken {
        how: format!("{} (at step {})", broken.how, world.trace.steps),
        ..broken
    };
    (result.map_err(at_step), world.trace.told())
}

/// The bytes that a seed's buses hold when everybody has come and gone so many times.
pub fn held_after(seed: u64, rounds: u32) -> Result<u64, Broken> {
    let mut world = World::new(seed, Telling::Silent);
    world.faults.stop();
    world.faults.mishaps.clear();
    world.is_rough = false;
    world.come_and_go(rounds)?;
    let mut held = 0;
    for station in &mut world.stations {
        let fresh = Bus::start(&station.plan, station.host, world.rng.split());
        held += std::mem::replace(&mut station.bus, fresh).end();
    }
    Ok(held)
}

impl World {
    fn new(seed: u64, telling: Telling) -> Self {
        let mut rng = Rng::new(seed);
        let faults = Faults::draw(&mut rng);
        let order = match faults.keeps_order() {
            true => Order::Kept,
            false => Order::Lost,
        };
        let mut world = Self {
            now: 0,
            network: Network::new(rng.split()),
            queue: BTreeMap::new(),
            queued: 0,
            stations: Vec::new(),
            publishers: Vec::new(),
            subscribers: Vec::new(),
            sinks: (0..3).map(|n| host(200 + n, 9_000)).collect(),
            order,
            is_rough: true,
            next_port: 20_000,
            remembered: Vec::new(),
            trace: Trace::new(telling),
            summary: Summary {
                lied: faults.can_lie(),
                ..Summary::default()
            },
            faults,
            rng,
        };
        for kind in ALL {
            world.summary.seen.note(&kind.name(), 0);
        }
        world.populate();
        world
    }

    fn populate(&mut self) {
        let buses = 1 + usize::from(self.rng.chance(250_000));
        if buses > 1 && self.rng.chance(500_000) {
            // Each may have the other for a static subscriber, and so events may go round.
            self.sinks.extend((0..buses).map(listener));
            self.order = Order::Lost;
        }
        for number in 0..buses {
            let station = self.station(number);
            self.stations.push(station);
        }
        for _ in 0..self.rng.range(1, 4) {
            let publisher = self.publisher();
            self.publishers.push(publisher);
        }
        for _ in 0..self.rng.range(1, 9) {
            let subscriber = self.subscriber();
            self.subscribers.push(subscriber);
        }
    }

    fn skew(&mut self) -> i64 {
        let most = self.faults.skew_ppm;
        self.rng.below(2 * most as u64 + 1) as i64 - most
    }

    fn clock(&mut self) -> Clock {
        let wall_off = self.rng.below(2 * SECOND) as i64 - SECOND as i64;
        let skew = self.skew();
        Clock::start(self.now, skew, wall_off)
    }

    fn station(&mut self, number: usize) -> Station {
        let own = host(1 + number as u8, 7_000);
        let plan = Plan::draw(&mut self.rng, own, &self.sinks, self.faults.odd);
        let host_ = Host {
            workers: *self.rng.pick(&[1, 1, 2, 3]),
            buffer_max: *self.rng.pick(&[16, 64, 1_000]),
            batch_max: *self.rng.pick(&[1, 16, 64]),
            send_fails: self.faults.send_fails,
        };
        let bus = Bus::start(&plan, host_, self.rng.split());
        Station {
            listener: listener(number),
            egress: host(1 + number as u8, 40_000),
            own,
            clock: self.clock(),
            oracle: Oracle::new(&bus, &plan),
            plan,
            host: host_,
            bus,
            wake_at: Nanos::MAX,
            stopped_until: 0,
            latency: *self.rng.pick(&[0, 0, 500_000, 20 * MS]),
        }
    }

    /// An address that nobody has had.
    fn address(&mut self) -> SocketAddr {
        self.next_port += 1;
        // Few hosts, so that they meet the bounds of one origin.
        let last = *self.rng.pick(&[64, 70, 100, 128, 190_u8]);
        let ip = match self.rng.below(4) {
            0 => IpAddr::V4(Ipv4Addr::new(127, 0, 0, last)),
            1 => IpAddr::V6(Ipv6Addr::new(
                0xfd00,
                0,
                0,
                u16::from(last) % 3,
                0,
                0,
                0,
                u16::from(last),
            )),
            _ => IpAddr::V4(Ipv4Addr::new(10, 0, 0, last)),
        };
        SocketAddr::new(ip, self.next_port)
    }

    fn publisher(&mut self) -> Publisher {
        let habits = Habits {
            every: *self.rng.pick(&[100 * MS, 400 * MS, 2 * SECOND]),
            batch_max: *self.rng.pick(&[1, 3, 12]),
            drops: *self.rng.pick(&[0, 0, 100_000]),
            stampless: *self.rng.pick(&[0, 0, 200_000]),
            weighted: *self.rng.pick(&[0, 0, 100_000]),
            payload_max: *self.rng.pick(&[1, 60, 900]),
        };
        let address = match self.rng.chance(200_000) {
            true => self.stations[0].own,
            false => self.address(),
        };
        let bus = self.rng.index(self.stations.len());
        let (clock, rng) = (self.clock(), self.rng.split());
        Publisher::new(address, bus, clock, habits, rng)
    }

    fn request(&mut self) -> Subscribe {
        let odd = self.faults.odd;
        let terms = Asked::draw(&mut self.rng, odd);
        let rng = &mut self.rng;
        let mut request = Subscribe {
            topics: draw_patterns(rng),
            group: terms.group,
            sample: terms.sample,
            events_per_second: terms.events_per_second,
            name: (*rng.pick(&["", "indexer", "counter", "spam-1", "feed", "a.b-c_d"])).to_owned(),
            lease_ms: *rng.pick(&[0, 0, 1, 1_000, 3_000, 10_000, u32::MAX]),
            max_frame_bytes: *rng.pick(&[0, 0, 508, 600, 1_400, 9_000, u32::MAX]),
            ..Subscribe::default()
        };
        if rng.chance(odd / 8) {
            match rng.below(5) {
                0 => request.topics = vec!["a.>.b".to_owned()],
                1 => request.topics.clear(),
                2 => request.name = "_hailmary".to_owned(),
                3 => request.sample = *rng.pick(&[f64::NAN, -0.5, 1.5]),
                _ => request.max_frame_bytes = 507,
            }
        }
        request
    }

    fn subscriber(&mut self) -> Subscriber {
        let request = self.request();
        let bus = self.rng.index(self.stations.len());
        let (address, clock, rng) = (self.address(), self.clock(), self.rng.split());
        let mut subscriber = Subscriber::new(address, bus, clock, request, self.now, rng);
        subscriber.read_after = draw_slowness(&mut self.rng);
        subscriber.buffer_max = *self.rng.pick(&[4, 64, 1_000]);
        subscriber
    }

    // The course of time.

    fn live(&mut self) -> Kept {
        self.begin();
        self.run_until(ROUGH)?;
        self.calm_down()?;
        self.check_progress()?;
        self.check_ledgers()?;
        self.check_the_end()
    }

    fn begin(&mut self) {
        for index in 0..self.publishers.len() {
            let first = self.now + self.rng.below(SECOND);
            self.wake_publisher(index, first);
        }
        for index in 0..self.subscribers.len() {
            self.wake_subscriber(index);
        }
        self.at(self.faults.mishap_every, Happening::Mishap);
    }

    fn at(&mut self, at: Nanos, happening: Happening) {
        self.queued += 1;
        self.queue
            .insert((at.max(self.now), self.queued), happening);
    }

    fn run_until(&mut self, end: Nanos) -> Kept {
        while let Some(entry) = self.queue.first_entry() {
            if entry.key().0 > end {
                break;
            }
            let ((at, _), happening) = entry.remove_entry();
            self.now = at;
            law!(
                self.trace.steps < STEPS_MAX,
                "nothing spins",
                "{} steps",
                self.trace.steps
            );
            self.happen(happening)?;
        }
        self.now = end;
        Ok(())
    }

    fn happen(&mut self, happening: Happening) -> Kept {
        match happening {
            Happening::Arrival { from, to, bytes } => {
                self.arrive(from, to, bytes);
                Ok(())
            }
            Happening::Bus(index) => self.turn_bus(index),
            Happening::Publisher(index) => {
                self.turn_publisher(index);
                Ok(())
            }
            Happening::Subscriber(index) => self.turn_subscriber(index),
            Happening::Reunion => {
                self.network.part(BTreeSet::new());
                Ok(())
            }
            Happening::Mishap => self.mishap(),
        }
    }

    // Datagrams.

    fn send(&mut self, from: SocketAddr, to: SocketAddr, bytes: Vec<u8>) {
        let facts = [1, place(from), place(to), fact(&bytes)];
        self.trace.note(self.now, &facts, || {
            format!("{from} -> {to}: {}", shown(&bytes))
        });
        if self.is_rough && self.faults.mishaps.contains(&Mishap::Hostile) {
            let entry = (from, to, bytes.clone());
            match self.remembered.len() < REMEMBERED_MAX {
                true => self.remembered.push(entry),
                false => {
                    let at = self.rng.index(REMEMBERED_MAX);
                    self.remembered[at] = entry;
                }
            }
        }
        for (at, bytes) in self.network.send(&self.faults, self.now, from, to, &bytes) {
            self.at(at, Happening::Arrival { from, to, bytes });
        }
    }

    fn arrive(&mut self, from: SocketAddr, to: SocketAddr, bytes: Vec<u8>) {
        if let Some(index) = self
            .stations
            .iter()
            .position(|station| station.listener == to)
        {
            self.stations[index].bus.arrive(Datagram { from, bytes });
            let after = self.rng.below(self.stations[index].latency + 1);
            return self.wake_bus(index, self.now + after);
        }
        let now = self.now;
        let there = self
            .subscribers
            .iter()
            .position(|one| one.address == to && one.life != Life::Dead);
        if let Some(index) = there {
            self.subscribers[index].arrive(now, from, bytes);
            self.wake_subscriber(index);
        }
    }

    // Buses.

    fn wake_bus(&mut self, index: usize, at: Nanos) {
        let station = &mut self.stations[index];
        let at = at.max(station.stopped_until);
        if at < station.wake_at {
            station.wake_at = at;
            self.at(at, Happening::Bus(index));
        }
    }

    /// A wake-up of a bus's data threads, in any order.
    fn turn_bus(&mut self, index: usize) -> Kept {
        let station = &mut self.stations[index];
        if station.wake_at != self.now {
            return Ok(());
        }
        station.wake_at = Nanos::MAX;
        let workers = station.bus.workers();
        let first = self.rng.index(workers);
        for worker in (0..workers).map(|worker| (first + worker) % workers) {
            self.turn_worker(index, worker)?;
        }
        let station = &mut self.stations[index];
        station.oracle.check_state(&mut station.bus)?;
        let is_readable = (0..workers).any(|worker| station.bus.is_readable(worker));
        let timeout = station.bus.poll_timeout();
        if is_readable {
            let after = 20_000 + self.rng.below(station.latency + 1);
            self.wake_bus(index, self.now + after);
            return Ok(());
        }
        if let Some(timeout) = timeout {
            let local = station.clock.local(self.now);
            law!(
                timeout > local || station.host.workers > 1,
                "a bus does not spin",
                "{timeout:?} at {local:?}"
            );
            let at = station.clock.world(timeout).max(self.now + 1);
            self.wake_bus(index, at);
        }
        Ok(())
    }

    /// One turn of one data thread, as the event loop takes it.
    fn turn_worker(&mut self, index: usize, worker: usize) -> Kept {
        let station = &mut self.stations[index];
        let now = station.clock.local(self.now);
        let unix_nano = station.clock.unix_nano(self.now);
        if worker == 0 || station.bus.is_overdue(now) {
            let ended = station.bus.end_leases(now);
            station.oracle.check_ended(now, &ended)?;
        }
        let turn = station.bus.forward(worker, now, unix_nano);
        station.oracle.check_turn(&turn)?;
        let listener = station.listener;
        let egress = station.egress;
        let answers = match worker {
            0 => {
                let acted = station.bus.act_on_controls(now);
                station.oracle.check_acted(&acted)?;
                acted
                    .messages
                    .into_iter()
                    .flat_map(|(_, answers)| answers)
                    .collect()
            }
            _ => {
                let lost = station.bus.pass_controls_on(worker);
                law!(
                    lost == 0,
                    "there is room for messages between data threads",
                    "{lost} lost"
                );
                Vec::new()
            }
        };
        let facts = [
            2,
            index as u64,
            worker as u64,
            turn.inputs.len() as u64,
            turn.sends.len() as u64,
            turn.verdicts(),
        ];
        self.trace.note(self.now, &facts, || {
            format!("bus {index}/{worker} at {now:?}: {} datagrams, {} copies, {} answers, decided {:?}", turn.inputs.len(), turn.sends.len(), answers.len(), turn.decided)
        });
        for sent in turn.sends.into_iter().filter(|sent| sent.dropped.is_none()) {
            self.send(egress, sent.to, sent.bytes);
        }
        for answer in answers {
            self.send(
                listener,
                super::bus::socket_address(&answer.to),
                answer.datagram,
            );
        }
        Ok(())
    }

    fn restart_bus(&mut self, index: usize) {
        let skew = self.skew();
        let rng = self.rng.split();
        let station = &mut self.stations[index];
        self.summary.add_bus(station);
        station.bus = Bus::start(&station.plan, station.host, rng);
        station.oracle = Oracle::new(&station.bus, &station.plan);
        station.clock = Clock::start(self.now, skew, station.clock.wall_off);
        for subscriber in self.subscribers.iter_mut().filter(|one| one.bus == index) {
            subscriber.is_steady = false;
        }
    }

    fn reload(&mut self, index: usize, plan: Plan) -> Kept {
        let station = &mut self.stations[index];
        let revoked = station.bus.reload(&plan);
        station.plan = plan;
        station.oracle.reload(&station.plan, &revoked)?;
        station.oracle.check_state(&mut station.bus)?;
        self.wake_bus(index, self.now);
        Ok(())
    }

    // Publishers and subscribers.

    fn wake_publisher(&mut self, index: usize, at: Nanos) {
        self.publishers[index].wake_at = at;
        self.at(at, Happening::Publisher(index));
    }

    fn turn_publisher(&mut self, index: usize) {
        if self.publishers[index].wake_at != self.now || !self.is_rough {
            return;
        }
        self.publish(index);
        let after = self.rng.below(self.publishers[index].habits.every);
        self.wake_publisher(index, self.now + 1 + after);
    }

    fn publish(&mut self, index: usize) {
        let (from, to) = self.way_of(index);
        if let Some(datagram) = self.publishers[index].publish(self.now) {
            self.send(from, to, datagram);
        }
        if self.rng.chance(50_000) {
            let ping = self.publishers[index].ping();
            self.send(from, to, ping);
        }
    }

    fn way_of(&self, publisher: usize) -> (SocketAddr, SocketAddr) {
        let publisher = &self.publishers[publisher];
        (publisher.address, self.stations[publisher.bus].listener)
    }

    fn wake_subscriber(&mut self, index: usize) {
        let at = match self.subscribers[index].life {
            Life::Running => self.subscribers[index].wake_at,
            Life::Stopped(until) => until,
            Life::Dead => return,
        };
        if at < Nanos::MAX {
            self.at(at, Happening::Subscriber(index));
        }
    }

    fn turn_subscriber(&mut self, index: usize) -> Kept {
        let now = self.now;
        let subscriber = &mut self.subscribers[index];
        match subscriber.life {
            Life::Dead => return Ok(()),
            Life::Stopped(until) if until > now => return Ok(()),
            Life::Stopped(_) => subscriber.life = Life::Running,
            Life::Running if subscriber.wake_at > now => return Ok(()),
            Life::Running => {}
        }
        let bus = self.stations[subscriber.bus].listener;
        let out = subscriber.turn(now, bus, self.order)?;
        if !self.summary.lied {
            subscriber.check_books()?;
        }
        let from = subscriber.address;
        for datagram in out {
            self.send(from, bus, datagram);
        }
        self.wake_subscriber(index);
        Ok(())
    }

    fn leave(&mut self, index: usize) {
        let subscriber = &mut self.subscribers[index];
        let bus = self.stations[subscriber.bus].listener;
        let last = subscriber.subscription.close().map(<[u8]>::to_vec);
        let from = subscriber.address;
        subscriber.life = Life::Dead;
        if let Some(datagram) = last {
            self.send(from, bus, datagram);
        }
    }

    // Mishaps.

    fn mishap(&mut self) -> Kept {
        if !self.is_rough {
            return Ok(());
        }
        let next = self.now + 1 + self.rng.below(self.faults.mishap_every);
        self.at(next, Happening::Mishap);
        if self.faults.mishaps.is_empty() {
            return Ok(());
        }
        let kind = *self.rng.pick(&self.faults.mishaps);
        self.summary.mishaps += 1;
        self.summary.seen.note(&kind.name(), 1);
        self.trace
            .note(self.now, &[3, kind as u64], || format!("{kind:?}"));
        let (bus, publisher, subscriber) = (
            self.rng.index(self.stations.len()),
            self.rng.index(self.publishers.len()),
            self.rng.index(self.subscribers.len()),
        );
        match kind {
            Mishap::Partition => self.partition(),
            Mishap::BusRestarts => self.restart_bus(bus),
            Mishap::BusStops => self.stop_bus(bus),
            Mishap::PublisherRestarts => self.publishers[publisher].restart(),
            Mishap::PublisherMoves => {
                let address = self.address();
                self.publishers[publisher].move_to(address);
            }
            Mishap::SubscriberRestarts => self.restart_somewhere(subscriber),
            Mishap::SubscriberDies => self.subscribers[subscriber].life = Life::Dead,
            Mishap::SubscriberMoves => self.move_subscriber(subscriber),
            Mishap::AddressTaken => self.take_address(subscriber),
            Mishap::SubscriberStops => self.stop_subscriber(subscriber),
            Mishap::SubscriberLeaves => self.leave(subscriber),
            Mishap::WallClockJumps => {
                let jump = self.rng.below(2_000 * SECOND) as i64 - 1_000 * SECOND as i64;
                self.stations[bus].clock.wall_off += jump;
                self.publishers[publisher].clock.wall_off -= jump;
            }
            Mishap::LeaseStorm => self.storm(bus),
            Mishap::Reload => self.reload_otherwise(bus)?,
            Mishap::Hostile => self.attack(bus),
            Mishap::Burst => {
                for _ in 0..self.rng.range(10, 60) {
                    self.publish(publisher);
                }
            }
        }
        Ok(())
    }

    fn stop_bus(&mut self, index: usize) {
        let until = self.now + self.rng.range(MS, 8 * SECOND);
        let station = &mut self.stations[index];
        station.stopped_until = until;
        if station.wake_at < until {
            station.wake_at = until;
            self.at(until, Happening::Bus(index));
        }
    }

    fn restart_somewhere(&mut self, index: usize) {
        let address = match self.rng.chance(500_000) {
            true => self.subscribers[index].address,
            false => self.address(),
        };
        self.restart_subscriber(index, address);
    }

    fn stop_subscriber(&mut self, index: usize) {
        let until = self.now + self.rng.range(MS, 15 * SECOND);
        if self.subscribers[index].life == Life::Running {
            self.subscribers[index].life = Life::Stopped(until);
            self.wake_subscriber(index);
        }
    }

    fn reload_otherwise(&mut self, index: usize) -> Kept {
        let own = self.stations[index].own;
        let odd = self.faults.odd.max(300_000);
        let plan = Plan::draw(&mut self.rng, own, &self.sinks, odd);
        self.reload(index, plan)
    }

    fn partition(&mut self) {
        let all = self.subscribers.iter().map(|one| one.address.ip());
        let all: BTreeSet<IpAddr> = all
            .chain(self.publishers.iter().map(|one| one.address.ip()))
            .collect();
        let apart = all
            .into_iter()
            .filter(|_| self.rng.chance(500_000))
            .collect();
        self.network.part(apart);
        let end = self.now + self.rng.range(10 * MS, 6 * SECOND);
        self.at(end, Happening::Reunion);
    }

    fn restart_subscriber(&mut self, index: usize, address: SocketAddr) {
        let taken = self
            .subscribers
            .iter()
            .any(|one| one.address == address && one.life != Life::Dead);
        let own = self.subscribers[index].address == address;
        let address = match taken && !own {
            true => self.address(),
            false => address,
        };
        let now = self.now;
        self.subscribers[index].restart(address, now);
        self.wake_subscriber(index);
    }

    fn move_subscriber(&mut self, index: usize) {
        let address = self.address();
        let now = self.now;
        if self.subscribers[index].life == Life::Running {
            self.subscribers[index].move_to(address, now);
            self.wake_subscriber(index);
        }
    }

    /// A subscriber dies, and another one comes at its address.
    fn take_address(&mut self, index: usize) {
        let address = self.subscribers[index].address;
        self.subscribers[index].life = Life::Dead;
        let mut heir = self.subscriber();
        heir.address = address;
        heir.bus = self.subscribers[index].bus;
        self.subscribers[index] = heir;
        self.wake_subscriber(index);
    }

    /// Many ask at once, most of whom never answer a challenge.
    fn storm(&mut self, bus: usize) {
        let to = self.stations[bus].listener;
        for _ in 0..self.rng.range(10, 60) {
            let mut frame = Frame {
                control: Some(Control::Subscribe(Subscribe {
                    nonce: self.rng.next(),
                    ..self.request()
                })),
                ..Frame::default()
            };
            hailmary_proto::write::pad(&mut frame, 64);
            let from = self.address();
            self.send(from, to, frame.encode_to_vec());
        }
    }

    /// A hostile host says what it likes, from where it likes.
    fn attack(&mut self, bus: usize) {
        let to = self.stations[bus].listener;
        for _ in 0..self.rng.range(1, 40) {
            let from = self.any_address();
            match self.rng.below(6) {
                0 => {
                    let length = self.rng.below(300) as usize;
                    let tape = self.rng.bytes(length);
                    let datagram = datagrams::datagram(&tape, datagrams::Faults::Some);
                    self.send(from, to, datagram);
                }
                1 => {
                    let length = self.rng.below(80) as usize;
                    let noise = match length {
                        0 => vec![0; RECEIVE_BYTES_MAX + 1],
                        _ => self.rng.bytes(length),
                    };
                    self.send(from, to, noise);
                }
                2 => {
                    let datagram = self.short_request();
                    self.send(from, to, datagram);
                }
                _ => self.replay(from),
            }
        }
    }

    /// An address of somebody, or of nobody.
    fn any_address(&mut self) -> SocketAddr {
        match self.rng.below(3) {
            0 => self.address(),
            1 => {
                let index = self.rng.index(self.subscribers.len());
                self.subscribers[index].address
            }
            _ => {
                let index = self.rng.index(self.subscribers.len());
                let address = self.subscribers[index].address;
                SocketAddr::new(address.ip(), address.port() ^ 1)
            }
        }
    }

    /// A request that is shorter than its answer.
    fn short_request(&mut self) -> Vec<u8> {
        let nonce = self.rng.next();
        let control = match self.rng.below(3) {
            0 => Control::Ping(hailmary_proto::v1::Ping { nonce }),
            1 => Control::Unsubscribe(hailmary_proto::v1::Unsubscribe {
                nonce,
                ..Default::default()
            }),
            _ => Control::Subscribe(Subscribe {
                nonce,
                topics: vec!["a".to_owned()],
                ..Subscribe::default()
            }),
        };
        let mut frame = Frame {
            control: Some(control),
            ..Frame::default()
        };
        hailmary_proto::write::pad(&mut frame, self.rng.below(70) as usize);
        frame.encode_to_vec()
    }

    /// What was seen once is sent once more: as it was, from elsewhere, or bent.
    fn replay(&mut self, elsewhere: SocketAddr) {
        if self.remembered.is_empty() {
            return;
        }
        let (from, to, mut bytes) = self.rng.pick(&self.remembered).clone();
        let from = match self.rng.below(3) {
            0 => from,
            1 => SocketAddr::new(from.ip(), from.port() ^ 1),
            _ => elsewhere,
        };
        if self.rng.chance(200_000) && !bytes.is_empty() {
            let at = self.rng.index(bytes.len());
            bytes[at] ^= 1 << self.rng.below(8);
        }
        self.send(from, to, bytes);
    }

    // The end.

    /// No more faults: everybody lives, within the bounds that an operator gives.
    fn calm_down(&mut self) -> Kept {
        self.is_rough = false;
        self.faults.stop();
        self.network.part(BTreeSet::new());
        for index in 0..self.stations.len() {
            self.stations[index].stopped_until = 0;
            self.stations[index].host.send_fails = 0;
            self.stations[index].bus.host.send_fails = 0;
            let own = self.stations[index].own;
            let plan = Plan::open(&mut self.rng, own);
            self.reload(index, plan)?;
        }
        for index in 0..self.subscribers.len() {
            let subscriber = &mut self.subscribers[index];
            subscriber.buffer_max = 1_000;
            subscriber.read_after = 0;
            if let Life::Stopped(_) = subscriber.life {
                subscriber.life = Life::Stopped(self.now);
                self.wake_subscriber(index);
            }
        }
        // What was refused before is still on its way.
        self.run_until(self.now + 2 * SECOND)?;
        self.revive();
        self.run_until(self.now + CALM)
    }

    /// Others come in the place of those who have gone, or were refused for good.
    fn revive(&mut self) {
        for index in 0..self.subscribers.len() {
            let subscriber = &self.subscribers[index];
            if subscriber.life == Life::Dead || subscriber.is_refused() {
                self.subscribers[index].request = Subscribe {
                    topics: vec![">".to_owned()],
                    name: "again".to_owned(),
                    ..Subscribe::default()
                };
                let address = self.address();
                self.restart_subscriber(index, address);
            }
        }
    }

    /// Whoever lives gets what is published for it, once.
    fn check_progress(&mut self) -> Kept {
        for subscriber in &self.subscribers {
            let oracle = &self.stations[subscriber.bus].oracle;
            let is_known = oracle.nonce(subscriber.address) == Some(subscriber.nonce);
            law!(
                subscriber.is_held() && is_known,
                "once faults stop, whoever asks has a lease",
                "{} is {:?}, and the bus knows {:?}",
                subscriber.address,
                subscriber.subscription.state(),
                oracle.nonce(subscriber.address)
            );
        }
        let mut probes = Vec::new();
        for index in 0..self.publishers.len() {
            let (from, to) = self.way_of(index);
            for (topic, name, datagram) in self.publishers[index].probe() {
                self.send(from, to, datagram);
                probes.push((self.publishers[index].bus, topic, name));
            }
            self.run_until(self.now + 200 * MS)?;
        }
        self.run_until(self.now + 2 * SECOND)?;
        for (bus, topic, name) in probes {
            debug_assert!(name.number & PROBE != 0);
            for subscriber in self.subscribers.iter().filter(|one| one.bus == bus) {
                let is_certain = self.stations[bus]
                    .oracle
                    .is_certain(subscriber.address, &topic);
                let came = subscriber.probes.get(&name).copied().unwrap_or(0);
                law!(
                    !is_certain || came == 1,
                    "once faults stop, whoever has a lease gets what it asked for",
                    "{topic} came {came} times to {}",
                    subscriber.address
                );
            }
        }
        Ok(())
    }

    /// The third law, for each hop whose flow nothing ended: sent = received + lost + dropped.
    fn check_ledgers(&mut self) -> Kept {
        // Two renewals, whose stamps tell the rest, and what is awaited after that.
        self.run_until(self.now + 5 * SECOND + WINDOW.as_nanos() as u64)?;
        for subscriber in &self.subscribers {
            let counts = subscriber.subscription.counts();
            let oracle = &self.stations[subscriber.bus].oracle;
            let Some(member) = oracle.leased(subscriber.address) else {
                continue;
            };
            if !subscriber.is_steady
                || counts.lapses > 0
                || counts.bus_restarts > 0
                || oracle.grants(subscriber.address, subscriber.nonce) != 1
                || self.summary.lied
            {
                continue;
            }
            let flow = counts.flow;
            let told = flow.received + flow.lost + flow.dropped + counts.awaited;
            law!(
                told == member.flow.events,
                "the third law: sent = received + lost + dropped, at the subscriber",
                "{flow:?} of {:?} at {}",
                member.flow,
                subscriber.address
            );
            law!(
                flow.dropped <= member.flow.dropped,
                "nothing counts as dropped by the bus that it did not drop",
                "{flow:?} of {:?}",
                member.flow
            );
        }
        self.check_publishers()
    }

    fn check_publishers(&self) -> Kept {
        for publisher in &self.publishers {
            let station = &self.stations[publisher.bus];
            if self.summary.lied || station.oracle.may_forget_senders() {
                continue;
            }
            let heard = station
                .bus
                .trackers(publisher.sender)
                .map(|tracker| tracker.counts());
            let heard: Vec<_> = heard.collect();
            let counted: u64 = heard
                .iter()
                .map(|flow| flow.received + flow.duplicates)
                .sum();
            let arrived = station.oracle.arrived(publisher.sender);
            law!(
                counted == arrived,
                "the bus counts what arrives of a publisher",
                "{heard:?}, {arrived} arrived"
            );
            let known = heard
                .iter()
                .map(|flow| flow.received + flow.lost + flow.dropped);
            let sent = publisher.sequence();
            law!(
                known.clone().all(|known| known <= sent),
                "the third law: sent = received + lost + dropped, at the bus",
                "{heard:?} of {sent}"
            );
        }
        Ok(())
    }

    /// All go, half of them without a word, and nothing of them stays.
    fn check_the_end(&mut self) -> Kept {
        for index in 0..self.subscribers.len() {
            match index % 2 {
                0 => self.leave(index),
                _ => self.subscribers[index].life = Life::Dead,
            }
        }
        self.run_until(self.now + 21 * SECOND)?;
        for station in &mut self.stations {
            let left = station.bus.directory().subscribers().iter().count();
            law!(
                left == 0 && station.bus.next_end().is_none(),
                "when all have gone, nobody is left",
                "{left}, {:?}",
                station.bus.next_end()
            );
            law!(
                station.bus.poll_timeout().is_none(),
                "a bus without anybody sleeps",
                "{:?}",
                station.bus.poll_timeout()
            );
        }
        Ok(())
    }

    /// What a bus holds when all have gone, against what it held at its start.
    fn check_memory(&mut self) -> Kept {
        for station in &mut self.stations {
            self.summary.add_bus(station);
            let start = || Bus::start(&station.plan, station.host, self.rng.clone());
            let held_at_start = start().end();
            let held = std::mem::replace(&mut station.bus, start()).end();
            let stays = STAYS_PER_DATA_THREAD * station.host.workers as u64
                + STAYS_PER_SENDER * station.oracle.senders() as u64;
            law!(
                held <= held_at_start + stays,
                "when all have gone, their memory is given back",
                "{held} bytes, {held_at_start} at the start, and {stays} may stay"
            );
            let most = &mut self.summary.stays_most;
            *most = held.saturating_sub(held_at_start).max(*most);
        }
        Ok(())
    }

    /// So many times, everybody comes from a new address, gets events, and goes.
    fn come_and_go(&mut self, rounds: u32) -> Kept {
        self.calm_down()?;
        for _ in 0..rounds {
            for index in 0..self.subscribers.len() {
                let address = self.address();
                self.restart_subscriber(index, address);
            }
            self.run_until(self.now + 3 * SECOND)?;
            // Always the same ones, so that no round takes more room than another.
            for index in 0..self.publishers.len() {
                let (from, to) = self.way_of(index);
                for (_, _, datagram) in self.publishers[index].probe() {
                    self.send(from, to, datagram);
                }
            }
            self.run_until(self.now + SECOND)?;
            self.check_the_end()?;
        }
        Ok(())
    }

    /// What kind of history it was, and what its network did.
    fn note_world(&mut self) {
        let traffic = self.network.traffic;
        let is = |condition: bool| u64::from(condition);
        let (stations, subscribers) = (&self.stations, &self.subscribers);
        let is_ipv6 = subscribers.iter().any(|one| one.address.is_ipv6());
        let shares = stations.iter().any(|station| station.host.workers > 1);
        let goes_round = self
            .sinks
            .iter()
            .any(|sink| stations.iter().any(|one| one.listener == *sink));
        for (kind, count) in [
            ("datagram lost", traffic.lost),
            ("datagram doubled", traffic.doubled),
            ("datagram bent", traffic.bent),
            ("history: orderly network", is(self.order == Order::Kept)),
            ("history: disorderly network", is(self.order == Order::Lost)),
            ("history: clocks go wrong", is(self.faults.skew_ppm > 0)),
            ("history: several data threads", is(shares)),
            ("history: several buses", is(stations.len() > 1)),
            (
                "history: buses that subscribe to each other",
                is(goes_round),
            ),
            ("history: IPv6", is(is_ipv6)),
        ] {
            self.summary.seen.note(kind, count);
        }
    }

    fn sum_up(&mut self) -> Summary {
        self.note_world();
        let traffic = self.network.traffic;
        Summary {
            hash: self.trace.hash(),
            steps: self.trace.steps,
            simulated: self.now,
            datagrams: traffic.sent,
            lost: traffic.lost,
            doubled: traffic.doubled,
            bent: traffic.bent,
            ..self.summary.clone()
        }
    }
}

impl Summary {
    /// Adds another history's figures.
    pub fn add(&mut self, other: &Summary) {
        let pairs = [
            (&mut self.steps, other.steps),
            (&mut self.simulated, other.simulated),
            (&mut self.events, other.events),
            (&mut self.copies, other.copies),
            (&mut self.datagrams, other.datagrams),
            (&mut self.lost, other.lost),
            (&mut self.doubled, other.doubled),
            (&mut self.bent, other.bent),
            (&mut self.overflowed, other.overflowed),
            (&mut self.mishaps, other.mishaps),
            (&mut self.leases, other.leases),
            (&mut self.stricter, other.stricter),
        ];
        for (sum, more) in pairs {
            *sum += more;
        }
        // Whatever the order in which they end.
        self.hash = self.hash.wrapping_add(other.hash);
        self.seen.add(&other.seen);
        self.stays_most = self.stays_most.max(other.stays_most);
    }

    fn add_bus(&mut self, station: &mut Station) {
        let overflowed = station.bus.overflowed;
        let counts = station.bus.counts();
        self.events += counts.events.events;
        self.copies += counts.events.copies;
        self.leases += counts.leases.granted;
        self.overflowed += overflowed;
        self.stricter += station.oracle.stricter;
        self.seen.note_counts(counts);
        self.seen.add(&station.oracle.seen);
        self.seen.note("full receive buffer", overflowed);
    }
}

impl std::fmt::Display for Summary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let hours = self.simulated as f64 / SECOND as f64 / 3_600.0;
        write!(
            f,
            "{hours:.1} h simulated in {} steps; {} events, {} copies, {} leases; {} datagrams, of which \
             {} were lost, {} doubled, {} bent and {} found a full buffer; {} mishaps; {} frames refused \
             for padding alone; trace {:016x}",
            self.steps,
            self.events,
            self.copies,
            self.leases,
            self.datagrams,
            self.lost,
            self.doubled,
            self.bent,
            self.overflowed,
            self.mishaps,
            self.stricter,
            self.hash,
        )
    }
}

fn host(last: u8, port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 0, 0, last)), port)
}

fn listener(bus: usize) -> SocketAddr {
    host(1 + bus as u8, 7_277)
}

/// A datagram for people.
fn shown(bytes: &[u8]) -> String {
    let Ok(frame) = Frame::decode(bytes) else {
        return format!("{} bytes, no frame", bytes.len());
    };
    let stamp = frame
        .stamp
        .map(|stamp| (stamp.sequence, stamp.dropped, stamp.hops));
    let control = frame.control.map(|control| format!("{control:?}"));
    let topics: Vec<&str> = frame
        .events
        .iter()
        .map(|event| event.topic.as_str())
        .take(4)
        .collect();
    format!(
        "{} bytes, {} events {topics:?}, stamp {stamp:?} {}",
        bytes.len(),
        frame.events.len(),
        control.unwrap_or_default()
    )
}
