//! The way of events: from a datagram to the copies that are to be sent.
//!
//! Each data thread has a forwarder of its own. It reads the directory and changes nothing in it
//! but the subscribers' flows, on which all of them count.

use std::time::Duration;

use hailmary_proto::decode::Decoder;
use hailmary_proto::v1::Stamp;
use hailmary_proto::v1::frame::Control;
use hailmary_proto::write::{StampBytes, leading_sender};

use super::access::Rights;
use super::address::{Address, Peer, Source};
use super::directory::Directory;
use super::fanout::Passage;
use super::intake::{Intake, Switch};
use super::overload::{Level, Thinning};
use super::publishers::Publishers;
use super::sample::Weight;
use super::seen::TopicsSeen;
use super::series::SeriesId;
use super::subscribers::SubscriberId;
use super::tally::EventTally;
use super::{Arrival, CopyDrop, FrameDrop, limits};

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
    /// The subscriber's own stamp: the first bytes of the datagram, before [`Forwarder::body`].
    #[must_use]
    pub fn stamp(&self) -> &[u8] {
        self.stamp.as_slice()
    }

    /// What brings each subscriber's copies together when copies are sorted by it, and keeps
    /// them in their order.
    #[must_use]
    pub fn by_subscriber(&self) -> (usize, usize) {
        (self.subscriber.index(), self.frame)
    }
}

/// A control message, for the registrar.
#[derive(Debug)]
pub struct ControlMessage {
    /// The listener that it came to.
    pub listener: usize,
    /// Where it came from.
    pub from: Address,
    /// Who sent it.
    pub peer: Peer,
    /// Bytes of its datagram.
    pub datagram_bytes: usize,
    /// The frame's stamp, if it has one.
    pub stamp: Option<Stamp>,
    /// The message.
    pub control: Control,
}

/// Where copies are being taken from: a frame, and a member of its set.
#[derive(Clone, Copy, Debug, Default)]
struct CopyCursor {
    frame: usize,
    member: usize,
}

/// Routes and copies the events of one data thread.
#[derive(Debug)]
pub struct Forwarder {
    /// The bus's sender id.
    bus: u64,
    trusted: Trusted,
    decoder: Decoder,
    switch: Switch,
    cursor: CopyCursor,
    controls: Vec<ControlMessage>,
}

impl Forwarder {
    /// Of the bus with this sender id. `seed` keeps strangers from choosing topics that collide.
    #[must_use]
    pub fn new(bus: u64, seed: u64) -> Self {
        Self {
            bus,
            trusted: Trusted::default(),
            decoder: Decoder::new(),
            switch: Switch::new(seed),
            cursor: CopyCursor::default(),
            controls: Vec::new(),
        }
    }

    /// Begins a turn with the directory as it is now.
    #[inline]
    pub fn begin_turn(&mut self, directory: &Directory) {
        self.trusted.follow(directory);
        self.switch.routes.follow(directory);
    }

    /// From now on so much is let go. Only between turns.
    pub fn set_level(&mut self, level: Level) {
        self.switch.thinning = Thinning::at(level);
        self.switch.routes.thin(level.reach());
    }

