//! The core: what becomes of a datagram, without I/O.
//!
//! It opens no socket, reads no clock, writes no log, knows no thread and makes no randomness:
//! bytes, time and addresses come in as arguments, what is to be sent goes out through buffers
//! that the caller lends. The event loop, simulators, fuzzers and benches drive the same calls.
//!
//! # One turn
//!
//! 1. [`Bus::handle_datagram`] for each received datagram. Its events are copied into frames
//!    under construction; a control message waits for step 3. If [`Bus::is_full`], go to step 2
//!    before the next datagram.
//! 2. [`Bus::poll_copies`] until it gives none. For each copy: send `[stamp, body]`, where
//!    [`is_sendable`](FrameCopy::is_sendable), and tell [`Bus::handle_dropped`] of each that was not. Then
//!    [`Bus::end_frames`].
//! 3. [`Bus::handle_controls`] and [`Bus::handle_timeout`]: the subscriber table changes here
//!    and nowhere else, so sets and places stand still while frames are under construction.
//!    Answers come out by [`Bus::poll_answer`].
//! 4. Sleep till a datagram comes or [`Bus::poll_timeout`] is reached.
//!
//! `now` is the time since any fixed moment, by a clock that does not jump.
#![deny(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    clippy::disallowed_macros
)]

pub mod access;
pub mod address;
mod cookie;
mod fanout;
mod intake;
pub mod leases;
pub mod limits;
mod patterns;
mod publishers;
mod routes;
pub mod series;
pub mod subscribers;
pub mod tally;
mod throttle;

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use hailmary_proto::decode::Decoder;
use hailmary_proto::v1;
use hailmary_proto::v1::frame::Control;
use hailmary_proto::write::StampBytes;
use prost::Message;

use access::{Access, Rights};
use address::{Address, Source};
use cookie::CookieJar;
use fanout::Fanout;
use intake::Intake;
use leases::{Answered, LeaseEvent, LeaseLimits, Leases, Request, Tables};
use publishers::Publishers;
use routes::Routes;
use series::{Series, SeriesId};
use subscribers::{Flow, FrameBytes, Subscriber, SubscriberId, Subscribers, Tenure};
use tally::EventTally;
use throttle::Throttle;

/// What an operator decides, checked.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Who may publish and subscribe.
    pub access: Access,
    /// Bounds of leases.
    pub leases: LeaseLimits,
    /// Names that come by lease and have a series of their own.
    pub leased_series_max: usize,
    /// Members of subscriber sets from the start.
    pub subscribers: Vec<StaticSubscriber>,
    /// Patterns of the topic policies, the first that matches counts.
    pub topic_policies: Vec<String>,
}

/// A subscriber that the configuration names.
#[derive(Clone, Debug)]
pub struct StaticSubscriber {
    /// A legal name.
    pub name: String,
    /// Where its datagrams go.
    pub address: Address,
    /// Checked patterns.
    pub topics: Vec<String>,
    /// The largest datagram it takes, in bytes. `None`: as suits the way.
    pub frame_bytes_max: Option<u32>,
}

/// Where the core's randomness comes from.
pub type Random = Box<dyn FnMut() -> [u8; 16] + Send>;

/// Why a whole frame was not used. Its [`label`](FrameDrop::label) is the metric's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameDrop {
    /// Longer than the buffer it was received into.
    Truncated,
    /// No frame by protobuf's rules.
    Malformed,
    /// Its source may do nothing here.
    NotAllowed,
    /// It passed too many buses: [`limits::HOPS_MAX`].
    Hops,
}

impl FrameDrop {
    /// All reasons, in the order of their discriminants.
    pub const ALL: [FrameDrop; 4] = [
        FrameDrop::Truncated,
        FrameDrop::Malformed,
        FrameDrop::NotAllowed,
        FrameDrop::Hops,
    ];

    /// The reason as a label.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            FrameDrop::Truncated => "truncated",
            FrameDrop::Malformed => "malformed",
            FrameDrop::NotAllowed => "not_allowed",
            FrameDrop::Hops => "hops",
        }
    }
}

/// Why a copy was not sent. Its [`label`](CopyDrop::label) is the metric's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopyDrop {
    /// Larger than the subscriber's largest datagram, or the way's.
    TooLarge,
    /// The socket's send buffer, or the receiver's queue, was full.
    WouldBlock,
    /// The kernel had no memory or no room in the card's queue.
    NoBuffer,
    /// No way there.
    Unreachable,
    /// Nobody listens there.
    Refused,
}

