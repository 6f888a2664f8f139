//! The subscriber: a process that takes what comes, counts it, and tells the latency if asked.
//!
//! The same for every system but for the protocol's scanner: large reads, the clock read once for
//! each, nothing copied but the rest of an event that the read cut. Over datagrams a read is a
//! datagram, and beside it the lease is kept.

use std::hash::{BuildHasher, RandomState};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use hailmary_client::RECEIVE_BUFFER_BYTES;
use hailmary_client::lease::{LeaseState, Origin, Subscription};
use hailmary_proto::decode::Decoder;
use hailmary_proto::v1;
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};
use socket2::SockRef;

use crate::clock::{now_nano, own_cpu_nano};
use crate::event::{Head, Kind, TOPIC};
use crate::system::System;
use crate::wire::{Greet, Role, Wire, hailmary, mqtt, nats, resp, scan, zmtp};

/// Room for what one read brings, in bytes: no less than the largest datagram, and enough for a
/// stream to bring a thousand events at once.
const BUFFER_BYTES: usize = 256 << 10;

/// How long a read may wait before the clock is looked at.
const LOOK_UP_EVERY: Duration = Duration::from_millis(100);

/// How long the answer to a greeting may take.
const GREETING_TIMEOUT: Duration = Duration::from_secs(10);

/// Significant digits of a latency.
pub const DIGITS: u8 = 3;

/// The longest latency that is told from longer ones, in ns: a minute, more than a run has.
pub const LATENCY_NANO_MAX: u64 = 60_000_000_000;

/// What a subscriber does.
#[derive(Clone, Debug, clap::Args)]
pub struct Subscribe {
    /// To what.
    #[arg(long, value_enum)]
    pub system: System,
    /// Where that is.
    #[arg(long)]
    pub address: SocketAddr,
    /// Tell the latency of every event.
    #[arg(long)]
    pub latency: bool,
    /// When to end, whatever has come.
    #[arg(long)]
    pub deadline_seconds: f64,
}

/// How a subscription came to its end.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// The publisher's end came through.
    Complete,
    /// The broker hung up.
    CutOff,
    /// Neither came in time.
    Deadline,
}

/// What a subscriber saw.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Received {
    /// How it ended.
    pub ending: Ending,
    /// Counted events that came.
    pub events: u64,
    /// Counted events that came behind one with a higher number.
    pub disordered: u64,
    /// When the last of them was read, on the monotonic clock. 0: there was none.
    pub last_nano: u64,
    /// CPU used since the first of them.
    pub cpu_nano: u64,
    /// How many events had which latency in ns; empty if not asked for.
    pub latency: Vec<(u64, u64)>,
}

/// The word by which a subscriber says that events reach it.
pub const READY: &str = "ready";

impl Subscribe {
    /// Subscribes, says [`READY`] once, and what came as a line of JSON.
    ///
    /// # Errors
    ///
    /// There is no broker, or it says what nobody expected.
    pub fn run(&self) -> anyhow::Result<()> {
        let tally = match self.system {
            System::HailMary | System::HailMaryPrompt => self.take_datagrams()?,
            System::Nats => self.take_stream::<nats::Nats>()?,
            System::Redis => self.take_stream::<resp::Redis>()?,
            System::Mosquitto => self.take_stream::<mqtt::Mqtt>()?,
            System::ZeroMq => self.take_stream::<zmtp::Zmtp>()?,
        };
        if tally.foreign > 0 {
            bail!("{} events are none of this comparison's", tally.foreign);
        }
        println!("{}", serde_json::to_string(&tally.received())?);
        Ok(())
    }

    fn tally(&self) -> anyhow::Result<Tally> {
        let deadline = Instant::now() + Duration::from_secs_f64(self.deadline_seconds);
        Tally::new(self.latency, deadline)
    }

    fn take_stream<W: Greet>(&self) -> anyhow::Result<Tally> {
        let mut tally = self.tally()?;
        let mut stream = TcpStream::connect(self.address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(GREETING_TIMEOUT))?;
        W::greet(&mut stream, Role::Subscriber)?;
        stream.set_read_timeout(Some(LOOK_UP_EVERY))?;
        let mut unread = Unread::new();
        while tally.goes_on() {
            match unread.read_from(&mut stream) {
                Ok(0) => tally.ending = Some(Ending::CutOff),
                Ok(_) => {
                    tally.note_read(now_nano());
                    unread.use_up::<W>(&mut tally)?;
                }
                Err(error) if error.kind() == ErrorKind::ConnectionReset => {
                    tally.ending = Some(Ending::CutOff);
                }
                Err(error) if is_silence(&error) => tally.look_at_clock(),
                Err(error) => return Err(error).context("while receiving"),
            }
            tally.tell_ready()?;
        }
        Ok(tally)
    }

