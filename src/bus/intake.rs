//! From a frame's events to frames under construction: route, check, count, copy.
//!
//! Events that lie one behind the other and go to the same sets are copied as one run: so a
//! publisher that batches costs the bus a copy for each datagram, and not for each event.

use std::ops::Range;

use hailmary_proto::decode::{EventRun, FrameView};

use super::access::Rights;
use super::directory::Directory;
use super::fanout::Fanout;
use super::routes::{RouteId, Routes};
use super::tally::EventTally;

/// What events pass on their way in.
pub struct Intake<'a> {
    /// Who gets what.
    pub directory: &'a Directory,
    /// Where topics lead.
    pub routes: &'a mut Routes,
    /// Where events are copied to.
    pub fanout: &'a mut Fanout,
    /// Where they are counted.
    pub tally: &'a mut EventTally,
}

/// Neighbouring events of a frame that go to the same sets.
struct Neighbours {
    /// That of the first.
    route: RouteId,
    /// Which of the frame's events.
    events: Range<usize>,
}

impl Intake<'_> {
    /// Takes a frame's events in. They will have passed so many buses with this one.
    #[inline]
    pub fn take_frame(
        &mut self,
        frame: &FrameView<'_>,
        rights: Rights<'_>,
        hops: u32,
        unix_nano: u64,
    ) {
        for event in frame.events() {
            self.tally.events += 1;
            self.tally.age(unix_nano, event.time_unix_nano());
        }
        let mut neighbours: Option<Neighbours> = None;
        let mut next = 0;
        for run in frame.runs() {
            let events = next..next + run.len();
            next = events.end;
            let found = self.routes.find(run.topic_bytes());
            if found.is_none() {
                // What is resolved anew may take the place of what the neighbours go by.
                if let Some(before) = neighbours.take() {
                    self.copy(frame, before, hops);
                }
            }
            let Some(route) =
                found.or_else(|| self.routes.resolve(run.topic_bytes(), self.directory))
            else {
                self.tally.bad_topic += run.len() as u64;
                continue;
            };
            if !self.is_wanted(&run, rights, route) {
                continue;
            }
            match &mut neighbours {
                Some(before)
                    if frame.is_dense()
                        && before.events.end == events.start
                        && self.have_same_sets(before.route, route) =>
                {
                    before.events.end = events.end;
                }
                _ => {
                    let next = Neighbours { route, events };
                    if let Some(before) = neighbours.replace(next) {
                        self.copy(frame, before, hops);
                    }
                }
            }
        }
        if let Some(last) = neighbours {
            self.copy(frame, last, hops);
        }
    }

    /// Counts events whose topic is legal, and says whether they go to anybody.
    #[inline]
    fn is_wanted(&mut self, run: &EventRun<'_>, rights: Rights<'_>, route: RouteId) -> bool {
        let events = run.len() as u64;
        if !matches!(rights, Rights::All) && !rights.permit(run.topic_bytes()) {
            self.tally.not_allowed += events;
            return false;
        }
        let (policy, copies) = self
            .routes
            .route(route)
            .map_or((0, 0), |route| (route.policy, route.copies));
        if let Some(count) = self.tally.by_policy.get_mut(policy as usize) {
            *count += events;
        }
        if copies == 0 {
            self.tally.unmatched += events;
            return false;
        }
        self.tally.matched += events;
        self.tally.copies += events * u64::from(copies);
        true
    }

    fn have_same_sets(&self, one: RouteId, other: RouteId) -> bool {
        let sets = |id| self.routes.route(id).map(|route| &route.sets);
        one == other || sets(one) == sets(other)
    }

    /// Copies neighbours for each of their sets.
    #[inline]
    fn copy(&mut self, frame: &FrameView<'_>, neighbours: Neighbours, hops: u32) {
        let Some(route) = self.routes.route(neighbours.route) else {
            return;
        };
        let run = frame.run(neighbours.events);
        for to in &route.sets {
            self.fanout.push(*to, run, hops);
        }
    }
}
