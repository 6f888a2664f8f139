//! What an operator decides, as the oracle reads it and as the core is given it.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use hailmary::bus::access::{Access, Effect, Rule as CoreRule, Rules};
use hailmary::bus::address::Address;
use hailmary::bus::leases::LeaseLimits;
use hailmary::bus::policies::{Priority, TopicPolicy};
use hailmary::bus::sample::Sample;
use hailmary::bus::subscribers::Terms;
use hailmary::bus::{Settings, StaticSubscriber};

use super::rng::Rng;
use super::wire;

/// A rule of access for the hosts of one kind.
#[derive(Clone, Debug)]
pub struct Rule {
    pub whom: Whom,
    pub topic: &'static str,
    pub effect: Effect,
}

/// Whom rules speak of.
#[derive(Clone, Copy, Debug)]
pub enum Whom {
    Everybody,
    /// The IPv4 hosts whose last byte is at least this.
    From(u8),
    Ipv6,
}

impl Whom {
    /// As networks of powers of two: the last byte is one of 0, 64, 128, 192.
    fn networks(self) -> Vec<String> {
        match self {
            Whom::Everybody => vec!["0.0.0.0/0".into(), "::/0".into()],
            Whom::From(least) => (least / 64..4)
                .map(|quarter| format!("10.0.0.{}/26", u32::from(quarter) * 64))
                .collect(),
            Whom::Ipv6 => vec!["fd00::/8".into()],
        }
    }

    fn is(self, ip: IpAddr) -> bool {
        match (self, ip) {
            (Whom::Everybody, _) => true,
            (Whom::From(least), IpAddr::V4(ip)) => {
                let [a, b, c, last] = ip.octets();
                (a, b, c) == (10, 0, 0) && last >= least / 64 * 64
            }
            (Whom::Ipv6, IpAddr::V6(_)) => true,
            _ => false,
        }
    }
}

/// A static subscriber.
#[derive(Clone, Debug, PartialEq)]
pub struct Static {
    pub name: String,
    pub address: SocketAddr,
    pub topics: Vec<String>,
    pub frame_bytes_max: Option<u32>,
    pub terms: Asked,
}

/// On what terms somebody asks for events.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Asked {
    pub group: String,
    /// 0: all.
    pub sample: f64,
    /// 0: no limit.
    pub events_per_second: u32,
}

/// A policy.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    pub pattern: String,
    pub events_per_second: Option<u32>,
    pub priority: Priority,
    pub age_max: Option<Duration>,
}

/// All of it.
#[derive(Clone, Debug)]
pub struct Plan {
    pub publish: Vec<Rule>,
    pub subscribe: Vec<Rule>,
    pub limits: LeaseLimits,
    pub leased_series_max: usize,
    pub statics: Vec<Static>,
    pub policies: Vec<Policy>,
    pub own: Vec<SocketAddr>,
}

/// What somebody may do, without a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Right {
    Nothing,
    Something,
}

/// Whether rules permit anything at all: not where one denies everything, nor where none speaks.
pub fn right(rules: &[Rule], ip: IpAddr) -> Right {
    let mut of_host = rules.iter().filter(|rule| rule.whom.is(ip)).peekable();
    let speaks = of_host.peek().is_some();
    let denied = of_host.any(|rule| rule.effect == Effect::Deny && rule.topic == ">");
    match speaks && !denied {
        true => Right::Something,
        false => Right::Nothing,
    }
}

/// Whether rules permit a deed with a topic: an allowance speaks of it and no denial.
pub fn permits(rules: &[Rule], ip: IpAddr, topic: &str) -> bool {
    let says = |effect| {
        let mut rules = rules.iter();
        rules.any(|rule| {
            rule.effect == effect && rule.whom.is(ip) && wire::covers(rule.topic, topic)
        })
    };
    says(Effect::Allow) && !says(Effect::Deny)
}

/// Topics that publishers choose from, those that are none among them.
pub const TOPICS: [&str; 14] = [
    "a",
    "a.b",
    "a.b.c",
    "a.c",
    "b.c",
    "search.x",
    "search.y.z",
    "spam.1",
    "spam.2",
    "secret.k",
    "_hailmary.canary.0",
    "a..b",
    "no topic",
    "x.y:z/-_.0",
];

/// Patterns that subscribers choose from.
pub const PATTERNS: [&str; 12] = [
    ">",
    "a.>",
    "a.*",
    "*.b",
    "a",
    "b.c",
    "search.>",
    "spam.*",
    "secret.>",
    "_hailmary.>",
    "a.*.c",
    "*",
];

const GROUPS: [&str; 3] = ["g", "workers", "h"];

impl Asked {
    /// Mostly nothing special.
    pub fn draw(rng: &mut Rng, odd: u32) -> Self {
        let mut asked = Self::default();
        if rng.chance(odd) {
            asked.group = (*rng.pick(&GROUPS)).to_owned();
        }
        if rng.chance(odd / 2) {
            asked.sample = *rng.pick(&[0.5, 0.25, 0.9, 1.0]);
        }
        if rng.chance(odd / 2) {
            asked.events_per_second = *rng.pick(&[1, 5, 50]);
        }
        asked
    }
}

