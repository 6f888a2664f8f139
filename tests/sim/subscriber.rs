//! A subscriber: the Rust client's own lease and ledger, behind a bounded receive buffer.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;

use hailmary_client::lease::{LeaseState, Origin, Subscription, Verdict};
use hailmary_proto::decode::Decoder;
use hailmary_proto::v1::frame::Control;
use hailmary_proto::v1::{Frame, Subscribe};
use prost::Message;

use super::clock::{Clock, MS, Nanos};
use super::law::{Kept, law};
use super::publisher::{Name, PROBE};
use super::rng::Rng;

/// One of so many subscribers drops events itself.
const DROPS_ITSELF: u64 = 4;

/// Whether its process runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    Running,
    /// Stands still, its socket open, until then.
    Stopped(Nanos),
    /// Gone, and so is its socket.
    Dead,
}

/// Whether events must come in order, each once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    Kept,
    Lost,
}

/// A subscriber.
#[derive(Debug)]
pub struct Subscriber {
    pub address: SocketAddr,
    pub bus: usize,
    pub clock: Clock,
    pub life: Life,
    pub wake_at: Nanos,
    /// How long a datagram lies before it is read, at the most.
    pub read_after: Nanos,
    pub buffer_max: usize,
    pub request: Subscribe,
    pub nonce: u64,
    pub subscription: Subscription,
    buffer: VecDeque<(SocketAddr, Vec<u8>)>,
    decoder: Decoder,
    rng: Rng,
    /// Events that came in frames of the bus it has its lease from.
    arrived: u64,
    /// The last number of each maker, topic and way.
    last: BTreeMap<(u64, String, u32), u64>,
    pub probes: BTreeMap<Name, u32>,
    /// Whether nothing happened to it or its bus that ends a flow, or lets it seem to have ended.
    pub is_steady: bool,
}

impl Subscriber {
    pub fn new(
        address: SocketAddr,
        bus: usize,
        clock: Clock,
        request: Subscribe,
        now: Nanos,
        mut rng: Rng,
    ) -> Self {
        let nonce = rng.next();
        let subscription = Subscription::new(request.clone(), nonce, clock.local(now));
        Self {
            address,
            bus,
            clock,
            life: Life::Running,
            wake_at: now,
            read_after: 0,
            buffer_max: 256,
            request,
            nonce,
            subscription,
            buffer: VecDeque::new(),
            decoder: Decoder::new(),
            rng,
            arrived: 0,
            last: BTreeMap::new(),
            probes: BTreeMap::new(),
            is_steady: true,
        }
    }

    /// Another process in its place, at this address.
    pub fn restart(&mut self, address: SocketAddr, now: Nanos) {
        let rng = self.rng.split();
        let fresh = Self::new(
            address,
            self.bus,
            self.clock,
            self.request.clone(),
            now,
            rng,
        );
        *self = Self {
            read_after: self.read_after,
            buffer_max: self.buffer_max,
            ..fresh
        };
    }

    /// The same process with another socket.
    pub fn move_to(&mut self, address: SocketAddr, now: Nanos) {
        self.address = address;
        self.is_steady = false;
        self.buffer.clear();
        self.subscription.rebind(self.clock.local(now));
        self.wake_at = now;
    }

    /// A datagram comes into its buffer, if there is room.
    pub fn arrive(&mut self, now: Nanos, from: SocketAddr, bytes: Vec<u8>) {
        if self.life == Life::Dead || self.buffer.len() >= self.buffer_max {
            return;
        }
        self.buffer.push_back((from, bytes));
        self.wake_at = self.wake_at.min(now + self.rng.below(self.read_after + 1));
    }

