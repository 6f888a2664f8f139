//! Who may publish and subscribe to what, by who sends.
//!
//! A rule speaks of networks, and of users and groups of this host. Whoever comes by a Unix socket
//! is on this host: what is said of its loopback addresses is said of all of them. What is said of
//! a user or group is said of those alone who run as it and come by a Unix socket. Who may use such
//! a socket at all is, besides, for the permissions of its file to say.
//!
//! Where the kernel does not tell whom a process runs as, it is none of those who are allowed and
//! any of those who are denied.
//!
//! The patterns of rules cover the bus's own topics as any others: `>` is everything. That nobody
//! else publishes those is no rule's matter.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use hailmary_proto::topic;
use ipnet::{IpNet, Ipv4Net};

use super::address::{Credentials, Peer};

/// What this host calls itself.
const LOOPBACKS: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::LOCALHOST),
    IpAddr::V6(Ipv6Addr::LOCALHOST),
];

/// Whether a rule gives or takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// What it matches is permitted, unless another rule denies it.
    Allow,
    /// What it matches is refused, whatever else says.
    Deny,
}

/// Whom a rule speaks of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whom {
    /// Hosts, an IPv4-mapped network as IPv4. One with a loopback address in it has all Unix
    /// sockets in it too.
    Network(IpNet),
    /// Processes of this user, over Unix sockets.
    User(u32),
    /// Processes of this group, over Unix sockets.
    Group(u32),
}

/// Why a text names nobody.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// It is nothing that a rule can speak of.
    #[error(
        "a source is an address or a network, such as \"::1\" or \"10.0.0.0/8\", \
         or for Unix sockets \"uid:1000\" or \"gid:1000\""
    )]
    Nobody,
    /// What stands behind `uid:` or `gid:` is no user's or group's number.
    #[error("behind uid: or gid: stands a number of 0 to {}", u32::MAX)]
    Number,
}

impl FromStr for Whom {
    type Err = NameError;

    /// An address, a network, `uid:NUMBER` or `gid:NUMBER`.
    fn from_str(text: &str) -> Result<Self, NameError> {
        if let Some(uid) = text.strip_prefix("uid:") {
            return number(uid).map(Whom::User);
        }
        if let Some(gid) = text.strip_prefix("gid:") {
            return number(gid).map(Whom::Group);
        }
        let address = || text.parse::<IpAddr>().map(IpNet::from);
        let network = text.parse().or_else(|_| address());
        let network = network.map_err(|_| NameError::Nobody)?;
        Ok(Whom::Network(canonical(network)))
    }
}

/// Digits and nothing else: what a number is to others, such as "+1", is a mistake here.
fn number(text: &str) -> Result<u32, NameError> {
    let is_plain = text.bytes().all(|byte| byte.is_ascii_digit());
    let number = text.parse().ok().filter(|_| is_plain);
    number.ok_or(NameError::Number)
}

/// An IPv4-mapped network as IPv4.
fn canonical(network: IpNet) -> IpNet {
    const MAPPED_BITS: u8 = 96;
    match network {
        IpNet::V6(v6) if v6.prefix_len() >= MAPPED_BITS => match v6.addr().to_ipv4_mapped() {
            Some(v4) => Ipv4Net::new(v4, v6.prefix_len() - MAPPED_BITS).map_or(network, IpNet::V4),
            None => network,
        },
        _ => network,
    }
}

impl Whom {
    /// Whether it takes credentials to tell.
    #[must_use]
    pub fn is_user_or_group(&self) -> bool {
        matches!(self, Whom::User(_) | Whom::Group(_))
    }

    /// Whether this is the peer. None where that cannot be told.
    fn is(&self, peer: Peer) -> Option<bool> {
        let of = |is_theirs: fn(Credentials, u32) -> bool, number: u32| match peer {
            Peer::Ip(_) => Some(false),
            Peer::Unix(credentials) => credentials.map(|told| is_theirs(told, number)),
        };
        match self {
            Whom::Network(network) => Some(match peer {
                Peer::Ip(ip) => network.contains(&ip),
                Peer::Unix(_) => LOOPBACKS.iter().any(|ip| network.contains(ip)),
            }),
            Whom::User(uid) => of(|told, uid| told.uid == uid, *uid),
            Whom::Group(gid) => of(|told, gid| told.gid == gid, *gid),
        }
    }
}

