//! Counting: what became of every frame, event and copy, each in one place.
//!
//! The data thread counts in plain integers of its own ([`Ledger`]) and hands them over to the
//! [`Mailbox`] when a turn is over, never in the middle of one: so whoever takes the mail sees
//! books that balance. Taking it exchanges two pointers, so it never holds up the data thread.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hailmary_proto::flow::FlowCounts;
use hailmary_proto::v1::refusal::Reason;

use crate::bus::leases::LeaseEvent;
use crate::bus::series::SeriesId;
use crate::bus::subscribers::Reported;
use crate::bus::tally::{EventTally, Histogram};
use crate::bus::{CopyDrop, FrameDrop};

/// Frames taken from one listener.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ListenerCounts {
    /// Datagrams.
    pub frames: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// What became of one series' copies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SeriesCounts {
    /// Events handed to the kernel.
    pub events: u64,
    /// Frames handed to the kernel.
    pub frames: u64,
    /// Bytes handed to the kernel.
    pub bytes: u64,
    /// Copies not sent, by [`CopyDrop`].
    pub dropped: [u64; CopyDrop::ALL.len()],
    /// What the subscribers reported.
    pub reported: Reported,
}

/// The life of leases.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LeaseCounts {
    /// Leases granted, renewals not counted.
    pub granted: u64,
    /// Leases that ended without being given back.
    pub expired: u64,
    /// Leases that ended because their holders may subscribe to nothing any more.
    pub revoked: u64,
    /// Addresses asked to prove themselves.
    pub challenges: u64,
    /// Requests not answered at all. See [`LeaseEvent::Unanswered`].
    pub unanswered: u64,
    /// Refusals, by the number of their [`Reason`].
    pub refusals: [u64; LeaseCounts::REASONS],
}

impl LeaseCounts {
    /// Reasons of the wire, the unspecified one included.
    pub const REASONS: usize = Reason::UnknownLease as usize + 1;
}

/// Everything counted, since the start or since the last handing over.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    /// By listener: those that closed keep their place, and there are as many as have counted.
    pub listeners: Vec<ListenerCounts>,
    /// Whole frames not used, by [`FrameDrop`].
    pub dropped_frames: [u64; FrameDrop::ALL.len()],
    /// Events of the frames used.
    pub events: EventTally,
    /// By [`SeriesId::index`].
    pub series: Vec<SeriesCounts>,
    /// The life of leases.
    pub leases: LeaseCounts,
    /// From a frame's arrival in user space to its copies' hand-over to the kernel.
    pub forward_latency: Histogram,
}

impl Counts {
    fn new(listeners: usize) -> Self {
        Self {
            listeners: vec![ListenerCounts::default(); listeners],
            ..Self::default()
        }
    }

    /// Makes sure that there are counts for so many listeners.
    fn make_room_for(&mut self, listeners: usize) {
        if self.listeners.len() < listeners {
            self.listeners.resize(listeners, ListenerCounts::default());
        }
    }

    /// Adds what another has, series apart.
    fn add_totals(&mut self, other: &Counts) {
        self.make_room_for(other.listeners.len());
        for (sum, more) in self.listeners.iter_mut().zip(&other.listeners) {
            sum.frames += more.frames;
            sum.bytes += more.bytes;
        }
        add_each(&mut self.dropped_frames, &other.dropped_frames);
        self.events.add(&other.events);
        self.leases.granted += other.leases.granted;
        self.leases.expired += other.leases.expired;
        self.leases.revoked += other.leases.revoked;
        self.leases.challenges += other.leases.challenges;
        self.leases.unanswered += other.leases.unanswered;
        add_each(&mut self.leases.refusals, &other.leases.refusals);
        self.forward_latency.add(&other.forward_latency);
    }

    fn add_series(&mut self, id: usize, more: &SeriesCounts) {
        if self.series.len() <= id {
            self.series.resize(id + 1, SeriesCounts::default());
        }
        if let Some(sum) = self.series.get_mut(id) {
            sum.events += more.events;
            sum.frames += more.frames;
            sum.bytes += more.bytes;
            add_each(&mut sum.dropped, &more.dropped);
            sum.reported.lost += more.reported.lost;
            sum.reported.dropped += more.reported.dropped;
        }
    }

    /// Adds everything that another has.
    pub fn add(&mut self, other: &Counts) {
        self.add_totals(other);
        for (id, more) in other.series.iter().enumerate() {
            self.add_series(id, more);
        }
    }

    fn clear(&mut self) {
        self.listeners.fill(ListenerCounts::default());
        self.dropped_frames = Default::default();
        self.events.clear();
        self.series.fill(SeriesCounts::default());
        self.leases = LeaseCounts::default();
        self.forward_latency = Histogram::default();
    }
}

fn add_each(sums: &mut [u64], more: &[u64]) {
    for (sum, more) in sums.iter_mut().zip(more) {
        *sum += more;
    }
}

/// The data thread's books since the last handing over.
#[derive(Debug)]
pub struct Ledger {
    counts: Counts,
    /// Series with counts, so that handing over costs nothing for the others.
    touched: Vec<SeriesId>,
    is_empty: bool,
}

impl Ledger {
    /// Empty books.
    #[must_use]
    pub fn new(listeners: usize) -> Self {
        Self {
            counts: Counts::new(listeners),
            touched: Vec::new(),
            is_empty: true,
        }
    }

    /// So many datagrams were taken from a listener, with so many bytes together.
    pub fn count_frames(&mut self, listener: usize, frames: usize, bytes: usize) {
        if frames == 0 {
            return;
        }
        self.is_empty = false;
        self.counts.make_room_for(listener + 1);
        if let Some(counts) = self.counts.listeners.get_mut(listener) {
            counts.frames += frames as u64;
            counts.bytes += bytes as u64;
        }
    }

