//! Rules of access as somebody writes them, and once more, as plainly as can be, who may do what by
//! them: from their text and the words of the documentation alone.

use std::net::IpAddr;

use hailmary::bus::access::{Access, Effect, Rule, Rules};
use hailmary::bus::address::Source;

use crate::naive;

/// One rule, of one source and one pattern.
#[derive(Clone, Copy, Debug)]
pub(super) struct Written {
    pub(super) from: &'static str,
    pub(super) topics: &'static str,
    pub(super) effect: Effect,
}

impl Written {
    fn is_of_users(&self) -> bool {
        self.from.starts_with("uid:") || self.from.starts_with("gid:")
    }

    /// Whom nothing is told of is none of those who are allowed and any of those who are denied.
    fn speaks_of(&self, source: Source<'_>) -> bool {
        let number = |prefix: &str| self.from.strip_prefix(prefix)?.parse::<u32>().ok();
        let (uid, gid) = (number("uid:"), number("gid:"));
        match source {
            Source::Ip(_) if self.is_of_users() => false,
            Source::Ip(address) => contains(self.from, address.ip()),
            Source::Unix { credentials, .. } if self.is_of_users() => match credentials {
                Some(told) => uid == Some(told.uid) || gid == Some(told.gid),
                None => self.effect == Effect::Deny,
            },
            // On this host, which is either of its loopback addresses.
            Source::Unix { .. } => {
                let here = ["127.0.0.1", "::1"].map(|ip| ip.parse().expect("an address"));
                here.into_iter().any(|ip| contains(self.from, ip))
            }
        }
    }
}

/// The rules for one deed.
#[derive(Clone, Debug, Default)]
pub(super) struct Deed(pub(super) Vec<Written>);

impl Deed {
    fn to_rules(&self) -> Rules {
        let rule = |written: &Written| Rule {
            from: vec![written.from.parse().expect("a source")],
            topics: vec![written.topics.to_owned()],
            effect: written.effect,
        };
        Rules(self.0.iter().map(rule).collect())
    }

    /// Whether it is told without a topic that there is nothing for this source here: it is
    /// spoken of nowhere, or denied everything.
    pub(super) fn shuts_out(&self, source: Source<'_>) -> bool {
        let mut all = self.0.iter().filter(|rule| rule.speaks_of(source));
        let is_known = all.clone().next().is_some();
        !is_known || all.any(|rule| rule.effect == Effect::Deny && rule.topics == ">")
    }

    /// Whether a source may do it with a legal topic. A denial wins.
    pub(super) fn permits(&self, source: Source<'_>, topic: &str) -> bool {
        let all = self.0.iter();
        let mut effects = all
            .filter(|rule| rule.speaks_of(source) && naive::covers(rule.topics, topic))
            .map(|rule| rule.effect);
        effects.clone().any(|effect| effect == Effect::Allow)
            && effects.all(|effect| effect == Effect::Allow)
    }
}

/// The rules for both deeds.
#[derive(Clone, Debug, Default)]
pub(super) struct Plain {
    pub(super) publish: Deed,
    pub(super) subscribe: Deed,
}

impl Plain {
    pub(super) fn to_access(&self) -> Access {
        Access {
            publish: self.publish.to_rules(),
            subscribe: self.subscribe.to_rules(),
        }
    }

    /// Whether this one may be somebody else than it seems: the rules tell users apart, and nobody
    /// told who sent its request.
    pub(super) fn is_untold(&self, source: Source<'_>) -> bool {
        let mut rules = self.publish.0.iter().chain(&self.subscribe.0);
        let nobody = Source::Unix {
            path: match source {
                Source::Unix { path, .. } => path,
                Source::Ip(_) => return false,
            },
            credentials: None,
        };
        source == nobody && rules.any(Written::is_of_users)
    }
}

/// Whether an address is of a network, or is the address that stands in its place.
fn contains(network: &str, ip: IpAddr) -> bool {
    let (first, bits) = network.split_once('/').unwrap_or((network, "128"));
    let bits = bits.parse().expect("a length");
    let first = first.parse().expect("an address");
    let digits = |ip| match ip {
        IpAddr::V4(ip) => format!("{:032b}", ip.to_bits()),
        IpAddr::V6(ip) => format!("{:0128b}", ip.to_bits()),
    };
    let (first, ip) = (digits(first), digits(ip));
    first.len() == ip.len()
        && first
            .chars()
            .zip(ip.chars())
            .take(bits)
            .all(|(a, b)| a == b)
}