/// One rule: what these may do with the topics of these patterns.
#[derive(Clone, Debug)]
pub struct Rule {
    /// Whom it speaks of.
    pub from: Vec<Whom>,
    /// Checked patterns.
    pub topics: Vec<String>,
    /// Whether it gives or takes.
    pub effect: Effect,
}

impl Rule {
    fn speaks_of(&self, peer: Peer) -> bool {
        let in_doubt = self.effect == Effect::Deny;
        self.from
            .iter()
            .any(|whom| whom.is(peer).unwrap_or(in_doubt))
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

/// What one peer may do, as far as it can be told without a topic.
#[derive(Clone, Copy, Debug)]
pub enum Rights<'a> {
    /// Anything.
    All,
    /// Nothing.
    Nothing,
    /// It depends on the topic.
    ByTopic(&'a Rules, Peer),
}

impl Rights<'_> {
    /// Whether the deed is permitted with this topic.
    #[must_use]
    pub fn permit(&self, topic: &[u8]) -> bool {
        match self {
            Rights::All => true,
            Rights::Nothing => false,
            Rights::ByTopic(rules, peer) => rules.permit(*peer, topic),
        }
    }
}

impl Rules {
    /// What a peer may do.
    #[must_use]
    pub fn rights(&self, peer: Peer) -> Rights<'_> {
        let (mut allows_all, mut depends) = (false, false);
        for rule in self.0.iter().filter(|rule| rule.speaks_of(peer)) {
            match (rule.effect, rule.covers_all_topics()) {
                (Effect::Deny, true) => return Rights::Nothing,
                (Effect::Allow, true) => allows_all = true,
                (Effect::Deny, false) => depends = true,
                (Effect::Allow, false) => depends |= !allows_all,
            }
        }
        match (allows_all, depends) {
            (_, true) => Rights::ByTopic(self, peer),
            (true, false) => Rights::All,
            (false, false) => Rights::Nothing,
        }
    }

