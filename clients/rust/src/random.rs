//! Ids that nobody can guess: of senders, of subscriptions, of pings.

use std::hash::{BuildHasher, RandomState};
use std::io;
use std::time::SystemTime;

/// 64 random bits of the operating system. Never 0, which the wire leaves out.
pub(crate) fn random_id() -> io::Result<u64> {
    let id = getrandom::u64().map_err(|error| io::Error::other(error.to_string()))?;
    Ok(id.max(1))
}

/// As [`random_id`]. Where there is no randomness to be had, one made of a secret, if
/// there is one, and of what tells this process from others: for those who may not fail.
pub(crate) fn random_id_or(secret: u64) -> u64 {
    random_id().unwrap_or_else(|_| derived_id(secret))
}

fn derived_id(secret: u64) -> u64 {
    let own = (secret, std::process::id(), SystemTime::now());
    RandomState::new().hash_one(own).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_derived_id_is_another_each_time() {
        let secret = random_id().unwrap();
        assert_ne!(derived_id(secret), secret);
        assert_ne!(derived_id(secret), derived_id(secret));
    }
}
