//! What must stand at the end of a step: subscribers, groups and counts.

use hailmary::bus::subscribers::{Subscriber, Tenure};
use hailmary::ledger::Counts;

use super::super::bus::{Bus, key_of};
use super::super::law::{Kept, law};
use super::books::Books;
use super::{Key, Member, Oracle};

impl Oracle {
    /// Holds the bus's tables and books against what they must be.
    pub fn check_state(&mut self, bus: &mut Bus) -> Kept {
        // Only these change tables: what is forwarded has them to read alone.
        if std::mem::take(&mut self.is_changed) {
            self.check_subscribers(bus)?;
            self.check_groups(bus)?;
        }
        let ends = self
            .members
            .values()
            .filter_map(|member| member.lease.as_ref());
        let next = ends.map(|lease| lease.expires).min();
        law!(
            bus.next_end() == next,
            "the bus wakes up for the next end of a lease",
            "{:?} instead of {next:?}",
            bus.next_end()
        );
        let names: Vec<&str> = bus
            .directory()
            .series_names()
            .iter()
            .map(|name| &**name)
            .collect();
        law!(
            names == self.series,
            "names have series as long as there is room",
            "{names:?} instead of {:?}",
            self.series
        );
        self.check_books(bus.counts())
    }

    fn check_subscribers(&self, bus: &Bus) -> Kept {
        let subscribers = bus.directory().subscribers();
        let mut seen = 0;
        for (_, subscriber) in subscribers.iter() {
            seen += 1;
            let key = key_of(subscriber);
            let Some(member) = self.members.get(&key) else {
                law!(
                    false,
                    "nobody is a subscriber without a lease or a static entry",
                    "{key:?}"
                );
                continue;
            };
            check_member(&key, member, subscriber)?;
        }
        law!(
            seen == self.members.len(),
            "whoever has a lease or a static entry is a subscriber",
            "{seen} of {}",
            self.members.len()
        );
        law!(
            subscribers.leases() == self.leases(),
            "leases are counted",
            "{} of {}",
            subscribers.leases(),
            self.leases()
        );
        Ok(())
    }

    fn check_groups(&self, bus: &Bus) -> Kept {
        for group in self
            .members
            .values()
            .map(|member| member.terms.group.as_str())
            .filter(|group| !group.is_empty())
        {
            let count = self
                .members
                .values()
                .filter(|member| member.terms.group == group)
                .count();
            law!(
                bus.directory().members(group) == count,
                "a group has the members that it has",
                "{group}: {} instead of {count}",
                bus.directory().members(group)
            );
        }
        Ok(())
    }

    fn check_books(&self, counts: &Counts) -> Kept {
        let events = &counts.events;
        let ended = events.dropped() + events.unmatched + events.matched;
        law!(
            events.events == ended,
            "the first law: events in = dropped + unmatched + matched",
            "{} and {ended}",
            events.events
        );
        let of_series = |series: &hailmary::ledger::SeriesCounts| {
            series.events + series.dropped.iter().sum::<u64>()
        };
        let ends: u64 = counts.series.iter().map(of_series).sum();
        law!(
            events.copies == ends,
            "the second law: copies = sent + dropped",
            "{} and {ends}",
            events.copies
        );
        let told = Books::of(counts).trimmed();
        let expected = self.books.clone().trimmed();
        law!(
            told == expected,
            "every count is what it must be",
            "\n  {told:?}\ninstead of\n  {expected:?}"
        );
        Ok(())
    }
}

fn check_member(key: &Key, member: &Member, subscriber: &Subscriber) -> Kept {
    let topics: Vec<&str> = subscriber.topics.iter().map(|topic| &**topic).collect();
    let group = subscriber.terms.group.as_deref().unwrap_or_default();
    let rate = subscriber.terms.events_per_second.unwrap_or(0);
    let wants = topics == member.patterns
        && group == member.terms.group
        && rate == member.terms.events_per_second;
    law!(
        wants,
        "a subscriber gets what it asked for last",
        "{subscriber:?} instead of {member:?}"
    );
    let sizes = (subscriber.frame_bytes.target, subscriber.frame_bytes.max);
    law!(
        sizes == (member.target, member.max),
        "datagrams are as large as is asked for or suits the way",
        "{sizes:?} instead of {member:?}"
    );
    law!(
        *subscriber.name == *member.name && subscriber.series.index() == member.series,
        "a subscriber has its name and its series",
        "{subscriber:?} instead of {member:?}"
    );
    let lease = match &subscriber.tenure {
        Tenure::Static => None,
        Tenure::Lease(lease) => Some((lease.expires, lease.nonce)),
    };
    let expected = member
        .lease
        .as_ref()
        .map(|lease| (lease.expires, lease.nonce));
    law!(
        lease == expected,
        "a lease ends as long after its last request as was granted",
        "{key:?}: {lease:?} instead of {expected:?}"
    );
    Ok(())
}
