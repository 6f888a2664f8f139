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
use super::fanout::{Fanout, Passage};
use super::groups::Dealer;
use super::overload::Thinning;
use super::routes::{Destination, Route, RouteId, Routes, Way};
use super::seen::{EventDrop, TopicsSeen};
use super::selector::Selector;
use super::tally::EventTally;

/// What a data thread leads events by, from topics to frames.
#[derive(Debug)]
pub struct Switch {
    /// Where topics lead.
    pub routes: Routes,
    /// Where events are copied to.
    pub fanout: Fanout,
    /// Where their topics are noted.
    pub seen: TopicsSeen,
    /// What is kept when the bus cannot keep up.
    pub thinning: Thinning,
    /// Who deals out events without a key.
    pub dealer: Dealer,
}

impl Switch {
    /// `seed` keeps strangers from choosing topics that collide.
    pub fn new(seed: u64) -> Self {
        Self {
            routes: Routes::new(seed),
            fanout: Fanout::default(),
            seen: TopicsSeen::new(seed),
            thinning: Thinning::default(),
            dealer: Dealer::new(seed),
        }
    }
}

/// One frame's way in.
pub struct Intake<'a> {
    /// What leads its events on.
    pub switch: &'a mut Switch,
    /// Who gets what.
    pub directory: &'a Directory,
    /// Where its events are counted.
    pub tally: &'a mut EventTally,
    /// What it came with.
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
    /// Takes a frame's events in.
    #[inline]
    pub fn take_frame(&mut self, frame: &FrameView<'_>, rights: Rights<'_>, passage: Passage) {
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
            return self.take_runs(frame, rights, passage);
        }
        // The usual case: one topic in the whole frame.
        let found = self.switch.routes.find(first.topic_bytes());
        let Some(id) = found.or_else(|| self.resolve(&first)) else {
            return;
        };
        let Some(route) = self.switch.routes.route(id) else {
            return;
        };
        match count(&first, rights, route, self.tally, &mut self.switch.seen) {
            Some(Goes::To(destinations)) => {
                for to in destinations {
                    self.switch.fanout.push(*to, first, passage);
                }
            }
            Some(Goes::Selected) => self.select(&first, id, passage),
            None => {}
        }
    }

    #[inline(never)]
    fn take_runs(&mut self, frame: &FrameView<'_>, rights: Rights<'_>, passage: Passage) {
        let mut neighbours: Option<Neighbours> = None;
        let mut next = 0;
        for run in frame.runs() {
            let events = next..next + run.len();
            next = events.end;
            let found = self.switch.routes.find(run.topic_bytes());
            if found.is_none() {
                // What is resolved anew may take the place of what the neighbours go by.
                if let Some(before) = neighbours.take() {
                    self.copy(frame, before, passage);
                }
            }
            let Some(id) = found.or_else(|| self.resolve(&run)) else {
                continue;
            };
            let route = self.switch.routes.route(id);
            match route
                .and_then(|route| count(&run, rights, route, self.tally, &mut self.switch.seen))
            {
                Some(Goes::To(_)) => {}
                Some(Goes::Selected) => {
                    if let Some(before) = neighbours.take() {
                        self.copy(frame, before, passage);
                    }
                    self.select(&run, id, passage);
                    continue;
                }
                None => continue,
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
                        self.copy(frame, before, passage);
                    }
                }
            }
        }
        if let Some(last) = neighbours {
            self.copy(frame, last, passage);
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
                self.switch
                    .seen
                    .count_dropped(topic, EventDrop::NotAllowed, run.len() as u64);
            }
            return None;
        }
        let route = self
            .switch
            .routes
            .resolve(topic, self.directory, &mut self.switch.seen);
        if route.is_none() {
            self.tally.bad_topic += run.len() as u64;
        }
        route
    }

    fn have_same_sets(&self, one: RouteId, other: RouteId) -> bool {
        let destinations = |id| match self.switch.routes.route(id).map(|route| &route.way) {
            Some(Way::Straight(sets)) => Some(&sets.destinations),
            _ => None,
        };
        one == other || destinations(one) == destinations(other)
    }

    /// Copies neighbours for each of their sets.
    #[inline]
    fn copy(&mut self, frame: &FrameView<'_>, neighbours: Neighbours, passage: Passage) {
        let route = self.switch.routes.route(neighbours.route);
        let Some(Way::Straight(sets)) = route.map(|route| &route.way) else {
            return;
        };
        let run = frame.run(neighbours.events);
        for to in &sets.destinations {
            self.switch.fanout.push(*to, run, passage);
        }
    }

    /// Decides of each event of a run.
    #[inline(never)]
    fn select(&mut self, run: &EventRun<'_>, route: RouteId, passage: Passage) {
        let Some(route) = self.switch.routes.route(route) else {
            return;
        };
        let Way::Selective(selection) = &route.way else {
            return;
        };
        let mut selector = Selector {
            directory: self.directory,
            parties: self.switch.routes.parties(selection.parties),
            selection,
            kept: self.switch.thinning.of(selection.priority),
            fanout: &mut self.switch.fanout,
            dealer: &mut self.switch.dealer,
            now: self.arrival.now,
            unix_nano: self.arrival.unix_nano,
            passage,
        };
        route.count(selector.take(run, self.tally));
    }
}

/// Where counted events go.
enum Goes<'a> {
    /// To all members of these sets.
    To(&'a [Destination]),
    /// As is decided of each.
    Selected,
}

/// Counts events whose topic is legal, and says where they go, if anywhere. Those that are to be
/// selected are counted further there.
#[inline]
fn count<'a>(
    run: &EventRun<'_>,
    rights: Rights<'_>,
    route: &'a Route,
    tally: &mut EventTally,
    seen: &mut TopicsSeen,
) -> Option<Goes<'a>> {
    let events = run.len() as u64;
    if !matches!(rights, Rights::All) && !rights.permit(run.topic_bytes()) {
        tally.not_allowed += events;
        seen.count_dropped(run.topic_bytes(), EventDrop::NotAllowed, events);
        return None;
    }
    tally.count_label(route.label, events);
    match &route.way {
        Way::Straight(sets) => {
            route.count(events);
            tally.matched += events;
            tally.copies += events * u64::from(sets.copies);
            Some(Goes::To(&sets.destinations))
        }
        Way::Selective(_) => Some(Goes::Selected),
        Way::Nowhere => {
            route.count(events);
            tally.unmatched += events;
            None
        }
    }
}