    /// Reads what waits, and says what is to be sent.
    pub fn turn(
        &mut self,
        now: Nanos,
        bus: SocketAddr,
        order: Order,
    ) -> Result<Vec<Vec<u8>>, super::law::Broken> {
        let local = self.clock.local(now);
        let mut out = Vec::new();
        while let Some((from, bytes)) = self.buffer.pop_front() {
            self.read(now, from, &bytes, bus, order)?;
            self.transmit(local, &mut out);
        }
        self.subscription.handle_timeout(local);
        self.transmit(local, &mut out);
        law!(
            out.len() <= 1_000,
            "no answer makes a subscriber a fast one",
            "{} requests at once",
            out.len()
        );
        let next = self.subscription.poll_timeout();
        law!(
            next.is_none_or(|next| next > local),
            "a subscriber does not spin",
            "{next:?} at {local:?}"
        );
        self.wake_at = next.map_or(Nanos::MAX, |next| self.clock.world(next));
        Ok(out)
    }

    fn transmit(&mut self, local: std::time::Duration, out: &mut Vec<Vec<u8>>) {
        while let Some(datagram) = self.subscription.poll_transmit(local) {
            out.push(datagram.to_vec());
        }
        if self.nonce.is_multiple_of(DROPS_ITSELF) {
            out.iter_mut().for_each(report_drops);
        }
    }

    fn read(
        &mut self,
        now: Nanos,
        from: SocketAddr,
        bytes: &[u8],
        bus: SocketAddr,
        order: Order,
    ) -> Kept {
        let origin = match from == bus {
            true => Origin::Bus,
            false => Origin::Elsewhere,
        };
        let Ok(frame) = self.decoder.decode(bytes) else {
            self.subscription.ignore_datagram();
            return Ok(());
        };
        let verdict = self
            .subscription
            .handle_frame(self.clock.local(now), origin, &frame);
        let Verdict::Deliver { .. } = verdict else {
            return Ok(());
        };
        self.arrived += frame.events().len() as u64;
        let hops = frame.stamp().map_or(0, |stamp| stamp.hops);
        for event in frame.events() {
            let Some(name) = Name::read(event.payload()) else {
                continue;
            };
            if name.number & PROBE != 0 {
                *self.probes.entry(name).or_default() += 1;
            }
            let number = name.number & !PROBE;
            let way = (name.maker, event.topic().to_owned(), hops);
            let last = self.last.insert(way, number);
            let is_later = last.is_none_or(|last| last < number);
            law!(
                order == Order::Lost || is_later,
                "over an orderly network a topic's events of one publisher come in order",
                "{number} after {last:?} of {} at {}",
                event.topic(),
                self.address
            );
        }
        Ok(())
    }

    /// Whether it holds a lease, as far as it knows.
    pub fn is_held(&self) -> bool {
        self.life == Life::Running && self.subscription.state() == LeaseState::Held
    }

    /// Whether it has been refused for good.
    pub fn is_refused(&self) -> bool {
        matches!(self.subscription.state(), LeaseState::Refused(_))
    }

    /// Its own books against each other: what came was counted, as received or as doubled.
    pub fn check_books(&self) -> Kept {
        let flow = self.subscription.counts().flow;
        let counted = flow.received + flow.duplicates;
        law!(
            counted == self.arrived,
            "a subscriber counts what arrives",
            "{flow:?}, {} arrived",
            self.arrived
        );
        Ok(())
    }
}

/// Has a renewal report that some of what came was dropped on the subscriber's own side: the Rust
/// client never drops, others do.
fn report_drops(datagram: &mut Vec<u8>) {
    let Ok(mut frame) = Frame::decode(&datagram[..]) else {
        return;
    };
    if let Some(Control::Subscribe(subscribe)) = &mut frame.control
        && let Some(report) = &mut subscribe.report
    {
        report.dropped = report.received / 8;
        *datagram = frame.encode_to_vec();
    }
}

/// How long a subscriber may wait before it reads.
pub fn draw_slowness(rng: &mut Rng) -> Nanos {
    *rng.pick(&[0, 0, MS, 50 * MS, 500 * MS])
}