/// Some patterns, each perhaps twice.
pub fn draw_patterns(rng: &mut Rng) -> Vec<String> {
    (0..rng.range(1, 3))
        .map(|_| (*rng.pick(&PATTERNS)).to_owned())
        .collect()
}

impl Plan {
    /// What lets everybody do anything, within bounds.
    pub fn open(rng: &mut Rng, own: SocketAddr) -> Self {
        let everybody = Rule {
            whom: Whom::Everybody,
            topic: ">",
            effect: Effect::Allow,
        };
        let lease_ms_max = rng.range(2_000, 20_000) as u32;
        Self {
            publish: vec![everybody.clone()],
            subscribe: vec![everybody],
            limits: LeaseLimits {
                leases_max: 64,
                leases_per_origin_max: 16,
                patterns_max: 3,
                group_members_max: 16,
                lease_ms: rng.range(1_000, u64::from(lease_ms_max)) as u32,
                lease_ms_max,
            },
            leased_series_max: rng.index(8),
            statics: Vec::new(),
            policies: Vec::new(),
            own: vec![own],
        }
    }

    /// Another one: `odd` says how often something is out of the ordinary.
    pub fn draw(rng: &mut Rng, own: SocketAddr, sinks: &[SocketAddr], odd: u32) -> Self {
        let mut plan = Self::open(rng, own);
        let draw = |rng: &mut Rng| Rule {
            whom: *rng.pick(&[Whom::Everybody, Whom::From(64), Whom::From(128), Whom::Ipv6]),
            topic: rng.pick::<&str>(&[">", "secret.>", "a.>", "spam.*", "_hailmary.>"]),
            effect: *rng.pick(&[Effect::Allow, Effect::Deny, Effect::Deny]),
        };
        for rules in [&mut plan.publish, &mut plan.subscribe] {
            while rng.chance(odd) {
                let rule = draw(rng);
                rules.push(rule);
            }
            if rng.chance(odd / 4) {
                rules.remove(0);
            }
        }
        if rng.chance(odd.max(300_000)) {
            plan.limits.leases_max = rng.index(9);
            plan.limits.leases_per_origin_max = 1 + rng.index(3);
            plan.limits.patterns_max = 1 + rng.index(3);
            plan.limits.group_members_max = 1 + rng.index(3);
        }
        for (number, sink) in sinks.iter().enumerate() {
            if rng.chance(500_000) {
                plan.statics.push(Static {
                    name: format!("static-{number}"),
                    address: *sink,
                    topics: draw_patterns(rng),
                    frame_bytes_max: rng.chance(odd).then(|| rng.range(508, 3_000) as u32),
                    terms: Asked::draw(rng, odd),
                });
            }
        }
        while rng.chance(odd) && plan.policies.len() < 4 {
            let pattern = (*rng.pick(&PATTERNS)).to_owned();
            if plan.policies.iter().all(|policy| policy.pattern != pattern) {
                plan.policies.push(Policy {
                    pattern,
                    events_per_second: rng.chance(500_000).then(|| rng.range(1, 100) as u32),
                    priority: *rng.pick(&[Priority::Low, Priority::Normal, Priority::High]),
                    age_max: rng
                        .chance(200_000)
                        .then(|| Duration::from_millis(rng.range(1, 500))),
                });
            }
        }
        plan
    }

    /// As the core takes it.
    pub fn settings(&self) -> Settings {
        Settings {
            access: Access {
                publish: core_rules(&self.publish),
                subscribe: core_rules(&self.subscribe),
            },
            own_sources: self.own.iter().copied().map(Address::Ip).collect(),
            leases: self.limits,
            leased_series_max: self.leased_series_max,
            subscribers: self.statics.iter().map(core_static).collect(),
            topic_policies: self.policies.iter().map(core_policy).collect(),
        }
    }
}

fn core_rules(rules: &[Rule]) -> Rules {
    let rule = |rule: &Rule| CoreRule {
        from: rule
            .whom
            .networks()
            .iter()
            .map(|net| net.parse().unwrap())
            .collect(),
        topics: vec![rule.topic.to_owned()],
        effect: rule.effect,
    };
    Rules(rules.iter().map(rule).collect())
}

fn core_static(one: &Static) -> StaticSubscriber {
    let Asked {
        group,
        sample,
        events_per_second,
    } = &one.terms;
    StaticSubscriber {
        name: one.name.clone(),
        address: Address::Ip(one.address),
        topics: one.topics.clone(),
        frame_bytes_max: one.frame_bytes_max,
        terms: Terms {
            group: (!group.is_empty()).then(|| group.as_str().into()),
            sample: Sample::of_share(*sample).unwrap_or_default(),
            events_per_second: (*events_per_second > 0).then_some(*events_per_second),
        },
    }
}

fn core_policy(policy: &Policy) -> TopicPolicy {
    TopicPolicy {
        pattern: policy.pattern.clone(),
        events_per_second: policy.events_per_second,
        priority: policy.priority,
        age_max: policy.age_max,
    }
}
