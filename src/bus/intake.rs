//! From a frame's events to frames under construction: route, check, count, copy.
//!
//! Events that lie one behind the other and go to the same sets are copied as one run: so a
//! publisher that batches costs the bus a copy for each datagram, and not for each event.

use std::ops::Range;

use hailmary_proto::decode::{EventRun, FrameView};
use hailmary_proto::topic;

use super::Arrival;
use super::access::Rights;
use super::directory::Directory;
use super::fanout::Fanout;
use super::routes::{Route, RouteId, Routes};
use super::seen::{EventDrop, TopicsSeen};
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
    /// Where their topics are.
    pub seen: &'a mut TopicsSeen,
    /// What their frame came with.
    pub arrival: &'a Arrival<'a>,
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
    pub fn take_frame(&mut self, frame: &FrameView<'_>, rights: Rights<'_>, hops: u32) {
        for event in frame.events() {
            self.tally.events += 1;
            self.tally
                .age(self.arrival.unix_nano, event.time_unix_nano());
        }
        let mut runs = frame.runs();
        let Some(first) = runs.next() else {
            return;
        };
        if !runs.is_empty() {
            return self.take_runs(frame, rights, hops);
        }
        // The usual case: one topic in the whole frame.
        let found = self.routes.find(first.topic_bytes());
        let Some(id) = found.or_else(|| self.resolve(&first)) else {
            return;
        };
        let Some(route) = self.routes.route(id) else {
            return;
        };
        if count(&first, rights, route, self.tally, self.seen) {
            for to in &route.sets {
                self.fanout.push(*to, first, hops);
            }
        }
    }

    #[inline(never)]
    fn take_runs(&mut self, frame: &FrameView<'_>, rights: Rights<'_>, hops: u32) {
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
            let Some(id) = found.or_else(|| self.resolve(&run)) else {
                continue;
            };
            let route = self.routes.route(id);
            if !route.is_some_and(|route| count(&run, rights, route, self.tally, self.seen)) {
                continue;
            }
            match &mut neighbours {
                Some(before)
                    if frame.is_dense()
                        && before.events.end == events.start
                        && self.have_same_sets(before.route, id) =>
                {
                    before.events.end = events.end;
                }
                _ => {
                    let next = Neighbours { route: id, events };
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

    /// Finds the route of a run's topic anew, or counts the run where it has none, or where it is
    /// of a reserved topic and not from the bus itself. Each run of a reserved topic comes by
    /// here, for its route is never found without.
    #[cold]
    fn resolve(&mut self, run: &EventRun<'_>) -> Option<RouteId> {
        let topic = run.topic_bytes();
        if topic::is_reserved(topic) && !self.directory.is_own(self.arrival.source) {
            self.tally.not_allowed += run.len() as u64;
            if topic::check_topic(topic).is_ok() {
                self.seen
                    .count_dropped(topic, EventDrop::NotAllowed, run.len());
            }
            return None;
        }
        let route = self.routes.resolve(topic, self.directory, self.seen);
        if route.is_none() {
            self.tally.bad_topic += run.len() as u64;
        }
        route
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

/// Counts events whose topic is legal, and says whether they go to anybody.
#[inline]
fn count(
    run: &EventRun<'_>,
    rights: Rights<'_>,
    route: &Route,
    tally: &mut EventTally,
    seen: &mut TopicsSeen,
) -> bool {
    let events = run.len() as u64;
    if !matches!(rights, Rights::All) && !rights.permit(run.topic_bytes()) {
        tally.not_allowed += events;
        seen.count_dropped(run.topic_bytes(), EventDrop::NotAllowed, run.len());
        return false;
    }
    route.events.set(route.events.get() + events);
    if let Some(count) = tally.by_policy.get_mut(route.policy as usize) {
        *count += events;
    }
    if route.copies == 0 {
        tally.unmatched += events;
        return false;
    }
    tally.matched += events;
    tally.copies += events * u64::from(route.copies);
    true
}
