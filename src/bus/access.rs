//! Who may publish and subscribe to what, by the network that a datagram comes from.
//!
//! A rule speaks of networks, so it does not speak of Unix sockets: who may use those is said by
//! the permissions of their files. The patterns of rules cover the bus's own topics as any others:
//! `>` is everything. That nobody else publishes those is no rule's matter.

use std::net::IpAddr;

use hailmary_proto::topic;
use ipnet::IpNet;

use super::address::{Address, Source};

/// Whether a rule gives or takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// What it matches is permitted, unless another rule denies it.
    Allow,
    /// What it matches is refused, whatever else says.
    Deny,
}

/// One rule: what these networks may do with the topics of these patterns.
#[derive(Clone, Debug)]
pub struct Rule {
    /// Networks, IPv4-mapped ones as IPv4.
    pub from: Vec<IpNet>,
    /// Checked patterns.
    pub topics: Vec<String>,
    /// Whether it gives or takes.
    pub effect: Effect,
}

impl Rule {
    fn speaks_of(&self, ip: IpAddr) -> bool {
        self.from.iter().any(|network| network.contains(&ip))
    }

    fn covers_all_topics(&self) -> bool {
        self.topics.iter().any(|pattern| pattern == ">")
    }

    fn covers(&self, topic: &[u8]) -> bool {
        self.topics
            .iter()
            .any(|pattern| topic::covers(pattern.as_bytes(), topic))
    }
}

/// The rules for one deed. None permits nobody.
#[derive(Clone, Debug, Default)]
pub struct Rules(pub Vec<Rule>);

/// What one source may do, as far as it can be told without a topic.
#[derive(Clone, Copy, Debug)]
pub enum Rights<'a> {
    /// Anything.
    All,
    /// Nothing.
    Nothing,
    /// It depends on the topic.
    ByTopic(&'a Rules, IpAddr),
}

impl Rights<'_> {
    /// Whether the deed is permitted with this topic.
    #[must_use]
    pub fn permit(&self, topic: &[u8]) -> bool {
        match self {
            Rights::All => true,
            Rights::Nothing => false,
            Rights::ByTopic(rules, ip) => rules.permit(*ip, topic),
        }
    }
}

impl Rules {
    /// What a source may do.
    #[must_use]
    pub fn rights(&self, source: Source<'_>) -> Rights<'_> {
        match source {
            Source::Ip(address) => self.rights_of(address.ip().to_canonical()),
            Source::Unix(_) => Rights::All,
        }
    }

    /// What the holder of an address may do.
    #[must_use]
    pub fn rights_of_address(&self, address: &Address) -> Rights<'_> {
        match address {
            Address::Ip(address) => self.rights_of(address.ip().to_canonical()),
            Address::Unix(_) => Rights::All,
        }
    }

    fn rights_of(&self, ip: IpAddr) -> Rights<'_> {
        let (mut allows_all, mut depends) = (false, false);
        for rule in self.0.iter().filter(|rule| rule.speaks_of(ip)) {
            match (rule.effect, rule.covers_all_topics()) {
                (Effect::Deny, true) => return Rights::Nothing,
                (Effect::Allow, true) => allows_all = true,
                (Effect::Deny, false) => depends = true,
                (Effect::Allow, false) => depends |= !allows_all,
            }
        }
        match (allows_all, depends) {
            (_, true) => Rights::ByTopic(self, ip),
            (true, false) => Rights::All,
            (false, false) => Rights::Nothing,
        }
    }

    fn permit(&self, ip: IpAddr, topic: &[u8]) -> bool {
        let mut is_allowed = false;
        for rule in self
            .0
            .iter()
            .filter(|rule| rule.speaks_of(ip) && rule.covers(topic))
        {
            match rule.effect {
                Effect::Deny => return false,
                Effect::Allow => is_allowed = true,
            }
        }
        is_allowed
    }
}

/// The rules for both deeds.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// Who may publish.
    pub publish: Rules,
    /// Who may subscribe.
    pub subscribe: Rules,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rule(from: &[&str], topics: &[&str], effect: Effect) -> Rule {
        Rule {
            from: from
                .iter()
                .map(|network| network.parse().unwrap())
                .collect(),
            topics: topics.iter().map(|&pattern| pattern.to_owned()).collect(),
            effect,
        }
    }

    fn may(rules: &Rules, from: &str, topic: &str) -> bool {
        let source = Source::Ip(format!("{from}:1").parse().unwrap());
        rules.rights(source).permit(topic.as_bytes())
    }

    #[test]
    fn no_rule_permits_nobody_and_a_denial_wins_in_any_order() {
        assert!(!may(&Rules::default(), "127.0.0.1", "a"));
        let mut rules = vec![
            rule(&["10.0.0.0/8"], &[">"], Effect::Allow),
            rule(&["10.1.0.0/16"], &["spam.>"], Effect::Deny),
        ];
        for _ in 0..2 {
            let all = Rules(rules.clone());
            assert!(may(&all, "10.1.0.1", "search.x") && may(&all, "10.2.0.1", "spam.x"));
            assert!(!may(&all, "10.1.0.1", "spam.x") && !may(&all, "11.0.0.1", "search.x"));
            rules.reverse();
        }
    }

    #[test]
    fn a_mapped_address_is_ipv4() {
        let rules = Rules(vec![rule(&["127.0.0.0/8"], &[">"], Effect::Allow)]);
        assert!(may(&rules, "[::ffff:127.0.0.1]", "a"));
    }

    fn any_rule() -> impl Strategy<Value = Rule> {
        let network = prop::sample::select(vec!["10.0.0.0/8", "10.1.0.0/16", "0.0.0.0/0"]);
        let pattern = prop::sample::select(vec![">", "a.>", "a", "*"]);
        let effect = prop::sample::select(vec![Effect::Allow, Effect::Deny]);
        (network, pattern, effect).prop_map(|(n, p, e)| rule(&[n], &[p], e))
    }

    proptest! {
        #[test]
        fn rights_say_what_the_rules_say(rules in prop::collection::vec(any_rule(), 0..5)) {
            let rules = Rules(rules);
            for from in ["10.1.0.1", "10.2.0.1", "9.9.9.9"] {
                for topic in ["a", "a.b", "b", "b.c"] {
                    let by_rules = rules.permit(from.parse().unwrap(), topic.as_bytes());
                    prop_assert_eq!(may(&rules, from, topic), by_rules);
                }
            }
        }

        #[test]
        fn adding_a_denial_adds_nothing(rules in prop::collection::vec(any_rule(), 0..5), mut denial in any_rule()) {
            denial.effect = Effect::Deny;
            let before = Rules(rules.clone());
            let after = Rules(rules.into_iter().chain([denial]).collect());
            for from in ["10.1.0.1", "9.9.9.9"] {
                for topic in ["a", "a.b", "b"] {
                    prop_assert!(may(&before, from, topic) || !may(&after, from, topic));
                }
            }
        }
    }
}
