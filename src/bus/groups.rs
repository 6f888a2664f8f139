//! Groups: of the members of one, one gets each event.
//!
//! An event with a key goes to the member whose [`Seed`] scores highest with the key's hash
//! (rendezvous hashing: Thaler and Ravishankar, "Using name-based mappings to increase hit
//! rates", 1998). A member that comes takes keys from the others and gives none to them, one that
//! goes gives its own away and moves none of the others. An event without a key is dealt out.
//!
//! A member whose name no standing member of its group has is seeded by that name alone. So it
//! has the same keys again once its old lease has ended, after a restart of the bus, and on every
//! bus where the members have the same names. A namesake is seeded by its address besides.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::address::Address;
use super::sample::KeyHash;

/// What decides which keys are a member's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Seed(u64);

impl Seed {
    /// How much a member wants a key. Of members with different seeds no two want it as much.
    #[must_use]
    #[inline]
    fn score(self, key: KeyHash) -> u64 {
        mix(key.get() ^ self.0)
    }
}

/// Mixes 64 bits so that each depends on all, and no two inputs give the same: the finalizer of
/// MurmurHash3 (Appleby, public domain).
#[must_use]
#[inline]
pub fn mix(mut bits: u64) -> u64 {
    bits ^= bits >> 33;
    bits = bits.wrapping_mul(0xff51_afd7_ed55_8ccd);
    bits ^= bits >> 33;
    bits = bits.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    bits ^ bits >> 33
}

/// The member that a key belongs to, as an index; none where there are no members.
#[must_use]
#[inline]
pub fn owner(key: KeyHash, seeds: impl Iterator<Item = Seed>) -> Option<usize> {
    let scores = seeds.map(|seed| seed.score(key)).enumerate();
    scores
        .max_by_key(|(_, score)| *score)
        .map(|(index, _)| index)
}

/// Deals events without a key out, and throws the dice for them.
///
/// A turn is a multiple of the golden ratio's fraction. Such ones are spread evenly in the long
/// run, also where each of a group comes after as many of others (Weyl's equidistribution), and
/// the sooner the fewer come in between (Knuth, "The Art of Computer Programming", volume 3,
/// section 6.4).
#[derive(Clone, Copy, Debug)]
pub struct Dealer {
    turn: u64,
}

/// 2^64 divided by the golden ratio.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

impl Dealer {
    /// One that begins anywhere.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { turn: seed }
    }

    /// The next event's turn.
    #[must_use]
    #[inline]
    pub fn next_turn(&mut self) -> Turn {
        self.turn = self.turn.wrapping_add(GOLDEN);
        Turn(self.turn)
    }
}

/// One event's, that has no key.
#[derive(Clone, Copy, Debug)]
pub struct Turn(u64);

impl Turn {
    /// Whose turn it is of so many members, as an index.
    #[must_use]
    #[inline]
    pub fn member(self, members: usize) -> usize {
        let scaled = (u128::from(self.0) * members as u128) >> u64::BITS;
        usize::try_from(scaled).unwrap_or_default()
    }

    /// An even throw, that tells nothing of whose turn it is.
    #[must_use]
    #[inline]
    pub fn throw(self) -> u64 {
        mix(self.0)
    }
}

/// Which seeds are given out, by group.
#[derive(Debug, Default)]
pub struct Groups {
    seeds: HashMap<Arc<str>, HashSet<Seed>>,
}

impl Groups {
    /// How many members a group has.
    #[must_use]
    pub fn members(&self, group: &str) -> usize {
        self.seeds.get(group).map_or(0, HashSet::len)
    }

    /// Gives a new member a seed that no other one of its group has.
    pub fn join(&mut self, group: &Arc<str>, name: &str, address: &Address) -> Seed {
        let taken = self.seeds.entry(Arc::clone(group)).or_default();
        let by_address =
            || Seed(KeyHash::of(&[name.as_bytes(), &address.cookie_bytes()].concat()).get());
        let mut seed = match name {
            "" => by_address(),
            _ => Seed(KeyHash::of(name.as_bytes()).get()),
        };
        if taken.contains(&seed) {
            seed = by_address();
        }
        while !taken.insert(seed) {
            seed = Seed(mix(seed.0.wrapping_add(GOLDEN)));
        }
        seed
    }

