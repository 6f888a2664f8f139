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
    fn append(&mut self, event: &[u8]) {
        self.body.extend_from_slice(event);
        self.events += 1;
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
    /// Copies one event, tag and length included, for one set. A set's events stay in order.
    #[inline]
    pub fn push(&mut self, set: SetId, frame_bytes: FrameBytes, event: &[u8], hops: u32) {
        self.bytes += event.len();
        let body_max = (frame_bytes.target as usize).saturating_sub(STAMP_BYTES_MAX);
        let open = self.open.get(set.index()).copied().flatten();
        if let Some(frame) = open.and_then(|index| self.frames.get_mut(index as usize))
            && frame.body.len() + event.len() <= body_max
        {
            frame.append(event);
            frame.hops = frame.hops.max(hops);
            return;
        }
        self.begin(set, event, hops);
    }

    fn begin(&mut self, set: SetId, event: &[u8], hops: u32) {
        if self.used == self.frames.len() {
            self.frames.push(SetFrame::default());
        }
        if let Some(frame) = self.frames.get_mut(self.used) {
            frame.set = Some(set);
            frame.hops = hops;
            frame.append(event);
        }
        if self.open.len() <= set.index() {
            self.open.resize(set.index() + 1, None);
        }
        if let Some(open) = self.open.get_mut(set.index()) {
            *open = u32::try_from(self.used).ok();
        }
        self.used += 1;
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
