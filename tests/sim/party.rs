//! Those of whom one gets each event of a topic: a group, or somebody alone. Given what was due to
//! them and what each of them got, finds which event was whose.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use super::law::{Broken, Kept, law};
use super::oracle::Key;

/// An event that a party is to get.
pub struct Due<'a> {
    pub slice: &'a [u8],
    pub key: Vec<u8>,
    pub weight: f64,
    pub hops: u32,
    /// Which of the members got it.
    pub taken_by: Option<usize>,
}

/// An event that a member of a party got.
#[derive(Clone, Copy)]
pub struct Taken<'a> {
    /// The number of the copy that it was in.
    pub copy: usize,
    pub slice: &'a [u8],
    /// The weight that the copy tells.
    pub told: f64,
    /// The hops that it tells.
    pub hops: u32,
    /// What the member asked for.
    pub share: f64,
}

/// Those of whom one gets each event of a topic.
pub struct Party<'a> {
    pub members: Vec<Key>,
    /// Each is to get each event, without any choice of the bus.
    pub is_certain: bool,
    pub due: Vec<Due<'a>>,
    /// What each member got, in its order.
    pub taken: Vec<Vec<Taken<'a>>>,
}

impl<'a> Party<'a> {
    /// One who has nobody beside it.
    pub fn of(key: &Key) -> Self {
        Self {
            members: vec![key.clone()],
            is_certain: false,
            due: Vec::new(),
            taken: vec![Vec::new()],
        }
    }

    pub fn add(&mut self, key: &Key) {
        self.members.push(key.clone());
        self.taken.push(Vec::new());
    }

    /// Finds for each event that a member got the one that was due, and notes of each copy the most
    /// hops of its events.
    pub fn settle(&mut self, level: u32, hops: &mut [(u32, u32)]) -> Kept {
        let whole = |due: &Due<'_>, taken: &Taken<'_>| {
            due.slice == taken.slice
                && due.hops <= taken.hops
                && may_weigh(level, due.weight, taken.share, taken.told)
        };
        // What fits but for its stamp breaks the law of that stamp.
        let chosen = Search::run(&self.due, &self.taken, whole).or_else(|| {
            Search::run(&self.due, &self.taken, |due, taken| {
                due.slice == taken.slice
            })
        });
        let Some(chosen) = chosen else {
            return Err(Broken {
                law: "each event of a topic comes once and in order, as it was sent",
                how: self.told(),
            });
        };
        let mut taken: Vec<_> = self.taken.iter().map(|taken| taken.iter()).collect();
        for (due, member) in self.due.iter().zip(&chosen) {
            if let Some(taken) = member.and_then(|member| taken[member].next()) {
                check_weight(level, due.weight, taken.share, taken.told)?;
                let (_, most) = &mut hops[taken.copy];
                *most = self.hops_of(due, taken).max(*most);
            }
        }
        for (due, member) in self.due.iter_mut().zip(chosen) {
            due.taken_by = member;
        }
        Ok(())
    }

    /// How many buses the event that a member got has passed, given one that it may have been: an
    /// equal one that was due may have come by a longer way, and nobody can tell which it was.
    fn hops_of(&self, due: &Due<'_>, taken: &Taken<'_>) -> u32 {
        if due.hops >= taken.hops {
            return due.hops;
        }
        let equal = self.due.iter().filter(|due| due.slice == taken.slice);
        let hops = equal.map(|due| due.hops);
        hops.filter(|hops| *hops <= taken.hops)
            .max()
            .unwrap_or(due.hops)
    }

    /// Whether several members got some.
    pub fn is_shared(&self) -> bool {
        self.taken.iter().filter(|taken| !taken.is_empty()).count() > 1
    }

    /// Who got what of what was due, as numbers of equal events.
    fn told(&self) -> String {
        let mut numbers: BTreeMap<&[u8], usize> = BTreeMap::new();
        let mut number = |slice| {
            let next = numbers.len();
            *numbers.entry(slice).or_insert(next)
        };
        let due: Vec<usize> = self.due.iter().map(|due| number(due.slice)).collect();
        let mut text = format!("due: {due:?}");
        for (member, taken) in self.members.iter().zip(&self.taken) {
            let taken: Vec<usize> = taken.iter().map(|taken| number(taken.slice)).collect();
            let _ = write!(text, "\n{member:?} got {taken:?}");
        }
        text
    }
}

