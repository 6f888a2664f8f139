//! The ways between nodes: what is sent arrives late, twice, bent, or never.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use super::clock::Nanos;
use super::faults::Faults;
use super::rng::Rng;

/// What became of datagrams.
#[derive(Clone, Copy, Debug, Default)]
pub struct Traffic {
    pub sent: u64,
    pub lost: u64,
    pub doubled: u64,
    pub bent: u64,
}

/// The network.
#[derive(Debug)]
pub struct Network {
    rng: Rng,
    /// Hosts cut off from all others.
    apart: BTreeSet<IpAddr>,
    pub traffic: Traffic,
}

impl Network {
    pub fn new(rng: Rng) -> Self {
        Self {
            rng,
            apart: BTreeSet::new(),
            traffic: Traffic::default(),
        }
    }

    /// From now on these hosts reach each other and nobody else; none: all reach all.
    pub fn part(&mut self, apart: BTreeSet<IpAddr>) {
        self.apart = apart;
    }

    /// When copies of a datagram arrive, and as what.
    pub fn send(
        &mut self,
        faults: &Faults,
        now: Nanos,
        from: SocketAddr,
        to: SocketAddr,
        bytes: &[u8],
    ) -> Vec<(Nanos, Vec<u8>)> {
        self.traffic.sent += 1;
        let is_cut = self.apart.contains(&from.ip()) != self.apart.contains(&to.ip());
        if is_cut || self.rng.chance(faults.loss) {
            self.traffic.lost += 1;
            return Vec::new();
        }
        let copies = match self.rng.chance(faults.doubling) {
            true => 2,
            false => 1,
        };
        self.traffic.doubled += copies - 1;
        let mut arrivals = Vec::new();
        for _ in 0..copies {
            let mut bytes = bytes.to_vec();
            if self.rng.chance(faults.corruption) {
                self.bend(&mut bytes);
            }
            arrivals.push((
                now + faults.delay + self.rng.below(faults.jitter + 1),
                bytes,
            ));
        }
        arrivals
    }

    fn bend(&mut self, bytes: &mut Vec<u8>) {
        self.traffic.bent += 1;
        if bytes.is_empty() {
            return;
        }
        if self.rng.chance(300_000) {
            let end = self.rng.index(bytes.len());
            bytes.truncate(end);
            return;
        }
        for _ in 0..self.rng.range(1, 3) {
            let at = self.rng.index(bytes.len());
            bytes[at] ^= 1 << self.rng.below(8);
        }
    }
}