impl CopyDrop {
    /// All reasons, in the order of their discriminants.
    pub const ALL: [CopyDrop; 5] = [
        CopyDrop::TooLarge,
        CopyDrop::WouldBlock,
        CopyDrop::NoBuffer,
        CopyDrop::Unreachable,
        CopyDrop::Refused,
    ];

    /// The reason as a label.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            CopyDrop::TooLarge => "too_large",
            CopyDrop::WouldBlock => "would_block",
            CopyDrop::NoBuffer => "no_buffer",
            CopyDrop::Unreachable => "unreachable",
            CopyDrop::Refused => "refused",
        }
    }
}

/// What a datagram came with.
#[derive(Clone, Copy, Debug)]
pub struct Arrival<'a> {
    /// Who sent it.
    pub source: Source<'a>,
    /// Which listener it came to.
    pub listener: usize,
    /// The wall clock, in ns of Unix time, for the age of events alone.
    pub unix_nano: u64,
}

/// One frame for one subscriber.
#[derive(Debug)]
pub struct FrameCopy {
    /// Who it is for.
    pub subscriber: SubscriberId,
    /// Where it is counted.
    pub series: SeriesId,
    /// How many events it has.
    pub events: u32,
    /// Whether it is within the subscriber's largest datagram. If not it is dropped.
    pub is_sendable: bool,
    stamp: StampBytes,
    frame: usize,
}

impl FrameCopy {
    /// The subscriber's own stamp: the first bytes of the datagram, before [`Bus::body`].
    #[must_use]
    pub fn stamp(&self) -> &[u8] {
        self.stamp.as_slice()
    }
}

/// A control message for one address, to be sent from the listener that was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The listener that the request came to.
    pub listener: usize,
    /// Where it goes.
    pub to: Address,
    /// The whole datagram.
    pub datagram: Vec<u8>,
}

/// A control message that waits for the turn's end.
#[derive(Debug)]
struct PendingControl {
    listener: usize,
    from: Address,
    datagram_bytes: usize,
    /// The sender of the frame's stamp, 0 without one.
    sender: u64,
    control: Control,
}

/// Where copies are being taken from: a frame, and a member of its set.
#[derive(Clone, Copy, Debug, Default)]
struct CopyCursor {
    frame: usize,
    member: usize,
}

/// The bus.
pub struct Bus {
    id: u64,
    random: Random,
    access: Access,
    /// The source last seen that may publish anything: most frames come from it too.
    trusted: Option<IpAddr>,
    decoder: Decoder,
    subscribers: Subscribers,
    series: Series,
    routes: Routes,
    leases: Leases,
    publishers: Publishers,
    fanout: Fanout,
    cursor: CopyCursor,
    controls: Vec<PendingControl>,
    answers: VecDeque<Answer>,
}