    /// Where the core tells what became of a frame's events.
    #[inline]
    pub fn events(&mut self) -> &mut EventTally {
        &mut self.counts.events
    }

    /// What is new of publishers' flows, though no frame came.
    pub fn count_flow(&mut self, news: FlowCounts) {
        if news != FlowCounts::default() {
            self.is_empty = false;
            self.counts.events.add_flow(news);
        }
    }

    /// A whole frame was not used.
    pub fn count_dropped_frame(&mut self, reason: FrameDrop) {
        if let Some(count) = self.counts.dropped_frames.get_mut(reason as usize) {
            *count += 1;
        }
    }

    /// A copy was handed to the kernel.
    #[inline]
    pub fn count_sent(&mut self, series: SeriesId, events: u32, bytes: usize) {
        let counts = self.series(series);
        counts.events += u64::from(events);
        counts.frames += 1;
        counts.bytes += bytes as u64;
    }

    /// A copy was not sent.
    pub fn count_dropped_copy(&mut self, series: SeriesId, events: u32, reason: CopyDrop) {
        if let Some(count) = self.series(series).dropped.get_mut(reason as usize) {
            *count += u64::from(events);
        }
    }

    /// Frames of one batch were handed over so long after they arrived.
    pub fn count_forwarded(&mut self, frames: u64, ns: u64) {
        self.counts.forward_latency.record(ns, frames);
    }

    /// Something happened to a lease.
    pub fn count_lease(&mut self, event: &LeaseEvent) {
        self.is_empty = false;
        let leases = &mut self.counts.leases;
        match event {
            LeaseEvent::Granted(_) => leases.granted += 1,
            LeaseEvent::Expired(_) => leases.expired += 1,
            LeaseEvent::Revoked(_) => leases.revoked += 1,
            LeaseEvent::Challenged => leases.challenges += 1,
            LeaseEvent::Unanswered => leases.unanswered += 1,
            LeaseEvent::Released(_) => {}
            LeaseEvent::Refused(reason) => {
                if let Some(count) = leases.refusals.get_mut(*reason as usize) {
                    *count += 1;
                }
            }
            LeaseEvent::Renewed { series, news, .. } => {
                let counts = self.series(*series);
                counts.reported.lost += news.lost;
                counts.reported.dropped += news.dropped;
            }
        }
    }

    /// Hands everything counted over. Only between turns, when every copy has its end.
    pub fn hand_over(&mut self, mailbox: &Mailbox) {
        if self.is_empty {
            return;
        }
        let mut mail = mailbox.lock();
        mail.add_totals(&self.counts);
        for id in self.touched.drain(..) {
            if let Some(counts) = self.counts.series.get_mut(id.index()) {
                mail.add_series(id.index(), counts);
                *counts = SeriesCounts::default();
            }
        }
        drop(mail);
        let series = std::mem::take(&mut self.counts.series);
        self.counts.clear();
        self.counts.series = series;
        self.is_empty = true;
    }

    #[inline]
    fn series(&mut self, id: SeriesId) -> &mut SeriesCounts {
        let index = id.index();
        if self.counts.series.len() <= index {
            self.counts
                .series
                .resize(index + 1, SeriesCounts::default());
        }
        #[expect(clippy::indexing_slicing, reason = "made long enough above")]
        let counts = &mut self.counts.series[index];
        if *counts == SeriesCounts::default() {
            self.touched.push(id);
        }
        counts
    }
}

/// What has been counted and not been taken yet.
#[derive(Debug)]
pub struct Mailbox(Mutex<Box<Counts>>);

impl Mailbox {
    /// An empty mailbox for books of this size.
    #[must_use]
    pub fn new(listeners: usize) -> Arc<Self> {
        Arc::new(Self(Mutex::new(Box::new(Counts::new(listeners)))))
    }

    /// Adds what has come since the last time to `totals`.
    pub fn take_into(&self, totals: &mut Totals) {
        totals.spare.clear();
        std::mem::swap(&mut *self.lock(), &mut totals.spare);
        totals.counts.add(&totals.spare);
    }

    fn lock(&self) -> MutexGuard<'_, Box<Counts>> {
        // Integers are whole whatever happened to the thread that wrote them.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Everything since the start, and the mail's next bag.
#[derive(Debug)]
pub struct Totals {
    /// Everything since the start, as of the last taking.
    pub counts: Counts,
    spare: Box<Counts>,
}

impl Totals {
    /// Nothing yet.
    #[must_use]
    pub fn new(listeners: usize) -> Self {
        Self {
            counts: Counts::new(listeners),
            spare: Box::new(Counts::new(listeners)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_counted_twice_or_left_behind() {
        let mailbox = Mailbox::new(1);
        let mut ledger = Ledger::new(1);
        let mut totals = Totals::new(1);
        for round in 1..=5 {
            ledger.count_frames(0, 1, 10);
            ledger.events().matched += 2;
            ledger.count_sent(SeriesId::OTHER, 3, 100);
            ledger.count_dropped_copy(SeriesId::OTHER, 1, CopyDrop::Refused);
            ledger.hand_over(&mailbox);
            ledger.hand_over(&mailbox);
            if round % 2 == 1 {
                mailbox.take_into(&mut totals);
                mailbox.take_into(&mut totals);
                assert_eq!(
                    totals.counts.listeners,
                    [ListenerCounts {
                        frames: round,
                        bytes: 10 * round
                    }]
                );
                assert_eq!(totals.counts.events.matched, 2 * round);
                let series = totals.counts.series[0];
                assert_eq!(
                    (series.events, series.frames, series.bytes),
                    (3 * round, round, 100 * round)
                );
                assert_eq!(series.dropped[CopyDrop::Refused as usize], round);
            }
        }
    }
}
