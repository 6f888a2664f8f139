//! Frames under construction: each event is copied once for a subscriber set, and then goes
//! from there to every member behind a stamp of its own.
//!
//! Owns the frames' bytes. They are filled while a receive batch is read, walked by copies when
//! it is used up, and cleared; their memory is used again.

use hailmary_proto::decode::EventRun;

use super::limits::RETAINED_BYTES_MAX;
use super::routes::{Destination, SetId};

/// Events for one subscriber set that travel together.
#[derive(Debug, Default)]
pub struct SetFrame {
    set: Option<SetId>,
    body: Vec<u8>,
    events: u32,
    /// The most buses that any of its events had passed.
    hops: u32,
}

impl SetFrame {
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

    #[inline]
    fn append(&mut self, bytes: &[u8], events: usize, hops: u32) {
        self.body.extend_from_slice(bytes);
        // A datagram has some tens of thousands at most.
        self.events += u32::try_from(events).unwrap_or(u32::MAX);
        self.hops = self.hops.max(hops);
    }
}

/// The frames of one turn.
#[derive(Debug, Default)]
pub struct Fanout {
    /// The first `used` are this turn's, in the order they were begun; the others are spare.
    frames: Vec<SetFrame>,
    used: usize,
    /// The frame that a set's events go into, by [`SetId::index`].
    open: Vec<Option<u32>>,
    bytes: usize,
}

impl Fanout {
    /// Copies a run for one set, which will have passed so many buses. A set's events stay in
    /// order.
    #[inline(always)]
    pub fn push(&mut self, to: Destination, run: EventRun<'_>, hops: u32) {
        let bytes = run.bytes();
        self.bytes += bytes.len();
        match self.open_frame(to.id) {
            Some(frame) if frame.body.len() + bytes.len() <= to.body_bytes_max => {
                frame.append(bytes, run.len(), hops);
            }
            _ => self.push_parts(to, run, hops),
        }
    }

    /// Copies a run into as many frames as it takes. An event that fits into none has one alone.
    #[cold]
    fn push_parts(&mut self, to: Destination, run: EventRun<'_>, hops: u32) {
        let body_max = to.body_bytes_max;
        let mut rest = run;
        if let Some(frame) = self.open_frame(to.id) {
            let (first, others) = run.split_at_bytes(body_max.saturating_sub(frame.body.len()));
            frame.append(first.bytes(), first.len(), hops);
            rest = others;
        }
        while !rest.is_empty() {
            let (fitting, others) = rest.split_at_bytes(body_max);
            let (part, others) = match fitting.is_empty() {
                true => rest.split_at(1),
                false => (fitting, others),
            };
            self.begin(to.id).append(part.bytes(), part.len(), hops);
            rest = others;
        }
    }

    #[inline]
    fn open_frame(&mut self, set: SetId) -> Option<&mut SetFrame> {
        let index = self.open.get(set.index()).copied().flatten()?;
        self.frames.get_mut(index as usize)
    }

    /// Begins another frame for a set.
    fn begin(&mut self, set: SetId) -> &mut SetFrame {
        if self.used == self.frames.len() {
            self.frames.push(SetFrame::default());
        }
        if self.open.len() <= set.index() {
            self.open.resize(set.index() + 1, None);
        }
        if let Some(open) = self.open.get_mut(set.index()) {
            *open = u32::try_from(self.used).ok();
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
                *open = None;
            }
            frame.body.clear();
            frame.events = 0;
            frame.hops = 0;
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