    fn take_datagrams(&self) -> anyhow::Result<Tally> {
        let mut tally = self.tally()?;
        let mut lease = Lease::open(self.address)?;
        let mut buffer = vec![0; BUFFER_BYTES];
        while tally.goes_on() {
            lease.transmit()?;
            match lease.socket.recv_from(&mut buffer) {
                Ok((bytes, from)) => {
                    let datagram = buffer.get(..bytes).unwrap_or_default();
                    if from == self.address {
                        lease.handle(datagram)?;
                    } else {
                        tally.note_read(now_nano());
                        take_frame(datagram, &mut tally)?;
                    }
                }
                Err(error) if is_silence(&error) => tally.look_at_clock(),
                Err(error) => return Err(error).context("while receiving"),
            }
            tally.tell_ready()?;
        }
        Ok(tally)
    }
}

fn take_frame(datagram: &[u8], tally: &mut Tally) -> anyhow::Result<()> {
    let used = scan::<hailmary::HailMary>(datagram, |payload| tally.take(payload))?;
    if used < datagram.len() {
        bail!("a datagram of the bus ends within a field");
    }
    Ok(())
}

fn is_silence(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
    )
}

/// What a stream brought that is not used yet.
struct Unread {
    buffer: Vec<u8>,
    end: usize,
}

impl Unread {
    fn new() -> Self {
        Self {
            buffer: vec![0; BUFFER_BYTES],
            end: 0,
        }
    }

    fn read_from(&mut self, stream: &mut impl Read) -> io::Result<usize> {
        let room = self.buffer.get_mut(self.end..).unwrap_or_default();
        let bytes = stream.read(room)?;
        self.end += bytes;
        Ok(bytes)
    }

    /// Takes all whole events and moves the rest, less than one, to the front.
    fn use_up<W: Wire>(&mut self, tally: &mut Tally) -> anyhow::Result<()> {
        let unread = self.buffer.get(..self.end).unwrap_or_default();
        let used = scan::<W>(unread, |payload| tally.take(payload))?;
        self.buffer.copy_within(used..self.end, 0);
        self.end -= used;
        if self.end == self.buffer.len() {
            bail!("an event does not fit into {BUFFER_BYTES} bytes");
        }
        Ok(())
    }
}

/// The lease of a Hail Mary subscriber, and the socket that it is for.
struct Lease {
    socket: UdpSocket,
    bus: SocketAddr,
    subscription: Subscription,
    decoder: Decoder,
    began: Instant,
}

impl Lease {
    fn open(bus: SocketAddr) -> io::Result<Self> {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        socket.set_read_timeout(Some(LOOK_UP_EVERY))?;
        SockRef::from(&socket).set_recv_buffer_size(RECEIVE_BUFFER_BYTES)?;
        let request = v1::Subscribe {
            topics: vec![TOPIC.to_owned()],
            ..v1::Subscribe::default()
        };
        // Its keys are random.
        let nonce = RandomState::new().hash_one(std::process::id());
        Ok(Self {
            socket,
            bus,
            subscription: Subscription::new(request, nonce, Duration::ZERO),
            decoder: Decoder::new(),
            began: Instant::now(),
        })
    }

    /// Sends what is due: requests and renewals.
    fn transmit(&mut self) -> io::Result<()> {
        let now = self.began.elapsed();
        while let Some(datagram) = self.subscription.poll_transmit(now) {
            self.socket.send_to(datagram, self.bus)?;
        }
        Ok(())
    }

    fn handle(&mut self, datagram: &[u8]) -> anyhow::Result<()> {
        let frame = self.decoder.decode(datagram)?;
        let now = self.began.elapsed();
        self.subscription.handle_frame(now, Origin::Bus, &frame);
        match self.subscription.state() {
            LeaseState::Refused(reason) => bail!(reason),
            _ => Ok(()),
        }
    }
}

/// What has come so far.
struct Tally {
    deadline: Instant,
    ending: Option<Ending>,
    ready: Ready,
    /// When what is being taken was read.
    read_nano: u64,
    events: u64,
    disordered: u64,
    next_number: u64,
    last_nano: u64,
    first_cpu_nano: u64,
    /// Events that are none of this comparison's.
    foreign: u64,
    latency: Option<Histogram<u64>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Ready {
    No,
    Untold,
    Told,
}

impl Tally {
    fn new(latency: bool, deadline: Instant) -> anyhow::Result<Self> {
        Ok(Self {
            deadline,
            ending: None,
            ready: Ready::No,
            read_nano: 0,
            events: 0,
            disordered: 0,
            next_number: 0,
            last_nano: 0,
            first_cpu_nano: 0,
            foreign: 0,
            latency: latency
                .then(|| Histogram::new_with_max(LATENCY_NANO_MAX, DIGITS))
                .transpose()?,
        })
    }