    /// Takes in one datagram. What became of its events is added to `tally`, what its stamp
    /// tells to `publishers`.
    ///
    /// # Errors
    ///
    /// Why the whole frame was dropped; nothing of it is in `tally` then.
    #[inline]
    pub fn handle_datagram(
        &mut self,
        directory: &Directory,
        publishers: &mut Publishers,
        arrival: Arrival<'_>,
        datagram: &[u8],
        tally: &mut EventTally,
    ) -> Result<(), FrameDrop> {
        let frame = self
            .decoder
            .decode(datagram)
            .map_err(|_| FrameDrop::Malformed)?;
        let events = frame.events().len();
        let rights = match self.trusted.is(&arrival.source) {
            true => Rights::All,
            false => self.trusted.rights(directory, arrival.source),
        };
        if events > 0 && matches!(rights, Rights::Nothing) {
            return Err(FrameDrop::NotAllowed);
        }
        let stamp = frame.stamp();
        let hops = stamp.map_or(0, |stamp| stamp.hops);
        if hops >= limits::HOPS_MAX {
            return Err(FrameDrop::Hops);
        }
        // Without events it may have overtaken some: whoever acts on the message looks at it.
        if let Some(stamp) = stamp
            && events > 0
        {
            tally.add_flow(publishers.observe(arrival.now, stamp, events as u64));
        }
        self.switch.seen.set_now(arrival.now);
        let mut intake = Intake {
            switch: &mut self.switch,
            directory,
            tally,
            arrival: &arrival,
        };
        let passage = Passage {
            hops: hops + 1,
            weight: stamp.map_or(Weight::ONE, |stamp| Weight::of_stamp(stamp.weight)),
        };
        intake.take_frame(&frame, rights, passage);
        if let Some(control) = frame.control() {
            self.controls.push(ControlMessage {
                listener: arrival.listener,
                from: arrival.source.to_address(),
                peer: arrival.source.peer(),
                datagram_bytes: datagram.len(),
                stamp: stamp.copied(),
                control: control.clone(),
            });
        }
        Ok(())
    }

    /// Whether so much waits to be sent that it should be before the next datagram is handled.
    #[must_use]
    #[inline]
    pub fn is_full(&self) -> bool {
        self.switch.fanout.bytes() >= limits::PENDING_BYTES_MAX
    }