    /// Takes a member's seed back.
    pub fn leave(&mut self, group: &str, seed: Seed) {
        if let Some(taken) = self.seeds.get_mut(group) {
            taken.remove(&seed);
            if taken.is_empty() {
                self.seeds.remove(group);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn address(port: u16) -> Address {
        Address::Ip(([10, 0, 0, 1], port).into())
    }

    fn join(groups: &mut Groups, name: &str, port: u16) -> Seed {
        groups.join(&"g".into(), name, &address(port))
    }

    fn keys(count: u32) -> impl Iterator<Item = KeyHash> {
        (0..count).map(|key| KeyHash::of(&key.to_be_bytes()))
    }

    fn owners(seeds: &[Seed], count: u32) -> Vec<Seed> {
        keys(count)
            .map(|key| seeds[owner(key, seeds.iter().copied()).unwrap()])
            .collect()
    }

    /// Members with distinct names, with the same one and without any.
    fn members() -> impl Strategy<Value = Vec<(String, u16)>> {
        let name = prop_oneof![Just(String::new()), Just("same".to_owned()), "[a-z]{1,8}"];
        prop::collection::vec(name, 1..20).prop_map(|names| names.into_iter().zip(1000..).collect())
    }

    proptest! {
        #[test]
        fn keys_stay_but_for_those_of_whoever_comes_or_goes(members in members(), gone in any::<prop::sample::Index>()) {
            const KEYS: u32 = 500;
            let mut groups = Groups::default();
            let all: Vec<Seed> = members.iter().map(|(name, port)| join(&mut groups, name, *port)).collect();
            prop_assert_eq!(groups.members("g"), all.len());
            let gone = gone.index(all.len());
            let mut others = all.clone();
            let leaver = others.remove(gone);
            let before = owners(&all, KEYS);
            if !others.is_empty() {
                for (before, after) in before.iter().zip(owners(&others, KEYS)) {
                    prop_assert!(*before == after || *before == leaver);
                }
            }
            groups.leave("g", leaver);
            let (name, port) = &members[gone];
            let again = join(&mut groups, name, *port);
            // Who comes back under a name that is its own, or from where it was, has its keys back.
            let is_namesake = |(other, _): &&(String, u16)| other == name;
            let namesakes = members.iter().filter(is_namesake).count();
            if namesakes == 1 || name.is_empty() {
                prop_assert_eq!(again, leaver);
            }
            let mut after = others;
            after.push(again);
            for (before, after) in owners(&all, KEYS).iter().zip(owners(&after, KEYS)) {
                prop_assert!(*before == after || *before == leaver || after == again);
            }
        }

        #[test]
        fn keys_are_spread_evenly(members in 2..40_u16) {
            const KEYS: u32 = 20_000;
            let mut groups = Groups::default();
            let seeds: Vec<Seed> = (0..members).map(|n| join(&mut groups, &format!("worker-{n}"), n)).collect();
            let owners = owners(&seeds, KEYS);
            let expected = f64::from(KEYS) / f64::from(members);
            for seed in &seeds {
                let count = owners.iter().filter(|owner| *owner == seed).count() as f64;
                // Six standard deviations of a binomial count.
                prop_assert!((count - expected).abs() < 6.0 * expected.sqrt(), "{} of {}", count, expected);
            }
        }

        #[test]
        fn turns_are_dealt_out_evenly_also_where_others_come_in_between(seed: u64, members in 1..50_usize, every in 1..20_usize) {
            const ROUNDS: usize = 200;
            let mut dealer = Dealer::new(seed);
            let mut counts = vec![0_usize; members];
            for number in 0..ROUNDS * members * every {
                let turn = dealer.next_turn();
                if number % every == 0 {
                    counts[turn.member(members)] += 1;
                }
            }
            for count in counts {
                prop_assert!(count.abs_diff(ROUNDS) <= ROUNDS / 5, "{}", count);
            }
        }
    }

    #[test]
    fn a_group_is_forgotten_with_its_last_member() {
        let mut groups = Groups::default();
        let seed = join(&mut groups, "a", 1);
        groups.leave("g", seed);
        groups.leave("g", seed);
        assert!(groups.seeds.is_empty());
        assert_eq!(owner(KeyHash::of(b"k"), [].into_iter()), None);
    }
}
