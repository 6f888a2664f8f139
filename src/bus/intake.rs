//! From a frame's events to frames under construction: route, check, count, copy.
//!
//! Events that lie one behind the other and go to the same sets are copied as one run: so a
//! publisher that batches costs the bus a copy for each datagram, and not for each event.

use std::ops::Range;

use hailmary_proto::decode::{EventView, FrameView};

use super::access::{Access, Rights};
use super::fanout::Fanout;
use super::routes::{RouteId, Routes};
use super::subscribers::Subscribers;
use super::tally::EventTally;

/// What events pass on their way in.
pub struct Intake<'a> {
    /// Who may see what.
    pub access: &'a Access,
    /// Who there is.
    pub subscribers: &'a Subscribers,
    /// Where topics lead.
    pub routes: &'a mut Routes,
    /// Where events are copied to.
    pub fanout: &'a mut Fanout,
    /// Where they are counted.
    pub tally: &'a mut EventTally,
}

/// Neighbouring events of a frame that go to the same sets.
struct Neighbours {
    route: RouteId,
    /// Where in the datagram the last one ends.
    end: usize,
    /// Which events of the frame they are.
    events: Range<usize>,
}

impl Neighbours {
    /// Takes the next event in, if it is a neighbour with the same sets.
    #[inline]
    fn take(
        &mut self,
        index: usize,
        event: &EventView<'_>,
        route: RouteId,
        routes: &Routes,
    ) -> bool {
        let range = event.range();
        let fits = self.events.end == index
            && self.end == range.start
            && (self.route == route || have_same_sets(routes, self.route, route));
        if fits {
            self.events.end += 1;
            self.end = range.end;
        }
        fits
    }
}

fn have_same_sets(routes: &Routes, one: RouteId, other: RouteId) -> bool {
    let sets = |id| routes.route(id).map(|route| &route.sets);
    sets(one) == sets(other)
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
        let mut neighbours: Option<Neighbours> = None;
        for (index, event) in frame.events().enumerate() {
            self.tally.events += 1;
            self.tally.age(unix_nano, event.time_unix_nano());
            let topic = event.topic_bytes();
            let route = match self.routes.find(topic) {
                Some(route) => Some(route),
                None => {
                    // What is resolved anew may take the place of what the run goes by.
                    self.copy(frame, neighbours.take(), hops);
                    let access = &self.access.subscribe;
                    self.routes.resolve(topic, self.subscribers, access)
                }
            };
            let Some(route) = route else {
                self.tally.bad_topic += 1;
                continue;
            };
            if !self.is_wanted(topic, rights, route) {
                continue;
            }
            let is_taken = neighbours
                .as_mut()
                .is_some_and(|run| run.take(index, &event, route, self.routes));
            if !is_taken {
                let next = Neighbours {
                    route,
                    end: event.range().end,
                    events: index..index + 1,
                };
                self.copy(frame, neighbours.replace(next), hops);
            }
        }
        self.copy(frame, neighbours, hops);
    }

    /// Counts an event whose topic is legal, and says whether it goes to anybody.
    #[inline]
    fn is_wanted(&mut self, topic: &[u8], rights: Rights<'_>, route: RouteId) -> bool {
        if !matches!(rights, Rights::All) && !rights.permit(topic) {
            self.tally.not_allowed += 1;
            return false;
        }
        let (policy, copies) = self
            .routes
            .route(route)
            .map_or((0, 0), |route| (route.policy, route.copies));
        if let Some(events) = self.tally.by_policy.get_mut(policy as usize) {
            *events += 1;
        }
        if copies == 0 {
            self.tally.unmatched += 1;
            return false;
        }
        self.tally.matched += 1;
        self.tally.copies += u64::from(copies);
        true
    }

    /// Copies neighbours for each of their sets.
    #[inline]
    fn copy(&mut self, frame: &FrameView<'_>, neighbours: Option<Neighbours>, hops: u32) {
        let Some(Neighbours { route, events, .. }) = neighbours else {
            return;
        };
        let Some(route) = self.routes.route(route) else {
            return;
        };
        let run = frame.run(events);
        for set in &route.sets {
            self.fanout.push(set.id, set.frame_bytes, run, hops);
        }
    }
}