    fn permit(&self, peer: Peer, topic: &[u8]) -> bool {
        let mut is_allowed = false;
        for rule in self
            .0
            .iter()
            .filter(|rule| rule.speaks_of(peer) && rule.covers(topic))
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

impl Access {
    /// Whether any rule takes credentials to be followed.
    #[must_use]
    pub fn names_users(&self) -> bool {
        let rules = self.publish.0.iter().chain(&self.subscribe.0);
        let mut all = rules.flat_map(|rule| &rule.from);
        all.any(Whom::is_user_or_group)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use proptest::sample::{select, subsequence};

    fn rule(from: &[&str], topics: &[&str], effect: Effect) -> Rule {
        Rule {
            from: from.iter().map(|whom| whom.parse().unwrap()).collect(),
            topics: topics.iter().map(|&pattern| pattern.to_owned()).collect(),
            effect,
        }
    }

    fn ip(text: &str) -> Peer {
        let source = format!("{text}:1").parse().unwrap();
        crate::bus::address::Source::Ip(source).peer()
    }

    fn process(uid: u32, gid: u32) -> Peer {
        Peer::Unix(Some(Credentials { uid, gid }))
    }

    const UNTOLD: Peer = Peer::Unix(None);

    fn may(rules: &Rules, peer: Peer, topic: &str) -> bool {
        rules.rights(peer).permit(topic.as_bytes())
    }

    #[test]
    fn no_rule_permits_nobody_and_a_denial_wins_in_any_order() {
        for nobody in [ip("127.0.0.1"), ip("[::1]"), process(0, 0), UNTOLD] {
            assert!(!may(&Rules::default(), nobody, "a"));
        }
        let mut rules = vec![
            rule(&["10.0.0.0/8"], &[">"], Effect::Allow),
            rule(&["10.1.0.0/16"], &["spam.>"], Effect::Deny),
        ];
        for _ in 0..2 {
            let all = Rules(rules.clone());
            let [some, others, strangers] = ["10.1.0.1", "10.2.0.1", "11.0.0.1"].map(ip);
            assert!(may(&all, some, "search.x") && may(&all, others, "spam.x"));
            assert!(!may(&all, some, "spam.x") && !may(&all, strangers, "search.x"));
            assert!(!may(&all, process(0, 0), "search.x"), "not on this host");
            rules.reverse();
        }
    }

    #[test]
    fn a_mapped_address_is_ipv4_and_so_is_a_mapped_network() {
        for network in ["127.0.0.0/8", "::ffff:127.0.0.0/104", "::ffff:127.0.0.1"] {
            let rules = Rules(vec![rule(&[network], &[">"], Effect::Allow)]);
            assert!(may(&rules, ip("[::ffff:127.0.0.1]"), "a"), "{network}");
            assert!(may(&rules, ip("127.0.0.1"), "a"), "{network}");
            assert!(!may(&rules, ip("[::1]"), "a"), "{network}");
        }
        let other = "2001:db8::/96".parse().unwrap();
        assert_eq!(canonical(other), other);
    }

    #[test]
    fn what_is_said_of_loopback_is_said_of_unix_sockets() {
        for here in ["127.0.0.1", "127.0.0.0/8", "0.0.0.0/0", "::1", "::/0"] {
            let allow = rule(&[here], &[">"], Effect::Allow);
            for peer in [process(0, 0), process(1000, 100), UNTOLD] {
                assert!(may(&Rules(vec![allow.clone()]), peer, "a"), "{here}");
                // A denial of either address takes what the other was given.
                for denied in ["127.0.0.1", "::1"] {
                    let deny = rule(&[denied], &["a"], Effect::Deny);
                    let rules = Rules(vec![allow.clone(), deny]);
                    assert!(!may(&rules, peer, "a") && may(&rules, peer, "b"));
                }
            }
        }
        for elsewhere in [
            "127.0.0.2",
            "127.0.0.0/32",
            "10.0.0.0/8",
            "::2",
            "fe80::/10",
        ] {
            let allow = Rules(vec![rule(&[elsewhere], &[">"], Effect::Allow)]);
            assert!(!may(&allow, process(0, 0), "a") && !may(&allow, UNTOLD, "a"));
        }
    }

    #[test]
    fn a_user_or_group_is_let_in_over_unix_alone() {
        for (whom, others) in [
            ("uid:1000", process(1001, 1000)),
            ("gid:100", process(100, 7)),
        ] {
            let allow = Rules(vec![rule(&[whom], &[">"], Effect::Allow)]);
            assert!(may(&allow, process(1000, 100), "a"));
            for peer in [others, UNTOLD, ip("127.0.0.1"), ip("[::1]")] {
                assert!(!may(&allow, peer, "a"), "{whom} {peer:?}");
            }
            let here = rule(&["127.0.0.1"], &[">"], Effect::Allow);
            let deny = rule(&[whom], &[">"], Effect::Deny);
            let rules = Rules(vec![here, deny]);
            assert!(may(&rules, others, "a") && may(&rules, ip("127.0.0.1"), "a"));
            assert!(!may(&rules, process(1000, 100), "a"));
            assert!(!may(&rules, UNTOLD, "a"), "it may be the one");
        }
    }

    #[test]
    fn only_numbers_name_users() {
        let parse = |text: &str| text.parse::<Whom>();
        assert_eq!(parse("uid:0"), Ok(Whom::User(0)));
        assert_eq!(parse("gid:4294967295"), Ok(Whom::Group(u32::MAX)));
        for number in [
            "",
            "-1",
            "+1",
            "4294967296",
            "1 ",
            "0x1",
            "root",
            "1,2",
            "١",
        ] {
            assert_eq!(parse(&format!("uid:{number}")), Err(NameError::Number));
            assert_eq!(parse(&format!("gid:{number}")), Err(NameError::Number));
        }
        for nobody in [
            "",
            "unix",
            "1000",
            "UID:1",
            "uid",
            "10/8",
            "10.0.0.0/33",
            "10.0.0.0/",
            "10.0.0",
            "10.0.0.0/-1",
            "256.0.0.1",
            "::/129",
            "::g",
            " ::1",
            "localhost",
            "10.0.0.1:7277",
            "*",
        ] {
            assert_eq!(parse(nobody), Err(NameError::Nobody), "{nobody:?}");
        }
    }

    const WHOM: [&str; 11] = [
        "10.0.0.0/8",
        "10.1.0.0/16",
        "127.0.0.0/8",
        "0.0.0.0/0",
        "::ffff:10.1.0.0/112",
        "::1",
        "::/0",
        "uid:1000",
        "uid:0",
        "gid:1000",
        "gid:100",
    ];

    /// Who a rule speaks of by its text, by which the rules are held to what they say.
    fn says(whom: &str, effect: Effect, peer: Peer) -> bool {
        let in_doubt = effect == Effect::Deny;
        match peer {
            Peer::Ip(IpAddr::V4(v4)) => match whom {
                "0.0.0.0/0" => true,
                "127.0.0.0/8" => v4.octets()[0] == 127,
                "10.0.0.0/8" => v4.octets()[0] == 10,
                "10.1.0.0/16" | "::ffff:10.1.0.0/112" => v4.octets()[..2] == [10, 1],
                _ => false,
            },
            Peer::Ip(IpAddr::V6(v6)) => whom == "::/0" || (whom == "::1" && v6.is_loopback()),
            Peer::Unix(told) => match whom {
                "127.0.0.0/8" | "0.0.0.0/0" | "::1" | "::/0" => true,
                "uid:1000" => told.map_or(in_doubt, |told| told.uid == 1000),
                "uid:0" => told.map_or(in_doubt, |told| told.uid == 0),
                "gid:1000" => told.map_or(in_doubt, |told| told.gid == 1000),
                "gid:100" => told.map_or(in_doubt, |told| told.gid == 100),
                _ => false,
            },
        }
    }

    type Said = (Vec<&'static str>, &'static str, Effect);

    fn any_said() -> impl Strategy<Value = Said> {
        let effect = select(vec![Effect::Allow, Effect::Deny]);
        let pattern = select(vec![">", "a.>", "a", "*"]);
        (subsequence(WHOM.to_vec(), 0..4), pattern, effect)
    }

    fn rules(said: &[Said]) -> Rules {
        let rules = said.iter();
        Rules(
            rules
                .map(|(from, topic, effect)| rule(from, &[topic], *effect))
                .collect(),
        )
    }

    /// Sources of every kind, the processes as they are told of where that is asked.
    fn peers(asked: bool) -> Vec<Peer> {
        let hosts = [
            "10.1.0.1",
            "10.2.0.1",
            "127.0.0.1",
            "9.9.9.9",
            "[::ffff:10.1.0.1]",
        ];
        let hosts = hosts.into_iter().chain(["[::1]", "[2001:db8::1]"]).map(ip);
        let ids = [(0, 0), (1000, 1000), (1000, 100), (7, 1000), (7, 7)];
        let processes = ids.map(|(uid, gid)| if asked { process(uid, gid) } else { UNTOLD });
        hosts.chain(processes).chain([UNTOLD]).collect()
    }

    const TOPICS: [&str; 4] = ["a", "a.b", "b", "b.c"];

    proptest! {
        #[test]
        fn rights_say_what_the_rules_say(said in prop::collection::vec(any_said(), 0..5)) {
            let rules = rules(&said);
            for peer in peers(true) {
                for topic in TOPICS {
                    let matching = |effect: Effect| said.iter().any(|(from, pattern, its)| {
                        *its == effect
                            && topic::matches(pattern.as_bytes(), topic.as_bytes())
                            && from.iter().any(|whom| says(whom, effect, peer))
                    });
                    let expected = matching(Effect::Allow) && !matching(Effect::Deny);
                    prop_assert_eq!(may(&rules, peer, topic), expected, "{:?} {}", peer, topic);
                }
            }
        }

        #[test]
        fn adding_a_denial_adds_nothing(
            said in prop::collection::vec(any_said(), 0..5),
            (from, pattern, _) in any_said(),
            place in 0..5_usize,
        ) {
            let mut more = said.clone();
            more.insert(place.min(said.len()), (from, pattern, Effect::Deny));
            let [before, after] = [&said, &more].map(|said| Access {
                publish: rules(said),
                subscribe: Rules::default(),
            });
            // The denial may be the first that has the kernel asked who sends.
            let asked = [&before, &after].map(|access| peers(access.names_users()));
            let [told_before, told_after] = asked;
            for (one, same) in told_before.into_iter().zip(told_after) {
                for topic in TOPICS {
                    let is_new = may(&after.publish, same, topic) && !may(&before.publish, one, topic);
                    prop_assert!(!is_new, "{:?} {}", same, topic);
                }
            }
        }
    }
}
