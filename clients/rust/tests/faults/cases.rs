//! The cases as they are written, and what is compared with them.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::Deserialize;

use crate::bus::{LEASE_MS, Way};

/// What this client is called in the cases.
const CLIENT: &str = "rust";

/// All of them, in the repository's root.
pub(crate) fn load() -> Vec<Case> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let text = fs::read_to_string(root.join("tests/vectors/faults.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

#[derive(Debug, Deserialize)]
#[serde(tag = "side", rename_all = "snake_case")]
pub(crate) enum Case {
    Publisher(PublisherCase),
    Subscriber(SubscriberCase),
    /// Run by the Python client's tests, for both clients' commands.
    Command(CommandCase),
    Program(Plan),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PublisherCase {
    name: String,
    #[serde(rename = "why")]
    _why: String,
    over: Vec<String>,
    #[serde(default)]
    not_for: BTreeMap<String, String>,
    pub(crate) steps: Vec<PublisherStep>,
    pub(crate) stats: Counts,
    pub(crate) frames: Vec<Row>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SubscriberCase {
    name: String,
    #[serde(rename = "why")]
    _why: String,
    over: Vec<String>,
    #[serde(default)]
    not_for: BTreeMap<String, String>,
    pub(crate) steps: Vec<SubscriberStep>,
    pub(crate) stats: Counts,
    #[serde(default)]
    pub(crate) requests: Vec<String>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct CommandCase {
    name: String,
    over: Vec<String>,
}

/// Many publishers at the real program.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Plan {
    name: String,
    #[serde(rename = "why")]
    _why: String,
    over: Vec<String>,
    pub(crate) publishers: usize,
    pub(crate) at_once: usize,
    pub(crate) bus: BTreeMap<String, u64>,
    pub(crate) memory_mib_max: u64,
}

impl Case {
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Publisher(case) => &case.name,
            Self::Subscriber(case) => &case.name,
            Self::Command(case) => &case.name,
            Self::Program(plan) => &plan.name,
        }
    }

    pub(crate) fn over(&self) -> &[String] {
        match self {
            Self::Publisher(case) => &case.over,
            Self::Subscriber(case) => &case.over,
            Self::Command(case) => &case.over,
            Self::Program(plan) => &plan.over,
        }
    }

    pub(crate) fn is_not_for_us(&self) -> bool {
        match self {
            Self::Publisher(case) => case.not_for.contains_key(CLIENT),
            Self::Subscriber(case) => case.not_for.contains_key(CLIENT),
            Self::Command(_) | Self::Program(_) => false,
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum PublisherStep {
    BusStarts,
    BusStops,
    BusIsKilled,
    BusRestarts,
    BusMoves,
    BusFull,
    BusReads,
    Publish {
        #[serde(default = "one")]
        events: u64,
        wall_clock_unix_nano: Option<String>,
    },
    PublishInvalid {
        topic: String,
    },
    PublishTooLarge,
    Batch {
        events: u64,
        #[serde(default)]
        payload_bytes: usize,
        #[serde(default)]
        invalid: u64,
        #[serde(default)]
        too_large: u64,
    },
    AnotherPublisher {
        events: u64,
    },
    ForkAndPublish {
        events: u64,
        stats: Counts,
    },
    CloseDescriptor,
    ReplaceDescriptor,
    NoDescriptors,
    DescriptorsAgain,
    Close,
    LogToFullDisk,
    Stats {
        are: Counts,
    },
}

#[derive(Debug, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum SubscriberStep {
    Subscribe,
    BusStarts,
    BusRestarts,
    BusMoves,
    BusStandsStill,
    BusGoesOn,
    BusDrops {
        events: u64,
    },
    BusRefuses {
        reason: String,
    },
    BusAdmits,
    Lease {
        #[serde(default = "lease_ms")]
        ms: u32,
    },
    LeaseLapses,
    Events {
        events: u64,
        #[serde(default)]
        way: Way,
    },
    Release,
    Stranger {
        sends: String,
    },
    TimePasses {
        ms: u64,
    },
    ClockJumps {
        ms: i64,
    },
    Close,
    CloseDescriptor,
    ReceiveFails,
    Report {
        received: u64,
        lost: u64,
    },
    Stats {
        are: Counts,
    },
}

fn one() -> u64 {
    1
}

fn lease_ms() -> u32 {
    LEASE_MS
}

/// A number, or its bounds, both included.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(untagged)]
pub(crate) enum Count {
    Exactly(u64),
    Between(Bounds),
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Bounds {
    #[serde(default)]
    min: u64,
    #[serde(default = "no_bound")]
    max: u64,
}

fn no_bound() -> u64 {
    u64::MAX
}

impl Count {
    pub(crate) fn is_met_by(self, count: u64) -> bool {
        match self {
            Self::Exactly(wanted) => count == wanted,
            Self::Between(Bounds { min, max }) => (min..=max).contains(&count),
        }
    }
}

/// A frame that the bus got: the sender's letter, sequence, dropped and events of its
/// stamp, and where it matters the first event's time.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(crate) enum Row {
    Timed(char, Count, Count, Count, String),
    Plain(char, Count, Count, Count),
}

/// Counts by their names; what is not named is 0.
#[derive(Debug, Deserialize)]
pub(crate) struct Counts(BTreeMap<String, Count>);

impl Counts {
    /// Fails the test where a count is not as wanted, or where there is none of a name.
    pub(crate) fn check(&self, counts: &[(&str, u64)]) {
        let is_counted = |name: &str| counts.iter().any(|&(counted, _)| counted == name);
        assert!(self.0.keys().all(|name| is_counted(name)), "no such count");
        for &(name, count) in counts {
            let wanted = self.0.get(name).copied().unwrap_or(Count::Exactly(0));
            assert!(
                wanted.is_met_by(count),
                "{name} is {count}, not {wanted:?}: {counts:?}"
            );
        }
    }
}
