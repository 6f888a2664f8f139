//! Frames under construction: each event is copied once for a subscriber set, and then goes
//! from there to every member behind a stamp of its own.
//!
//! Owns the frames' bytes. They are filled while a receive batch is read, walked by copies when
//! it is used up, and cleared; their memory is used again.

use hailmary_proto::write::STAMP_BYTES_MAX;

use super::limits::RETAINED_BYTES_MAX;
use super::routes::SetId;
use super::subscribers::FrameBytes;

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
    fn append(&mut self, bytes: &[u8], events: u32, hops: u32) {
        self.body.extend_from_slice(bytes);
        self.events += events;
        self.hops = self.hops.max(hops);
    }
}

/// Events that lie one behind the other in a datagram and go to the same sets.
#[derive(Clone, Copy, Debug)]
pub struct Run<'a> {
    /// Their bytes, tags and lengths included.
    pub bytes: &'a [u8],
    /// How many they are.
    pub events: u32,
    /// The buses that they will have passed.
    pub hops: u32,
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
    /// Copies a run for one set, whole where it fits, else event by event, by their `lengths`. A
    /// set's events stay in order.
    #[inline]
    pub fn push(
        &mut self,
        set: SetId,
        frame_bytes: FrameBytes,
        run: Run<'_>,
        lengths: impl Iterator<Item = usize>,
    ) {
        self.bytes += run.bytes.len();
        let body_max = (frame_bytes.target as usize).saturating_sub(STAMP_BYTES_MAX);
        if run.bytes.len() <= self.room(set, body_max) {
            if let Some(frame) = self.open_frame(set) {
                frame.append(run.bytes, run.events, run.hops);
            }
        } else if run.events == 1 || run.bytes.len() <= body_max {
            self.begin(set).append(run.bytes, run.events, run.hops);
        } else {
            self.push_each(set, body_max, run, lengths);
        }
    }

    /// As many events as fit into each frame. One that fits into none has a frame alone.
    #[cold]
    fn push_each(
        &mut self,
        set: SetId,
        body_max: usize,
        run: Run<'_>,
        lengths: impl Iterator<Item = usize>,
    ) {
        let mut rest = run.bytes;
        for length in lengths {
            let Some((event, after)) = rest.split_at_checked(length) else {
                return;
            };
            let has_room = length <= self.room(set, body_max);
            let frame = match self.open_frame(set).filter(|_| has_room) {
                Some(frame) => frame,
                None => self.begin(set),
            };
            frame.append(event, 1, run.hops);
            rest = after;
        }
    }

    /// Bytes that the set's open frame has left.
    #[inline]
    fn room(&mut self, set: SetId, body_max: usize) -> usize {
        self.open_frame(set)
            .map_or(0, |frame| body_max.saturating_sub(frame.body.len()))
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