    fn goes_on(&self) -> bool {
        self.ending.is_none()
    }

    fn note_read(&mut self, now_nano: u64) {
        self.read_nano = now_nano;
    }

    /// In silence, and where events never end: by the publisher they do.
    #[cold]
    fn look_at_clock(&mut self) {
        if Instant::now() >= self.deadline {
            self.ending = Some(Ending::Deadline);
        }
    }

    #[inline]
    fn take(&mut self, payload: &[u8]) {
        match Head::read(payload) {
            Some(head) if head.kind == Kind::Counted => self.count(head),
            Some(head) => self.take_uncounted(head.kind),
            None => self.foreign += 1,
        }
    }

    #[inline]
    fn count(&mut self, head: Head) {
        if self.events == 0 {
            self.first_cpu_nano = own_cpu_nano();
        }
        self.events += 1;
        self.last_nano = self.read_nano;
        if head.number < self.next_number {
            self.disordered += 1;
        }
        self.next_number = head.number + 1;
        if let Some(latency) = &mut self.latency {
            latency.saturating_record(self.read_nano.saturating_sub(head.due_nano));
        }
    }

    #[cold]
    fn take_uncounted(&mut self, kind: Kind) {
        match kind {
            Kind::End => self.ending = Some(Ending::Complete),
            _ if self.ready == Ready::No => self.ready = Ready::Untold,
            _ => {}
        }
    }

    fn tell_ready(&mut self) -> io::Result<()> {
        if self.ready != Ready::Untold {
            return Ok(());
        }
        self.ready = Ready::Told;
        writeln!(io::stdout(), "{READY}")
    }

    fn received(&self) -> Received {
        let cpu_nano = match self.events {
            0 => 0,
            _ => own_cpu_nano() - self.first_cpu_nano,
        };
        Received {
            ending: self.ending.unwrap_or(Ending::Deadline),
            events: self.events,
            disordered: self.disordered,
            last_nano: self.last_nano,
            cpu_nano,
            latency: self.latency.as_ref().map(counts).unwrap_or_default(),
        }
    }
}

fn counts(latency: &Histogram<u64>) -> Vec<(u64, u64)> {
    latency
        .iter_recorded()
        .map(|step| (step.value_iterated_to(), step.count_at_value()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::blank_payload;

    fn payload(kind: Kind, number: u64) -> [u8; crate::event::PAYLOAD_BYTES] {
        let mut payload = blank_payload();
        let head = Head {
            kind,
            due_nano: 1_000,
            number,
        };
        head.write(&mut payload);
        payload
    }

    #[test]
    fn counts_what_counts_and_ends_at_the_end() {
        let mut tally = Tally::new(true, Instant::now()).unwrap();
        tally.take(&payload(Kind::WarmUp, 0));
        tally.note_read(1_001_000);
        for number in [0, 1, 5, 4] {
            tally.take(&payload(Kind::Counted, number));
        }
        assert!(tally.goes_on());
        tally.note_read(9_000);
        tally.take(&payload(Kind::End, 0));
        assert!(!tally.goes_on());
        let received = tally.received();
        assert_eq!(received.ending, Ending::Complete);
        assert_eq!((received.events, received.disordered), (4, 1));
        assert_eq!(received.last_nano, 1_001_000);
        let [(nanos, 4)] = received.latency[..] else {
            panic!("{:?}", received.latency);
        };
        assert!(nanos.abs_diff(1_000_000) < 1_000);
    }

    #[test]
    fn a_stream_may_be_cut_anywhere() {
        let mut stream = Vec::new();
        for number in 0..3 {
            mqtt::Mqtt::put_event(&mut stream, &payload(Kind::Counted, number));
        }
        for cut in 0..stream.len() {
            let mut tally = Tally::new(false, Instant::now()).unwrap();
            let mut unread = Unread::new();
            for mut part in [&stream[..cut], &stream[cut..]] {
                unread.read_from(&mut part).unwrap();
                unread.use_up::<mqtt::Mqtt>(&mut tally).unwrap();
            }
            assert_eq!((tally.events, tally.disordered, unread.end), (3, 0, 0));
        }
    }
}
