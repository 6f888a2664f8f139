//! Frames under construction: each event is copied once for a subscriber set, and then goes
//! from there to every member behind a stamp of its own.
//!
//! Owns the frames' bytes. They are filled while a receive batch is read, walked by copies when
//! it is used up, and cleared; their memory is used again.

use hailmary_proto::decode::EventRun;

use super::CopyDrop;
use super::limits::RETAINED_BYTES_MAX;
use super::routes::{Destination, SetId};
use super::sample::Weight;

/// Events for one subscriber set that travel together.
#[derive(Debug)]
pub struct SetFrame {
    set: Option<SetId>,
    body: Vec<u8>,
    events: u32,
    /// The most buses that any of its events had passed.
    hops: u32,
    /// How many events each of its own stands for.
    weight: Weight,
}

impl SetFrame {
    const EMPTY: SetFrame = SetFrame {
        set: None,
        body: Vec::new(),
        events: 0,
        hops: 0,
        weight: Weight::ONE,
    };

    /// Whose frame it is.
    #[must_use]
    pub fn set(&self) -> Option<SetId> {
        self.set
    }

    /// Its encoded events.
    #[must_use]
    pub fn body(&self) -> &[u8] {
        &self.body
    }

    /// How many events it has.
    #[must_use]
    pub fn events(&self) -> u32 {
        self.events
    }

    /// The most buses that any of its events had passed.
    #[must_use]
    pub fn hops(&self) -> u32 {
        self.hops
    }

    /// How many events each of its own stands for.
    #[must_use]
    pub fn weight(&self) -> Weight {
        self.weight
    }

    #[inline]
    fn append(&mut self, bytes: &[u8], events: usize, hops: u32) {
        self.body.extend_from_slice(bytes);
        // A datagram has some tens of thousands at most.
        self.events += u32::try_from(events).unwrap_or(u32::MAX);
        self.hops = self.hops.max(hops);
    }
}

/// What goes into the stamps of an event's copies.
#[derive(Clone, Copy, Debug)]
pub struct Passage {
    /// Buses that it will have passed.
    pub hops: u32,
    /// How many events it stands for.
    pub weight: Weight,
}

/// Events that are not sent to a set, by a decision of the bus.
#[derive(Clone, Copy, Debug)]
pub struct SetDrop {
    /// Who does not get them.
    pub set: SetId,
    /// Why not.
    pub reason: CopyDrop,
    /// How many they are.
    pub events: u32,
}

/// Where a set's events go in this turn.
#[derive(Clone, Copy, Debug, Default)]
struct Open {
    /// As an index of `frames`.
    frame: Option<u32>,
    /// As indices of `drops`, by [`CopyDrop`].
    drops: [Option<u32>; CopyDrop::DECIDED],
}

/// The frames of one turn.
#[derive(Debug, Default)]
pub struct Fanout {
    /// The first `used` are this turn's, in the order they were begun; the others are spare.
    frames: Vec<SetFrame>,
    used: usize,
    /// This turn's drops, one for each set and reason.
    drops: Vec<SetDrop>,
    /// By [`SetId::index`].
    open: Vec<Open>,
    bytes: usize,
}

impl Fanout {
    /// Copies a run for one set. A set's events stay in order.
    #[inline(always)]
    pub fn push(&mut self, to: Destination, run: EventRun<'_>, passage: Passage) {
        let bytes = run.bytes();
        self.bytes += bytes.len();
        match self.open_frame(to.id) {
            Some(frame)
                if frame.body.len() + bytes.len() <= to.body_bytes_max
                    && frame.weight == passage.weight =>
            {
                frame.append(bytes, run.len(), passage.hops);
            }
            _ => self.push_parts(to, run, passage),
        }
    }

    /// Copies a run into as many frames as it takes. An event that fits into none has one alone.
    #[cold]
    fn push_parts(&mut self, to: Destination, run: EventRun<'_>, passage: Passage) {
        let Passage { hops, weight } = passage;
        let body_max = to.body_bytes_max;
        let mut rest = run;
        if let Some(frame) = self.open_frame(to.id)
            && frame.weight == weight
        {
            let (first, others) = run.split_at_bytes(body_max.saturating_sub(frame.body.len()));
            // Of a run that is not in it the frame has not the hops either.
            if !first.is_empty() {
                frame.append(first.bytes(), first.len(), hops);
            }
            rest = others;
        }
        while !rest.is_empty() {
            let (fitting, others) = rest.split_at_bytes(body_max);
            let (part, others) = match fitting.is_empty() {
                true => rest.split_at(1),
                false => (fitting, others),
            };
            let index = u32::try_from(self.used).ok();
            self.open(to.id).frame = index;
            let frame = self.begin(to.id);
            frame.weight = weight;
            frame.append(part.bytes(), part.len(), hops);
            rest = others;
        }
    }

    /// Notes that an event is not sent to a set.
    pub fn push_drop(&mut self, set: SetId, reason: CopyDrop) {
        let next = self.drops.len();
        let Some(open) = self.open(set).drops.get_mut(reason as usize) else {
            return;
        };
        // One for each set and reason, and so far under 32 bits.
        let index = *open.get_or_insert(u32::try_from(next).unwrap_or(u32::MAX));
        if index as usize == next {
            self.drops.push(SetDrop {
                set,
                reason,
                events: 0,
            });
        }
        if let Some(drop) = self.drops.get_mut(index as usize) {
            drop.events += 1;
        }
    }

    /// This turn's drops.
    #[must_use]
    pub fn drops(&self) -> &[SetDrop] {
        &self.drops
    }

    /// All of this turn's drops have been told.
    pub fn clear_drops(&mut self) {
        for drop in self.drops.drain(..) {
            if let Some(open) = self.open.get_mut(drop.set.index()) {
                open.drops = Default::default();
            }
        }
    }

    #[inline]
    fn open_frame(&mut self, set: SetId) -> Option<&mut SetFrame> {
        let index = self.open.get(set.index())?.frame?;
        self.frames.get_mut(index as usize)
    }

    fn open(&mut self, set: SetId) -> &mut Open {
        if self.open.len() <= set.index() {
            self.open.resize(set.index() + 1, Open::default());
        }
        #[expect(clippy::indexing_slicing, reason = "made above where there was none")]
        &mut self.open[set.index()]
    }

    /// Begins another frame for a set.
    fn begin(&mut self, set: SetId) -> &mut SetFrame {
        if self.used == self.frames.len() {
            self.frames.push(SetFrame::EMPTY);
        }
        self.used += 1;
        #[expect(clippy::indexing_slicing, reason = "made above where there was none")]
        let frame = &mut self.frames[self.used - 1];
        frame.set = Some(set);
        frame
    }

    /// One of this turn's frames.
    #[must_use]
    #[inline]
    pub fn frame(&self, index: usize) -> Option<&SetFrame> {
        self.frames.get(..self.used)?.get(index)
    }

    /// Bytes copied in this turn.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Begins the next turn. Memory past [`RETAINED_BYTES_MAX`] is given back.
    pub fn clear(&mut self) {
        let mut retained = 0;
        for frame in self.frames.iter_mut().take(self.used) {
            if let Some(open) = frame.set.and_then(|set| self.open.get_mut(set.index())) {
                open.frame = None;
            }
            frame.body.clear();
            *frame = SetFrame {
                body: std::mem::take(&mut frame.body),
                ..SetFrame::EMPTY
            };
        }
        if self.bytes > 0 {
            self.frames.retain(|frame| {
                retained += frame.body.capacity();
                retained <= RETAINED_BYTES_MAX
            });
        }
        self.used = 0;
        self.bytes = 0;
    }
}
