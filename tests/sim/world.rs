//! One history: buses, publishers and subscribers on a network, from one seed to its end.
//!
//! First everything runs while faults happen, and each step of a bus is held against the oracle.
//! Then faults stop, and whoever lives must get what is published. Then all go, and nothing of
//! them may stay.

mod end;
mod mishaps;
mod summary;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::panic::{AssertUnwindSafe, catch_unwind};

use hailmary_proto::v1::{Frame, Subscribe};
use prost::Message;

use super::bus::{Bus, Datagram, Host};
use super::clock::{Clock, MS, Nanos, SECOND};
use super::faults::{ALL, Faults, Mishap};
use super::law::{Broken, Kept, law};
use super::network::Network;
use super::oracle::Oracle;
use super::plan::{Asked, Plan, draw_patterns};
use super::publisher::{Habits, Publisher};
use super::rng::Rng;
use super::subscriber::{Life, Order, Subscriber, draw_slowness};
use super::trace::{Telling, Trace, fact, place};
pub use summary::Summary;

/// How long faults happen.
const ROUGH: Nanos = 12 * SECOND;

/// What a history may take: past it something spins.
const STEPS_MAX: u64 = 400_000;

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
    /// One host asks for leases on and on.
    Flood {
        bus: usize,
        host: IpAddr,
        left: u64,
    },
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
    /// Its data thread with the registrar stands still.
    stalled_until: Nanos,
    /// How long after a datagram came it is read, at the most.
    latency: Nanos,
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
        let last = std::mem::replace(&mut station.bus, fresh).end();
        held += last.to_forward + last.to_know;
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
            stalled_until: 0,
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
            Happening::Flood { bus, host, left } => {
                self.flood(bus, host, left);
                Ok(())
            }
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
        let is_stalled = station.stalled_until > self.now;
        for worker in (0..workers).map(|worker| (first + worker) % workers) {
            if worker > 0 || !is_stalled {
                self.turn_worker(index, worker)?;
            }
        }
        let station = &mut self.stations[index];
        station.oracle.check_state(&mut station.bus)?;
        let mut going = usize::from(is_stalled)..workers;
        let is_readable = going.any(|worker| station.bus.is_readable(worker));
        let timeout = station.bus.poll_timeout();
        // What is passed on wakes the one that it is passed to, which may have had its turn.
        if is_readable || (!is_stalled && station.bus.has_passed_on()) {
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
            // What is overdue is the stalled one's.
            if timeout > local || !is_stalled {
                self.wake_bus(index, at);
            }
        }
        if is_stalled {
            let end = self.stations[index].stalled_until;
            self.wake_bus(index, end);
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
                station.oracle.check_passed_on(lost)?;
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
