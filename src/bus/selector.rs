//! Which events of a topic are let pass, and who of those on terms of their own gets them.
//!
//! Events come by here where their topic's policy decides of each, or where somebody who wants
//! them has terms. Those of plain subscribers and topics never do.

use std::time::Duration;

use hailmary_proto::decode::{EventRun, EventView};

use super::CopyDrop;
use super::directory::Directory;
use super::fanout::{Fanout, Passage};
use super::groups::{Dealer, Turn, owner};
use super::overload::Kept;
use super::policies::Policy;
use super::routes::{Member, Party, Selection};
use super::sample::{KeyHash, Point, Weight};
use super::seen::EventDrop;
use super::subscribers::SubscriberId;
use super::tally::EventTally;

/// Decides of the events of one run.
pub struct Selector<'a> {
    /// Whose rates they count against.
    pub directory: &'a Directory,
    /// What is to be decided.
    pub selection: &'a Selection,
    /// Of each of these, one gets an event.
    pub parties: &'a [Party],
    /// What is kept when the bus cannot keep up.
    pub kept: Kept,
    /// Where events are copied to.
    pub fanout: &'a mut Fanout,
    /// Who deals out events without a key.
    pub dealer: &'a mut Dealer,
    /// When they came, by the clock that does not jump.
    pub now: Duration,
    /// The same, by the wall clock, in ns of Unix time.
    pub unix_nano: u64,
    /// What the stamps of their copies say.
    pub passage: Passage,
}

/// What an event is chosen by.
#[derive(Clone, Copy)]
struct Lot {
    by: By,
    point: Point,
}

#[derive(Clone, Copy)]
enum By {
    Key(KeyHash),
    Turn(Turn),
}

impl Selector<'_> {
    /// Lets events pass or drops them, each counted, and says how many were routed.
    pub fn take(&mut self, run: &EventRun<'_>, tally: &mut EventTally) -> u64 {
        let policy = self.selection.policy;
        let policy = policy.and_then(|id| self.directory.policies().get(id));
        let passing = self.admit(run, policy, tally);
        let copies = u64::from(self.selection.copies);
        if copies == 0 {
            tally.unmatched += passing;
            return passing;
        }
        tally.matched += passing;
        tally.copies += passing * copies;
        let is_whole = passing == run.len() as u64 && self.kept.sample.is_all();
        if is_whole {
            for to in &self.selection.sets.destinations {
                self.fanout.push(*to, *run, self.passage);
            }
            if self.parties.is_empty() {
                return passing;
            }
        }
        let mut left = passing;
        let mut let_go = 0;
        for (one, event) in run.singles().filter_map(|one| Some((one, one.first()?))) {
            if left == 0 {
                break;
            }
            if self.is_stale(policy, &event) {
                continue;
            }
            left -= 1;
            let lot = self.lot(&event);
            let mut is_let_go = !is_whole && self.thin(one, lot);
            for party in self.parties {
                is_let_go |= self.deal(one, lot, party) == Some(CopyDrop::Overload);
            }
            let_go += u64::from(is_let_go);
        }
        self.selection.count_dropped(EventDrop::Overload, let_go);
        passing
    }

    /// How many of the events that are not stale pass by the policy's rate: the first ones.
    fn admit(&self, run: &EventRun<'_>, policy: Option<&Policy>, tally: &mut EventTally) -> u64 {
        let all = run.len() as u64;
        let Some(policy) = policy.filter(|policy| policy.is_selective()) else {
            return all;
        };
        let events = run.singles().filter_map(|one| one.first());
        let stale = events
            .filter(|event| self.is_stale(Some(policy), event))
            .count() as u64;
        let fresh = all - stale;
        let passing = policy.permit(self.now, fresh);
        tally.stale += stale;
        tally.rate_limit += fresh - passing;
        self.selection.count_dropped(EventDrop::Stale, stale);
        let over = fresh - passing;
        self.selection.count_dropped(EventDrop::RateLimit, over);
        passing
    }

    fn is_stale(&self, policy: Option<&Policy>, event: &EventView<'_>) -> bool {
        policy.is_some_and(|policy| policy.is_stale(self.unix_nano, event.time_unix_nano()))
    }

    fn lot(&mut self, event: &EventView<'_>) -> Lot {
        match event.key() {
            [] => {
                let turn = self.dealer.next_turn();
                Lot {
                    by: By::Turn(turn),
                    point: Point::of_throw(turn.throw()),
                }
            }
            key => {
                let hash = KeyHash::of(key);
                Lot {
                    by: By::Key(hash),
                    point: Point::of_key(hash, self.passage.weight),
                }
            }
        }
    }

    /// Copies an event for those who get every one, or lets it go, and says whether it did.
    fn thin(&mut self, one: EventRun<'_>, lot: Lot) -> bool {
        let is_kept = self.kept.sample.keeps(lot.point);
        let passage = self.weighing(self.kept.weight);
        for to in &self.selection.sets.destinations {
            match is_kept {
                true => self.fanout.push(*to, one, passage),
                false => self.fanout.push_drop(to.id, CopyDrop::Overload),
            }
        }
        !is_kept && self.selection.sets.copies > 0
    }

    /// Copies an event for the member of a party whose it is, or drops that copy and says why.
    fn deal(&mut self, one: EventRun<'_>, lot: Lot, party: &Party) -> Option<CopyDrop> {
        let member = member(party, lot.by)?;
        let dropped = if !member.sample.keeps(lot.point) {
            Some(CopyDrop::Sampled)
        } else if !self.kept.sample.keeps(lot.point) {
            Some(CopyDrop::Overload)
        } else if member.limited.is_some_and(|id| !self.permit(id)) {
            Some(CopyDrop::RateLimit)
        } else {
            None
        };
        match dropped {
            Some(reason) => self.fanout.push_drop(member.to.id, reason),
            None => {
                // Of two shares the smaller is part of the larger, and so the larger weight tells.
                let passage = self.weighing(member.weight.max(self.kept.weight));
                self.fanout.push(member.to, one, passage);
            }
        }
        dropped
    }

    fn permit(&self, id: SubscriberId) -> bool {
        let subscriber = self.directory.subscribers().get(id);
        subscriber.is_none_or(|subscriber| subscriber.permit(self.now, 1) == 1)
    }

    fn weighing(&self, weight: Weight) -> Passage {
        Passage {
            weight: self.passage.weight.times(weight),
            ..self.passage
        }
    }
}

fn member(party: &Party, by: By) -> Option<&Member> {
    let members = &party.members;
    let index = match (by, members.len()) {
        (_, 1) => 0,
        (By::Key(hash), _) => owner(hash, members.iter().map(|member| member.seed))?,
        (By::Turn(turn), all) => turn.member(all),
    };
    members.get(index)
}
