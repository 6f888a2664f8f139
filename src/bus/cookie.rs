//! Proof of an address without memory: what a subscriber gets in a challenge or a lease and
//! must bring back from the same address.
//!
//! `cookie = version | key id | time | SipHash-2-4(key, version | key id | time | address and
//! port | nonce)`, after the cookies of SYN floods' defence (RFC 4987, section 3.6) and of DNS
//! (RFC 9018, whose choice of SipHash-2-4 this is). An attacker who cannot receive at an address
//! cannot make a cookie for it.

use std::time::Duration;

use siphasher::sip::SipHasher24;

use super::address::Address;
use super::limits::COOKIE_KEY_AGE_MAX;

const VERSION: u8 = 1;

/// Bytes of a cookie: version, key id, time in ms, code.
pub const COOKIE_BYTES: usize = 1 + 1 + 8 + 8;

/// A key and the number that cookies name it by.
#[derive(Clone)]
struct Key {
    id: u8,
    secret: [u8; 16],
    made: Duration,
}

/// The bus's cookie keys: the one in use and the one before.
pub struct CookieJar {
    current: Key,
    previous: Option<Key>,
}

impl std::fmt::Debug for CookieJar {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The secrets stay out of any log.
        f.debug_struct("CookieJar")
            .field("key_id", &self.current.id)
            .finish_non_exhaustive()
    }
}

impl CookieJar {
    /// A jar with its first key.
    pub fn new(now: Duration, secret: [u8; 16]) -> Self {
        Self {
            current: Key {
                id: 0,
                secret,
                made: now,
            },
            previous: None,
        }
    }

    /// Puts a new key in use where the old one has served its time.
    pub fn rotate(&mut self, now: Duration, secret: impl FnOnce() -> [u8; 16]) {
        if now.saturating_sub(self.current.made) < COOKIE_KEY_AGE_MAX {
            return;
        }
        let next = Key {
            id: self.current.id.wrapping_add(1),
            secret: secret(),
            made: now,
        };
        self.previous = Some(std::mem::replace(&mut self.current, next));
    }

    /// A cookie for this address and nonce.
    #[must_use]
    pub fn bake(&self, now: Duration, address: &Address, nonce: u64) -> [u8; COOKIE_BYTES] {
        let ms = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        seal(&self.current, ms, address, nonce)
    }

    /// How old a cookie is, or `None` where it is not one of ours for this address and nonce.
    #[must_use]
    pub fn age(
        &self,
        now: Duration,
        cookie: &[u8],
        address: &Address,
        nonce: u64,
    ) -> Option<Duration> {
        let (head, _) = cookie.split_first_chunk::<10>()?;
        let [_, key_id, ms @ ..] = *head;
        let ms = u64::from_be_bytes(ms);
        let key = self.key(key_id)?;
        let expected = seal(key, ms, address, nonce);
        // A cookie of the future is from before this bus started, so not one of ours.
        is_equal(&expected, cookie)
            .then(|| now.checked_sub(Duration::from_millis(ms)))
            .flatten()
    }

    fn key(&self, id: u8) -> Option<&Key> {
        [Some(&self.current), self.previous.as_ref()]
            .into_iter()
            .flatten()
            .find(|key| key.id == id)
    }
}

fn seal(key: &Key, ms: u64, address: &Address, nonce: u64) -> [u8; COOKIE_BYTES] {
    let head = [&[VERSION, key.id], &ms.to_be_bytes()[..]].concat();
    let sealed = [&head, &address.cookie_bytes()[..], &nonce.to_be_bytes()].concat();
    let code = SipHasher24::new_with_key(&key.secret)
        .hash(&sealed)
        .to_be_bytes();
    let mut cookie = [0; COOKIE_BYTES];
    for (to, from) in cookie.iter_mut().zip(head.iter().chain(&code)) {
        *to = *from;
    }
    cookie
}

/// Compares in a time that does not tell how much was right.
fn is_equal(expected: &[u8; COOKIE_BYTES], given: &[u8]) -> bool {
    let difference = expected
        .iter()
        .zip(given)
        .fold(0, |sum, (a, b)| sum | (a ^ b));
    given.len() == COOKIE_BYTES && std::hint::black_box(difference) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(100);

    fn address(text: &str) -> Address {
        Address::Ip(text.parse().unwrap())
    }

    #[test]
    fn proves_its_own_address_and_nonce_alone() {
        let jar = CookieJar::new(Duration::ZERO, [7; 16]);
        let here = address("127.0.0.1:9");
        let cookie = jar.bake(NOW, &here, 5);
        let later = NOW + Duration::from_secs(3);
        assert_eq!(
            jar.age(later, &cookie, &here, 5),
            Some(Duration::from_secs(3))
        );
        assert_eq!(jar.age(later, &cookie, &here, 6), None);
        for other in ["127.0.0.1:10", "127.0.0.2:9", "[::1]:9"] {
            assert_eq!(jar.age(later, &cookie, &address(other), 5), None, "{other}");
        }
        let foreign = CookieJar::new(Duration::ZERO, [8; 16]);
        assert_eq!(foreign.age(later, &cookie, &here, 5), None);
    }

    #[test]
    fn no_flipped_bit_and_no_other_length_passes() {
        let jar = CookieJar::new(Duration::ZERO, [7; 16]);
        let here = address("127.0.0.1:9");
        let cookie = jar.bake(NOW, &here, 5);
        for bit in 0..COOKIE_BYTES * 8 {
            let mut flipped = cookie;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(jar.age(NOW, &flipped, &here, 5), None, "bit {bit}");
        }
        for length in 0..COOKIE_BYTES {
            assert_eq!(jar.age(NOW, &cookie[..length], &here, 5), None);
        }
        assert_eq!(jar.age(NOW, &[&cookie[..], &[0]].concat(), &here, 5), None);
    }

    #[test]
    fn the_key_before_still_counts_and_the_one_before_that_does_not() {
        let mut jar = CookieJar::new(Duration::ZERO, [1; 16]);
        let here = address("127.0.0.1:9");
        let cookie = jar.bake(Duration::from_secs(1), &here, 5);
        let mut now = Duration::ZERO;
        for (secret, counts) in [(2, true), (3, false)] {
            now += COOKIE_KEY_AGE_MAX;
            jar.rotate(now, || [secret; 16]);
            assert_eq!(jar.age(now, &cookie, &here, 5).is_some(), counts);
        }
    }
}