    /// Fills `copies` with the next ones to send, up to `copies_max`, stamped in this order.
    /// None is left where it stays empty.
    pub fn poll_copies(
        &mut self,
        directory: &Directory,
        copies: &mut Vec<FrameCopy>,
        copies_max: usize,
    ) {
        copies.clear();
        while let Some(frame) = self.switch.fanout.frame(self.cursor.frame) {
            let Some(set) = frame.set().and_then(|set| self.switch.routes.set(set)) else {
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
                let Some(subscriber) = directory.subscribers().get(*id) else {
                    continue;
                };
                let flow = &subscriber.flow;
                let stamp = flow.stamp(self.bus, frame.events(), frame.hops(), frame.weight());
                let stamp = StampBytes::new(&stamp);
                let bytes = stamp.as_slice().len() + frame.body().len();
                copies.push(FrameCopy {
                    subscriber: *id,
                    series: subscriber.series,
                    events: frame.events(),
                    is_sendable: bytes <= subscriber.frame_bytes.max as usize,
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

    /// Tells `told` of the copies that are not made, by a decision of the bus: where they are
    /// counted, why, and of how many events. The subscribers' flows count them, so that the
    /// stamps of all copies polled from here on tell of them.
    #[inline]
    pub fn take_drops(
        &mut self,
        directory: &Directory,
        mut told: impl FnMut(SeriesId, CopyDrop, u32),
    ) {
        if self.switch.fanout.drops().is_empty() {
            return;
        }
        for drop in self.switch.fanout.drops() {
            let set = self.switch.routes.set(drop.set);
            let members = set.map_or(&[][..], |set| &set.members);
            let members = members
                .iter()
                .filter_map(|id| directory.subscribers().get(*id));
            for subscriber in members {
                subscriber.flow.skip(drop.events);
                told(subscriber.series, drop.reason, drop.events);
            }
        }
        self.switch.fanout.clear_drops();
    }

    /// The events of a copy: what follows its stamp.
    #[must_use]
    #[inline]
    pub fn body(&self, copy: &FrameCopy) -> &[u8] {
        self.switch
            .fanout
            .frame(copy.frame)
            .map_or(&[], |frame| frame.body())
    }

    /// Whether a datagram that begins so is a copy of this bus's: nobody off the copies' way knows
    /// the 64 random bits of its sender id.
    #[must_use]
    pub fn has_stamped(&self, datagram: &[u8]) -> bool {
        leading_sender(datagram) == Some(self.bus)
    }

    /// Notes that a copy was dropped, for the subscriber's later stamps.
    pub fn handle_dropped(&self, directory: &Directory, copy: &FrameCopy) {
        if let Some(subscriber) = directory.subscribers().get(copy.subscriber) {
            subscriber.flow.drop(copy.events);
        }
    }

    /// All copies have been taken: the frames' memory may be used again.
    pub fn end_frames(&mut self) {
        self.switch.fanout.clear_drops();
        self.switch.fanout.clear();
        self.cursor = CopyCursor::default();
        self.switch.routes.end_turn();
    }

    /// The topics of all events handled, as of this time, since they were last cleared. Walks
    /// all routes.
    pub fn topics_seen(&mut self, now: Duration) -> &mut TopicsSeen {
        self.switch.seen.set_now(now);
        self.switch.routes.hand_over(&mut self.switch.seen);
        &mut self.switch.seen
    }

    /// Takes the turn's control messages out.
    pub fn controls(&mut self) -> impl Iterator<Item = ControlMessage> {
        self.controls.drain(..)
    }
}

/// The peer last seen that may publish anything: most frames come from it too.
#[derive(Debug, Default)]
struct Trusted {
    peer: Option<Peer>,
    /// The directory's: with other rules it may be another's turn.
    generation: u64,
}

impl Trusted {
    #[inline]
    fn follow(&mut self, directory: &Directory) {
        if self.generation != directory.generation() {
            self.generation = directory.generation();
            self.peer = None;
        }
    }

    #[inline(always)]
    fn is(&self, source: &Source<'_>) -> bool {
        match (&self.peer, source) {
            (Some(Peer::Ip(trusted)), Source::Ip(from)) => from.ip() == *trusted,
            (Some(Peer::Unix(trusted)), Source::Unix { credentials, .. }) => credentials == trusted,
            _ => false,
        }
    }

    /// What a source may publish, which is trusted from now on if that is anything.
    fn rights<'a>(&mut self, directory: &'a Directory, source: Source<'_>) -> Rights<'a> {
        let peer = source.peer();
        let rights = directory.access().publish.rights(peer);
        if let Rights::All = rights {
            self.peer = Some(peer);
        }
        rights_beside_rules(rights, directory, source)
    }
}

/// What a source may publish that has these rights by the rules. They do not speak of the bus
/// itself, which is known by its whole address: others have its IP address too.
fn rights_beside_rules<'a>(
    rights: Rights<'a>,
    directory: &Directory,
    source: Source<'_>,
) -> Rights<'a> {
    match rights {
        Rights::Nothing | Rights::ByTopic(..) if directory.is_own(source) => Rights::All,
        rights => rights,
    }
}

#[cfg(test)]
mod tests {
    use hailmary_proto::write::STAMP_HEAD_BYTES;

    use super::*;

    #[test]
    fn a_copy_of_this_bus_is_known_by_its_head_and_nothing_else_is() {
        let forwarder = Forwarder::new(0x1234_5678_9abc_def0, 1);
        let copy = |sender| {
            StampBytes::new(&Stamp {
                sender,
                sequence: 300,
                hops: 1,
                ..Stamp::default()
            })
        };
        let own = copy(forwarder.bus);
        let head = &own.as_slice()[..STAMP_HEAD_BYTES];
        assert!(forwarder.has_stamped(head));
        assert!(forwarder.has_stamped(own.as_slice()));
        for length in 0..head.len() {
            assert!(!forwarder.has_stamped(&head[..length]), "{length}");
        }
        // The second byte is the stamp's length, which differs from copy to copy.
        for place in (0..head.len()).filter(|place| *place != 1) {
            for bit in 0..8 {
                let mut other = head.to_vec();
                other[place] ^= 1 << bit;
                assert!(!forwarder.has_stamped(&other), "{other:?}");
            }
        }
        assert!(!forwarder.has_stamped(copy(0).as_slice()));
        assert!(!forwarder.has_stamped(&[0; STAMP_HEAD_BYTES]));
        assert!(!forwarder.has_stamped(&[0xff; 100]));
    }
}