/// Who took which event, where equal ones may be due more than once: a datagram that came twice, or
/// once more, makes events that nobody can tell apart, and of a group one member may have the first
/// and another the second. So all ways are tried, each state of them once.
struct Search<'s, 'a, F> {
    due: &'s [Due<'a>],
    taken: &'s [Vec<Taken<'a>>],
    fits: F,
    /// Of each event that is due, whether an equal one is due later.
    comes_again: Vec<bool>,
    /// How many of its events each member has.
    placed: Vec<usize>,
    chosen: Vec<Option<usize>>,
    /// States from which no way leads to the end.
    dead: BTreeSet<(usize, Vec<usize>)>,
}

impl<'s, 'a, F: Fn(&Due<'a>, &Taken<'a>) -> bool> Search<'s, 'a, F> {
    /// Of each event that was due, which member got it; none if there is no such way.
    fn run(due: &'s [Due<'a>], taken: &'s [Vec<Taken<'a>>], fits: F) -> Option<Vec<Option<usize>>> {
        let mut later = BTreeSet::new();
        let mut comes_again: Vec<bool> = due
            .iter()
            .rev()
            .map(|due| !later.insert(due.slice))
            .collect();
        comes_again.reverse();
        let mut search = Search {
            due,
            taken,
            fits,
            comes_again,
            placed: vec![0; taken.len()],
            chosen: Vec::with_capacity(due.len()),
            dead: BTreeSet::new(),
        };
        search.place().then_some(search.chosen)
    }

    /// Finds somebody, or nobody, for the next event that was due, and for all behind it.
    fn place(&mut self) -> bool {
        let at = self.chosen.len();
        let Some(due) = self.due.get(at) else {
            return self.open() == 0;
        };
        let is_dead = !self.dead.is_empty() && self.dead.contains(&(at, self.placed.clone()));
        if is_dead || self.open() > self.due.len() - at {
            return false;
        }
        let mut is_wanted = false;
        for member in 0..self.taken.len() {
            let next = self.taken[member].get(self.placed[member]);
            if next.is_some_and(|taken| (self.fits)(due, taken)) {
                is_wanted = true;
                self.placed[member] += 1;
                if self.go_on(Some(member)) {
                    return true;
                }
                self.placed[member] -= 1;
            }
        }
        // Whoever awaits what never comes again would await it for ever.
        if (!is_wanted || self.comes_again[at]) && self.go_on(None) {
            return true;
        }
        self.dead.insert((at, self.placed.clone()));
        false
    }

    fn go_on(&mut self, choice: Option<usize>) -> bool {
        self.chosen.push(choice);
        let is_found = self.place();
        if !is_found {
            self.chosen.pop();
        }
        is_found
    }

    /// How many events that members got have no place yet.
    fn open(&self) -> usize {
        let all: usize = self.taken.iter().map(Vec::len).sum();
        all - self.placed.iter().sum::<usize>()
    }
}

/// Whether a copy of an event may tell this weight.
fn may_weigh(level: u32, weight: f64, share: f64, told: f64) -> bool {
    let told = weight_of(told);
    let expected = weight / share;
    let is_right = match level {
        0 => (told / expected - 1.0).abs() < 1e-9,
        _ => told >= expected * (1.0 - 1e-9),
    };
    is_right || expected > 1e15
}

fn check_weight(level: u32, weight: f64, share: f64, told: f64) -> Kept {
    law!(
        may_weigh(level, weight, share, told),
        "a stamp tells how many events each stands for",
        "{told} for {weight} at a share of {share}"
    );
    Ok(())
}

/// What makes no sense as a weight is 1.
pub fn weight_of(told: f64) -> f64 {
    match told > 1.0 {
        true => told.min(9_007_199_254_740_992.0),
        false => 1.0,
    }
}
