//! What happened, as one number, and as text where somebody wants to read it.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};

use super::clock::Nanos;
use super::rng::mix;

/// Whether the last events are kept as text: a failing seed is run once more for that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Telling {
    Silent,
    Told { lines_max: usize },
}

/// A history's fingerprint, its length, and its end.
#[derive(Debug)]
pub struct Trace {
    telling: Telling,
    hash: u64,
    /// Events so far.
    pub steps: u64,
    lines: VecDeque<String>,
}

impl Trace {
    pub fn new(telling: Telling) -> Self {
        Self {
            telling,
            hash: 0,
            steps: 0,
            lines: VecDeque::new(),
        }
    }

    /// Adds an event. Equal histories, and no others, give equal numbers.
    pub fn note(&mut self, at: Nanos, facts: &[u64], text: impl FnOnce() -> String) {
        self.steps += 1;
        self.add(at);
        for fact in facts {
            self.add(*fact);
        }
        if let Telling::Told { lines_max } = self.telling {
            if self.lines.len() >= lines_max {
                self.lines.pop_front();
            }
            let seconds = at as f64 / 1e9;
            let line = format!("{:>6} {seconds:>14.9} {}", self.steps, text());
            self.lines.push_back(line);
        }
    }

    fn add(&mut self, fact: u64) {
        self.hash = mix(self.hash.rotate_left(5) ^ fact).wrapping_add(fact);
    }

    /// The fingerprint so far.
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// The last events.
    pub fn told(self) -> Vec<String> {
        self.lines.into()
    }
}

/// Bytes as a fact.
pub fn fact(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<8>();
    let mut hash = bytes.len() as u64;
    for word in words {
        hash = mix(hash.rotate_left(5) ^ u64::from_le_bytes(*word));
    }
    rest.iter().fold(hash, |hash, byte| {
        mix(hash.rotate_left(5) ^ u64::from(*byte))
    })
}

/// An address as a fact.
pub fn place(address: SocketAddr) -> u64 {
    let ip = match address.ip() {
        IpAddr::V4(ip) => u64::from(ip.to_bits()),
        IpAddr::V6(ip) => ip.to_bits() as u64 ^ (ip.to_bits() >> 64) as u64,
    };
    mix(ip.rotate_left(16) ^ u64::from(address.port()))
}
