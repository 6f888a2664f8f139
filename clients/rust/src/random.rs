//! Ids that nobody can guess: of senders, of subscriptions, of pings.

use std::hash::{BuildHasher, RandomState};
use std::io;
use std::time::SystemTime;

/// 64 random bits of the operating system. Never 0, which the wire leaves out.
pub(crate) fn random_id() -> io::Result<u64> {
    let id = getrandom::u64().map_err(|error| io::Error::other(error.to_string()))?;
    Ok(id.max(1))
}

/// As [`random_id`]; where there is no randomness to be had, one made of a parent's
/// id, which is a secret, and what tells its children from each other. A child that
/// may not fail has no better one.
pub(crate) fn child_id(parent: u64) -> u64 {
    random_id().unwrap_or_else(|_| derived_id(parent))
}

fn derived_id(parent: u64) -> u64 {
    let own = (parent, std::process::id(), SystemTime::now());
    RandomState::new().hash_one(own).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_derived_id_is_another_than_the_parents() {
        let parent = random_id().unwrap();
        assert_ne!(derived_id(parent), parent);
        assert_ne!(derived_id(parent), derived_id(parent ^ 1));
    }
}