impl std::fmt::Debug for Bus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bus")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl Bus {
    /// A bus with its static subscribers.
    #[must_use]
    pub fn new(settings: Settings, now: Duration, mut random: Random) -> Self {
        let id = nonzero(&mut random);
        let names = settings
            .subscribers
            .iter()
            .map(|subscriber| subscriber.name.as_str());
        let series = Series::new(names, settings.leased_series_max);
        let cookies = CookieJar::new(now, random());
        let throttle = Throttle::new(now, nonzero(&mut random));
        let mut bus = Self {
            id,
            access: settings.access,
            trusted: None,
            decoder: Decoder::new(),
            subscribers: Subscribers::default(),
            series,
            routes: Routes::new(settings.topic_policies, nonzero(&mut random)),
            leases: Leases::new(id, settings.leases, cookies, throttle),
            publishers: Publishers::new(nonzero(&mut random)),
            fanout: Fanout::default(),
            cursor: CopyCursor::default(),
            controls: Vec::new(),
            answers: VecDeque::new(),
            random,
        };
        for subscriber in settings.subscribers {
            bus.add_static(subscriber);
        }
        bus
    }

    fn add_static(&mut self, subscriber: StaticSubscriber) {
        let topics: Vec<Box<str>> = subscriber
            .topics
            .iter()
            .map(|t| t.as_str().into())
            .collect();
        let id = self.subscribers.insert(Subscriber {
            name: subscriber.name.as_str().into(),
            series: self.series.assign(&subscriber.name),
            frame_bytes: FrameBytes::choose(subscriber.frame_bytes_max, &subscriber.address),
            address: subscriber.address,
            topics: topics.clone(),
            tenure: Tenure::Static,
            flow: Flow::default(),
        });
        self.routes.insert(&topics, id);
    }

    /// Takes in one datagram. What became of its events is added to `tally`.
    ///
    /// # Errors
    ///
    /// Why the whole frame was dropped; nothing of it is in `tally` then.
    #[inline]
    pub fn handle_datagram(
        &mut self,
        arrival: Arrival<'_>,
        datagram: &[u8],
        tally: &mut EventTally,
    ) -> Result<(), FrameDrop> {
        let frame = self
            .decoder
            .decode(datagram)
            .map_err(|_| FrameDrop::Malformed)?;
        let events = frame.events().len();
        let rights = match arrival.source {
            Source::Ip(from) if self.trusted == Some(from.ip()) => Rights::All,
            source => {
                let rights = self.access.publish.rights(source);
                if let (Rights::All, Source::Ip(from)) = (rights, source) {
                    self.trusted = Some(from.ip());
                }
                rights
            }
        };
        if events > 0 && matches!(rights, Rights::Nothing) {
            return Err(FrameDrop::NotAllowed);
        }
        let stamp = frame.stamp();
        let hops = stamp.as_ref().map_or(0, |stamp| stamp.hops);
        if hops >= limits::HOPS_MAX {
            return Err(FrameDrop::Hops);
        }
        if let Some(stamp) = &stamp {
            let missed = self.publishers.observe(stamp, events as u64);
            tally.lost += missed.lost;
            tally.sender_dropped += missed.sender_dropped;
        }
        let mut intake = Intake {
            access: &self.access,
            subscribers: &self.subscribers,
            routes: &mut self.routes,
            fanout: &mut self.fanout,
            tally,
        };
        intake.take_frame(&frame, rights, hops + 1, arrival.unix_nano);
        if let Some(control) = frame.control() {
            self.controls.push(PendingControl {
                listener: arrival.listener,
                from: arrival.source.to_address(),
                datagram_bytes: datagram.len(),
                sender: stamp.map_or(0, |stamp| stamp.sender),
                control: control.clone(),
            });
        }
        Ok(())
    }

    /// Whether so much waits to be sent that it should be before the next datagram is handled.
    #[must_use]
    #[inline]
    pub fn is_full(&self) -> bool {
        self.fanout.bytes() >= limits::PENDING_BYTES_MAX
    }

    /// Fills `copies` with the next ones to send, up to `copies_max`, stamped in this order.
    /// None is left where it stays empty.
    pub fn poll_copies(&mut self, copies: &mut Vec<FrameCopy>, copies_max: usize) {
        copies.clear();
        while let Some(frame) = self.fanout.frame(self.cursor.frame) {
            let Some(set) = frame.set().and_then(|set| self.routes.set(set)) else {
                self.cursor = CopyCursor {
                    frame: self.cursor.frame + 1,
                    member: 0,
                };
                continue;
            };
            for id in set.members.iter().skip(self.cursor.member) {
                if copies.len() == copies_max {
                    return;
                }
                self.cursor.member += 1;
                let Some(subscriber) = self.subscribers.get_mut(*id) else {
                    continue;
                };
                let stamp = subscriber.flow.stamp(self.id, frame.events(), frame.hops());
                let stamp = StampBytes::new(&stamp);
                let bytes = stamp.as_slice().len() + frame.body().len();
                copies.push(FrameCopy {
                    subscriber: *id,
                    series: subscriber.series,
                    events: frame.events(),
                    is_sendable: bytes <= set.frame_bytes.max as usize,
                    stamp,
                    frame: self.cursor.frame,
                });
            }
            self.cursor = CopyCursor {
                frame: self.cursor.frame + 1,
                member: 0,
            };
        }
    }

    /// The events of a copy: what follows its stamp.
    #[must_use]
    #[inline]
    pub fn body(&self, copy: &FrameCopy) -> &[u8] {
        self.fanout
            .frame(copy.frame)
            .map_or(&[], |frame| frame.body())
    }

    /// Notes that a copy was dropped, for the subscriber's later stamps.
    pub fn handle_dropped(&mut self, copy: &FrameCopy) {
        if let Some(subscriber) = self.subscribers.get_mut(copy.subscriber) {
            subscriber.flow.drop(copy.events);
        }
    }

    /// All copies have been taken: the frames' memory may be used again.
    pub fn end_frames(&mut self) {
        self.fanout.clear();
        self.cursor = CopyCursor::default();
        self.routes.end_turn();
    }

    /// Acts on the turn's control messages. What became of them is added to `events`.
    pub fn handle_controls(&mut self, now: Duration, events: &mut Vec<LeaseEvent>) {
        let mut controls = std::mem::take(&mut self.controls);
        for pending in controls.drain(..) {
            let (event, answer) = self.handle_control(now, &pending);
            events.extend(event);
            self.answers.extend(answer.map(|frame| Answer {
                listener: pending.listener,
                to: pending.from,
                datagram: frame.encode_to_vec(),
            }));
        }
        self.controls = controls;
    }

    fn handle_control(
        &mut self,
        now: Duration,
        pending: &PendingControl,
    ) -> (Option<LeaseEvent>, Option<v1::Frame>) {
        if matches!(&pending.from, Address::Unix(path) if path.is_empty()) {
            return (None, None); // Nowhere to answer to.
        }
        let request = Request {
            from: &pending.from,
            bytes: pending.datagram_bytes,
        };
        let random = &mut self.random;
        self.leases.rotate_key(now, random);
        let mut tables = Tables {
            subscribers: &mut self.subscribers,
            routes: &mut self.routes,
            series: &mut self.series,
            access: &self.access,
        };
        let (event, answer): Answered = match &pending.control {
            Control::Subscribe(subscribe) => {
                self.leases.subscribe(now, &request, subscribe, &mut tables)
            }
            Control::Unsubscribe(unsubscribe) => {
                self.leases
                    .unsubscribe(now, &request, unsubscribe, &mut tables)
            }
            Control::Ping(ping) => return (None, self.pong(now, &request, pending.sender, ping)),
            // What only a bus sends: of no use here, and answered it could go round for ever.
            Control::Challenge(_) | Control::Lease(_) | Control::Refusal(_) | Control::Pong(_) => {
                return (None, None);
            }
        };
        (Some(event), answer)
    }

    fn pong(
        &mut self,
        now: Duration,
        request: &Request<'_>,
        sender: u64,
        ping: &v1::Ping,
    ) -> Option<v1::Frame> {
        let flow = self.publishers.get(sender).unwrap_or_default();
        let pong = Control::Pong(v1::Pong {
            nonce: ping.nonce,
            bus: self.id,
            received: flow.received,
            lost: flow.lost,
        });
        let frame = v1::Frame {
            control: Some(pong),
            ..v1::Frame::default()
        };
        let is_earned = frame.encoded_len() <= request.bytes;
        (is_earned && self.leases.permit_answer(now, request.from)).then_some(frame)
    }

    /// Ends the leases whose time is over.
    pub fn handle_timeout(&mut self, now: Duration, events: &mut Vec<LeaseEvent>) {
        let mut tables = Tables {
            subscribers: &mut self.subscribers,
            routes: &mut self.routes,
            series: &mut self.series,
            access: &self.access,
        };
        while let Some(event) = self.leases.expire(now, &mut tables) {
            events.push(event);
        }
    }

    /// When [`Bus::handle_timeout`] is to be called next, if nothing else happens.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Duration> {
        self.leases.next_end()
    }

    /// The next answer to send.
    pub fn poll_answer(&mut self) -> Option<Answer> {
        self.answers.pop_front()
    }

    /// The bus's own sender id, new at each start.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Who gets events now.
    #[must_use]
    pub fn subscribers(&self) -> &Subscribers {
        &self.subscribers
    }

    /// Under which names subscribers are counted, by [`SeriesId::index`].
    #[must_use]
    pub fn series_names(&self) -> &[Arc<str>] {
        self.series.names()
    }
}

fn nonzero(random: &mut Random) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = random();
    u64::from_le_bytes([a, b, c, d, e, f, g, h]).max(1)
}

#[cfg(test)]
mod tests;
