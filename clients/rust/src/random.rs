//! Ids that nobody can guess: of senders, of subscriptions, of pings.

use std::io;

/// 64 random bits of the operating system. Never 0, which the wire leaves out.
pub(crate) fn random_id() -> io::Result<u64> {
    let id = getrandom::u64().map_err(|error| io::Error::other(error.to_string()))?;
    Ok(id.max(1))
}
