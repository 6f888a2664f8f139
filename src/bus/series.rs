//! Under which label subscribers are counted.
//!
//! A stranger chooses its name, so names are bounded: static subscribers have series of their
//! own, of the names that come by lease the first few have, all later ones share `other`. A
//! series stays when its subscriber goes, so sums hold.

use std::collections::HashMap;
use std::sync::Arc;

/// One series, dense from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SeriesId(u32);

impl SeriesId {
    /// What the unnamed and those past the bound share.
    pub const OTHER: SeriesId = SeriesId(0);

    /// The series as an index, dense from 0.
    #[must_use]
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// The series and their names.
#[derive(Debug)]
pub struct Series {
    by_name: HashMap<Arc<str>, SeriesId>,
    names: Vec<Arc<str>>,
    /// How many of the names came by lease.
    leased: usize,
    leased_max: usize,
}

impl Series {
    /// One series for each static subscriber and, later, for at most `leased_max` other names.
    pub fn new<'a>(static_names: impl IntoIterator<Item = &'a str>, leased_max: usize) -> Self {
        let mut series = Self {
            by_name: HashMap::new(),
            names: Vec::new(),
            leased: 0,
            leased_max: 0,
        };
        series.reconfigure(["other"].into_iter().chain(static_names), leased_max);
        series
    }

    /// Gives each of these names a series of its own, and from now on room for so many others in
    /// all. What has a series keeps it, also past a lowered bound.
    pub fn reconfigure<'a>(
        &mut self,
        static_names: impl IntoIterator<Item = &'a str>,
        leased_max: usize,
    ) {
        for name in static_names {
            if !self.by_name.contains_key(name) {
                self.add(name);
            }
        }
        self.leased_max = leased_max;
    }

    /// The series of a name, a new one while there is room.
    pub fn assign(&mut self, name: &str) -> SeriesId {
        if name.is_empty() {
            return SeriesId::OTHER;
        }
        if let Some(id) = self.by_name.get(name) {
            return *id;
        }
        if self.leased >= self.leased_max {
            return SeriesId::OTHER;
        }
        self.leased += 1;
        self.add(name)
    }

    fn add(&mut self, name: &str) -> SeriesId {
        let Some(id) = u32::try_from(self.names.len()).ok().map(SeriesId) else {
            return SeriesId::OTHER;
        };
        let name: Arc<str> = name.into();
        self.names.push(Arc::clone(&name));
        self.by_name.insert(name, id);
        id
    }

    /// The names, by [`SeriesId::index`]. It only grows.
    #[must_use]
    pub fn names(&self) -> &[Arc<str>] {
        &self.names
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_past_the_bound_share_other() {
        let mut series = Series::new(["indexer"], 2);
        let [a, b] = ["a", "b"].map(|name| series.assign(name));
        assert_ne!(a, b);
        assert_eq!(series.assign("c"), SeriesId::OTHER);
        assert_eq!(series.assign(""), SeriesId::OTHER);
        assert_eq!(series.assign("a"), a, "what has a series keeps it");
        assert_eq!(series.names().len(), 4);
    }

    #[test]
    fn a_bound_that_changes_takes_no_series_away() {
        let mut series = Series::new(["indexer"], 1);
        let a = series.assign("a");
        series.reconfigure(["a", "counter"], 0);
        assert_eq!(series.assign("a"), a);
        let own = ["indexer", "counter"].map(|name| series.assign(name));
        assert!(!own.contains(&SeriesId::OTHER) && own[0] != own[1]);
        assert_eq!(series.assign("b"), SeriesId::OTHER);
        series.reconfigure([], 2);
        assert_ne!(series.assign("b"), SeriesId::OTHER);
        assert_eq!(series.assign("c"), SeriesId::OTHER, "a came by lease, too");
        let names: Vec<_> = series.names().iter().map(|name| &**name).collect();
        assert_eq!(names, ["other", "indexer", "a", "counter", "b"]);
    }
}
