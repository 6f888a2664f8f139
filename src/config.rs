//! Configuration: what the file says, checked once, and turned into the program's own types.
//!
//! [`Config`] is the file's shape, defaults filled in. [`Config::check`] finds everything that is
//! impossible in it, by line, and makes [`Plan`], which the rest of the program works with.

use std::collections::HashSet;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hailmary_proto::topic;
use hailmary_proto::write::DATAGRAM_BYTES_MAX;
use serde::{Deserialize, Serialize};
use toml::Spanned;

use crate::bus::access::{Access, Effect, Rule, Rules, Whom};
use crate::bus::address::Address;
use crate::bus::leases::{LeaseLimits, is_legal_name};
use crate::bus::limits::{FRAME_BYTES_MIN, LEASE_MS_MAX, LEASE_MS_MIN};
use crate::bus::policies::{Priority, TopicPolicy};
use crate::bus::sample::Sample;
use crate::bus::subscribers::Terms;
use crate::bus::{Settings, StaticSubscriber};
use crate::canary;
use crate::confine::Mode;
use crate::net::listener::ListenAddress;
use crate::net::sys::TELLS_CREDENTIALS;
use crate::printable::printable;

/// Bytes of a Unix socket's path: what `sun_path` holds besides its end (unix(7)).
const PATH_BYTES_MAX: usize = 107;

/// The longest that a busy loop may wait for a fuller batch, in µs: past it people notice.
const LINGER_US_MAX: u32 = 10_000;

/// The most data threads: more than publishers' flows spread evenly over.
const WORKERS_MAX: u32 = 64;

/// Bounds of a socket buffer, in bytes.
const BUFFER_BYTES: std::ops::RangeInclusive<usize> = 4_096..=1 << 30;

/// Bounds of the time between a canary's probes, in ms: at the shortest a hundred a second, which
/// no bus notices, and at the longest often enough to be called watching.
const CANARY_INTERVAL_MS: std::ops::RangeInclusive<u32> = 10..=3_600_000;

/// Bounds of the members of one group. Each event with a key is offered to all of them, at about
/// 2 ns a member.
const GROUP_MEMBERS: std::ops::RangeInclusive<usize> = 1..=4_096;

/// Bounds of the age of events, in ms: at the longest what clocks that differ are good for.
const MAX_AGE_MS: std::ops::RangeInclusive<u64> = 1..=86_400_000;

/// The longest file that is read, in bytes: room for thousands of subscribers and rules, and little
/// memory for what was named by mistake and may have no end.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Problems that are told of one file: more than anybody mends at once, and few lines of a log
/// where a file is wrong from its first line to its last.
const PROBLEMS_MAX: usize = 100;

/// The file.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where to listen.
    pub listen: Listen,
    /// How the data thread works.
    pub r#loop: Loop,
    /// Who may publish and subscribe.
    pub access: AccessRules,
    /// Bounds.
    pub limits: Limits,
    /// Probes that the bus sends itself.
    pub canary: Canary,
    /// What the bus gives up once its sockets are bound.
    pub confine: Confine,
    /// Static members of subscriber sets.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub subscriber: Vec<StaticEntry>,
    /// What holds for the topics of a pattern: a count of their own, a priority.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub topic: Vec<TopicEntry>,
}

/// `[listen]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Listen {
    /// UDP addresses.
    pub udp: Vec<Spanned<String>>,
    /// Paths of Unix datagram sockets.
    pub unix: Vec<Spanned<PathBuf>>,
    /// The admin's HTTP address, or `off`.
    pub admin: Spanned<String>,
    /// Whether `POST /-/reload` from this host has the configuration read anew.
    pub admin_reload: bool,
}

impl Default for Listen {
    fn default() -> Self {
        Self {
            udp: vec![unspanned("127.0.0.1:7277".to_owned())],
            unix: Vec::new(),
            admin: unspanned("127.0.0.1:7278".to_owned()),
            admin_reload: false,
        }
    }
}

/// `[loop]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Loop {
    /// Data threads, each with its own sockets on the UDP ports.
    pub workers: Spanned<u32>,
    /// How long a busy loop waits for a fuller batch, in µs.
    pub linger_us: Spanned<u32>,
    /// Receive buffer of each listener, in bytes.
    pub receive_buffer_bytes: Spanned<usize>,
    /// Send buffer of each egress socket, in bytes.
    pub send_buffer_bytes: Spanned<usize>,
}

impl Default for Loop {
    fn default() -> Self {
        Self {
            workers: unspanned(1),
            linger_us: unspanned(500),
            receive_buffer_bytes: unspanned(8 << 20),
            send_buffer_bytes: unspanned(8 << 20),
        }
    }
}

/// `[access]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct AccessRules {
    /// Who may publish.
    pub publish: Vec<AccessRule>,
    /// Who may subscribe.
    pub subscribe: Vec<AccessRule>,
}

impl Default for AccessRules {
    fn default() -> Self {
        let loopback = AccessRule {
            from: ["127.0.0.0/8", "::1"]
                .map(|network| unspanned(network.to_owned()))
                .into(),
            topics: vec![unspanned(">".to_owned())],
            deny: false,
        };
        Self {
            publish: vec![loopback.clone()],
            subscribe: vec![loopback],
        }
    }
}

/// One rule of `[access]`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct AccessRule {
    /// Networks or addresses, and users or groups of this host.
    pub from: Vec<Spanned<String>>,
    /// Patterns.
    pub topics: Vec<Spanned<String>>,
    /// Whether the rule takes instead of gives.
    #[serde(default)]
    pub deny: bool,
}

/// `[limits]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Leases in all.
    pub leases: usize,
    /// Leases of one host: an IPv4 address, an IPv6 /64 network, or all Unix sockets.
    pub leases_per_source: usize,
    /// Patterns of one subscriber.
    pub patterns_per_subscriber: usize,
    /// Members of one group.
    pub members_per_group: Spanned<usize>,
    /// Names by lease that have a series of their own in the metrics.
    pub subscriber_series: usize,
    /// The lease of a subscriber that does not say, in ms.
    pub lease_ms: Spanned<u32>,
    /// The longest lease, in ms.
    pub lease_ms_max: Spanned<u32>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            leases: 4_096,
            leases_per_source: 1_024,
            patterns_per_subscriber: 64,
            members_per_group: unspanned(256),
            subscriber_series: 256,
            lease_ms: unspanned(30_000),
            lease_ms_max: unspanned(LEASE_MS_MAX),
        }
    }
}

/// `[canary]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Canary {
    /// Time from one probe of a listener to the next, in ms. 0: no probes.
    pub interval_ms: Spanned<u32>,
}

impl Default for Canary {
    fn default() -> Self {
        Self {
            interval_ms: unspanned(0),
        }
    }
}

/// `[confine]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Confine {
    /// How much of it the bus insists on: `best-effort`, `required` or `off`.
    pub mode: Spanned<Mode>,
}

impl Default for Confine {
    fn default() -> Self {
        Self {
            mode: unspanned(Mode::default()),
        }
    }
}

/// `[[subscriber]]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct StaticEntry {
    /// Its name in metrics.
    pub name: Spanned<String>,
    /// Where its datagrams go.
    pub address: Spanned<String>,
    /// What it gets.
    pub topics: Vec<Spanned<String>>,
    /// The largest datagram it takes, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_frame_bytes: Option<Spanned<u32>>,
    /// Of all members of a group, one gets each event.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<Spanned<String>>,
    /// The share of events that it gets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sample: Option<Spanned<f64>>,
    /// How many events it gets at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub events_per_second: Option<Spanned<u64>>,
}

/// `[[topic]]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct TopicEntry {
    /// Which topics: the first entry that matches counts.
    pub r#match: Spanned<String>,
    /// How many of their events pass, all topics of the entry together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub events_per_second: Option<Spanned<u64>>,
    /// What becomes of them when the bus cannot keep up: `low`, `normal` or `high`.
    #[serde(default)]
    pub priority: Priority,
    /// How old their events may be, in ms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_age_ms: Option<Spanned<u64>>,
}

/// What the program is to do.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Where to listen.
    pub listen: Vec<ListenAddress>,
    /// Where the admin listens, if at all.
    pub admin: Option<SocketAddr>,
    /// Whether the admin reloads when asked to from this host.
    pub admin_reload: bool,
    /// Data threads.
    pub workers: u32,
    /// How long a busy loop waits for a fuller batch.
    pub linger: Duration,
    /// Receive buffer of each listener.
    pub receive_buffer_bytes: usize,
    /// Send buffer of each egress socket.
    pub send_buffer_bytes: usize,
    /// How much the bus insists on giving up what it does not need.
    pub confine: Mode,
    /// Time from one canary's probe to the next; none where the bus sends itself no probes.
    pub canary_interval: Option<Duration>,
    /// For the core.
    pub settings: Settings,
}

/// One thing that is wrong, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The line in the file, from 1; none where a default or a flag is at fault.
    pub line: Option<usize>,
    /// What is wrong and what is allowed.
    pub message: String,
}

/// Everything that is wrong with a configuration.
#[derive(Debug, thiserror::Error)]
pub struct ConfigError {
    file: String,
    problems: Vec<Problem>,
    /// Problems past the bound.
    untold: usize,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().enumerate() {
            let newline = if index > 0 { "\n" } else { "" };
            match problem.line {
                Some(line) => write!(f, "{newline}{}:{line}: {}", self.file, problem.message)?,
                None => write!(f, "{newline}{}: {}", self.file, problem.message)?,
            }
        }
        match self.untold {
            0 => Ok(()),
            untold => write!(f, "\n{}: and {untold} more", self.file),
        }
    }
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    ///
    /// All that is wrong with it, with lines.
    pub fn load(file: &Path) -> Result<(Self, Plan), ConfigError> {
        Self::load_opened(file, File::open(file))
    }

    /// The same of a regular file alone, which does not wait for whoever writes it.
    ///
    /// # Errors
    ///
    /// All that is wrong with it, with lines.
    pub fn load_regular(file: &Path) -> Result<(Self, Plan), ConfigError> {
        Self::load_opened(file, open_regular(file))
    }

    fn load_opened(file: &Path, opened: io::Result<File>) -> Result<(Self, Plan), ConfigError> {
        let name = file.display().to_string();
        let text = opened.and_then(read_text);
        let text = text.map_err(|error| unreadable(&name, &error))?;
        Self::parse(&name, &text)
    }

    /// Reads and checks a file's text.
    ///
    /// # Errors
    ///
    /// All that is wrong with it, with lines.
    pub fn parse(name: &str, text: &str) -> Result<(Self, Plan), ConfigError> {
        let fail = |problems| ConfigError {
            file: name.to_owned(),
            problems,
            untold: 0,
        };
        let is_blank = |line: &str| line.trim().is_empty() || line.trim().starts_with('#');
        if text.lines().all(is_blank) {
            let message = "the file is empty: start from what `hailmary serve --print-config` \
                           prints, or leave --config out";
            return Err(fail(vec![Problem {
                line: None,
                message: message.to_owned(),
            }]));
        }
        let config: Config = toml::from_str(text).map_err(|error| {
            let line = error.span().map(|span| line_of(text, span.start));
            fail(vec![Problem {
                line,
                message: printable(error.message()),
            }])
        })?;
        let plan = config.check(name, text)?;
        Ok((config, plan))
    }

    /// Turns it into what the program works with.
    ///
    /// # Errors
    ///
    /// All that is impossible in it.
    pub fn check(&self, name: &str, text: &str) -> Result<Plan, ConfigError> {
        let mut checker = Checker {
            text,
            problems: Vec::new(),
            untold: 0,
        };
        let plan = checker.plan(self);
        match checker.problems {
            problems if problems.is_empty() => Ok(plan),
            problems => Err(ConfigError {
                file: name.to_owned(),
                problems,
                untold: checker.untold,
            }),
        }
    }
}

/// Opens a file if it is a regular one. Others are not waited for, as a FIFO is for its writer.
fn open_regular(file: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(libc::O_NONBLOCK);
    let file = options.open(file)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::other("it is no regular file")),
    }
}

fn read_text(file: File) -> io::Result<String> {
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        let message = format!("it is longer than {FILE_BYTES_MAX} bytes");
        return Err(io::Error::other(message));
    }
    String::from_utf8(bytes).map_err(|error| {
        let valid = error.utf8_error().valid_up_to();
        let message = format!("it is no UTF-8 after its first {valid} bytes");
        io::Error::new(io::ErrorKind::InvalidData, message)
    })
}

fn unreadable(name: &str, error: &io::Error) -> ConfigError {
    let message = format!("cannot be read: {error}");
    ConfigError {
        file: name.to_owned(),
        problems: vec![Problem {
            line: None,
            message,
        }],
        untold: 0,
    }
}

fn unspanned<T>(value: T) -> Spanned<T> {
    Spanned::new(0..0, value)
}

fn line_of(text: &str, offset: usize) -> usize {
    let before = text.as_bytes().get(..offset).unwrap_or_default();
    1 + before.iter().filter(|byte| **byte == b'\n').count()
}

/// Collects what is wrong while it builds the plan.
struct Checker<'a> {
    text: &'a str,
    problems: Vec<Problem>,
    untold: usize,
}

impl Checker<'_> {
    fn plan(&mut self, config: &Config) -> Plan {
        let looped = &config.r#loop;
        let workers = *looped.workers.get_ref();
        if !(1..=WORKERS_MAX).contains(&workers) {
            self.refuse(
                &looped.workers,
                &format!("workers must be 1 to {WORKERS_MAX}"),
            );
        }
        if workers > 1 && !cfg!(target_os = "linux") {
            self.refuse(
                &looped.workers,
                "workers must be 1: this system does not deal a port out among threads",
            );
        }
        let linger_us = *looped.linger_us.get_ref();
        if linger_us > LINGER_US_MAX {
            self.refuse(
                &looped.linger_us,
                &format!("linger_us must be 0 to {LINGER_US_MAX}"),
            );
        }
        Plan {
            listen: self.listen(&config.listen),
            admin: self.admin(&config.listen.admin),
            admin_reload: config.listen.admin_reload,
            workers,
            linger: Duration::from_micros(linger_us.into()),
            receive_buffer_bytes: self.buffer("receive_buffer_bytes", &looped.receive_buffer_bytes),
            send_buffer_bytes: self.buffer("send_buffer_bytes", &looped.send_buffer_bytes),
            confine: self.confine(&config.confine),
            canary_interval: self.canary(config),
            settings: self.settings(config),
        }
    }

    fn confine(&mut self, confine: &Confine) -> Mode {
        let mode = *confine.mode.get_ref();
        if mode == Mode::Required && !cfg!(target_os = "linux") {
            self.refuse(
                &confine.mode,
                "mode must be best-effort or off: on this system a bus cannot confine itself",
            );
        }
        mode
    }

    fn canary(&mut self, config: &Config) -> Option<Duration> {
        let interval_ms = &config.canary.interval_ms;
        let ms = *interval_ms.get_ref();
        if ms == 0 {
            return None;
        }
        if !CANARY_INTERVAL_MS.contains(&ms) {
            let (least, most) = (CANARY_INTERVAL_MS.start(), CANARY_INTERVAL_MS.end());
            self.refuse(
                interval_ms,
                &format!("interval_ms must be 0, for no canary, or {least} to {most}"),
            );
        }
        for unix in &config.listen.unix {
            if canary::path_beside(unix.get_ref()).as_os_str().len() > PATH_BYTES_MAX {
                self.refuse(
                    unix,
                    &format!(
                        "with a canary beside it, a Unix socket's path is at most {} bytes",
                        PATH_BYTES_MAX - canary::PATH_SUFFIX.len()
                    ),
                );
            }
        }
        Some(Duration::from_millis(ms.into()))
    }

    fn settings(&mut self, config: &Config) -> Settings {
        Settings {
            access: Access {
                publish: self.rules(&config.access.publish),
                subscribe: self.rules(&config.access.subscribe),
            },
            own_sources: Vec::new(),
            leases: self.lease_limits(&config.limits),
            leased_series_max: config.limits.subscriber_series,
            subscribers: self.subscribers(&config.subscriber, &config.limits),
            topic_policies: self.policies(&config.topic),
        }
    }

    fn listen(&mut self, listen: &Listen) -> Vec<ListenAddress> {
        let mut addresses = Vec::new();
        for udp in &listen.udp {
            match udp.get_ref().parse() {
                Ok(address) => addresses.push(ListenAddress::Udp(address)),
                Err(_) => self.refuse(
                    udp,
                    "an address is IP:PORT, such as \"127.0.0.1:7277\" or \"[::1]:7277\"",
                ),
            }
        }
        for unix in &listen.unix {
            let path = unix.get_ref();
            if path.is_absolute() && path.as_os_str().len() <= PATH_BYTES_MAX {
                addresses.push(ListenAddress::Unix(path.clone()));
            } else {
                self.refuse(
                    unix,
                    &format!("a Unix socket's path is absolute and at most {PATH_BYTES_MAX} bytes"),
                );
            }
        }
        if listen.udp.is_empty() && listen.unix.is_empty() {
            let message = "listen.udp and listen.unix are both empty: a bus listens somewhere";
            self.problems.push(Problem {
                line: None,
                message: message.to_owned(),
            });
        }
        addresses
    }

    fn admin(&mut self, admin: &Spanned<String>) -> Option<SocketAddr> {
        if admin.get_ref() == "off" {
            return None;
        }
        let address = admin.get_ref().parse().ok();
        if address.is_none() {
            self.refuse(
                admin,
                "admin is IP:PORT, such as \"127.0.0.1:7278\", or \"off\"",
            );
        }
        address
    }

    fn buffer(&mut self, key: &str, bytes: &Spanned<usize>) -> usize {
        if !BUFFER_BYTES.contains(bytes.get_ref()) {
            let (least, most) = (BUFFER_BYTES.start(), BUFFER_BYTES.end());
            self.refuse(bytes, &format!("{key} must be {least} to {most}"));
        }
        *bytes.get_ref()
    }

    fn rules(&mut self, rules: &[AccessRule]) -> Rules {
        let rule = |rule: &AccessRule| Rule {
            from: rule
                .from
                .iter()
                .filter_map(|from| self.whom(from))
                .collect(),
            topics: self.patterns(&rule.topics),
            effect: if rule.deny {
                Effect::Deny
            } else {
                Effect::Allow
            },
        };
        Rules(rules.iter().map(rule).collect())
    }

    fn whom(&mut self, from: &Spanned<String>) -> Option<Whom> {
        match from.get_ref().parse::<Whom>() {
            Ok(whom) if whom.is_user_or_group() && !TELLS_CREDENTIALS => {
                let message = "uid: and gid: are not for this system, which does not tell who \
                               sends over a Unix socket: leave it to the permissions of its file";
                self.refuse(from, message);
                None
            }
            Ok(whom) => Some(whom),
            Err(error) => {
                self.refuse(from, &error.to_string());
                None
            }
        }
    }

    fn lease_limits(&mut self, limits: &Limits) -> LeaseLimits {
        for (key, lease) in [
            ("lease_ms", &limits.lease_ms),
            ("lease_ms_max", &limits.lease_ms_max),
        ] {
            if !(LEASE_MS_MIN..=LEASE_MS_MAX).contains(lease.get_ref()) {
                self.refuse(
                    lease,
                    &format!("{key} must be {LEASE_MS_MIN} to {LEASE_MS_MAX}"),
                );
            }
        }
        if limits.lease_ms.get_ref() > limits.lease_ms_max.get_ref() {
            self.refuse(&limits.lease_ms, "lease_ms must not be over lease_ms_max");
        }
        LeaseLimits {
            leases_max: limits.leases,
            leases_per_origin_max: limits.leases_per_source,
            patterns_max: limits.patterns_per_subscriber,
            group_members_max: self.group_members(&limits.members_per_group),
            lease_ms: *limits.lease_ms.get_ref(),
            lease_ms_max: *limits.lease_ms_max.get_ref(),
        }
    }

    fn group_members(&mut self, members: &Spanned<usize>) -> usize {
        if !GROUP_MEMBERS.contains(members.get_ref()) {
            let (least, most) = (GROUP_MEMBERS.start(), GROUP_MEMBERS.end());
            self.refuse(
                members,
                &format!("members_per_group must be {least} to {most}"),
            );
        }
        *members.get_ref()
    }

    fn subscribers(&mut self, entries: &[StaticEntry], limits: &Limits) -> Vec<StaticSubscriber> {
        let mut subscribers: Vec<StaticSubscriber> = Vec::new();
        let mut names = HashSet::new();
        for entry in entries {
            self.check_members(entry, &subscribers, *limits.members_per_group.get_ref());
            let name = entry.name.get_ref();
            if name.is_empty() || !is_legal_name(name) {
                self.refuse(&entry.name, "a name is 1 to 64 of A-Z a-z 0-9 . _ -");
            }
            if name.starts_with(topic::RESERVED_TOKEN) {
                self.refuse(
                    &entry.name,
                    &format!(
                        "names that begin with {} are the bus's own",
                        topic::RESERVED_TOKEN
                    ),
                );
            }
            if !names.insert(name) {
                self.refuse(
                    &entry.name,
                    &format!("there is a subscriber {name} already"),
                );
            }
            if entry.topics.is_empty() {
                self.refuse(
                    &entry.name,
                    "a subscriber has at least one pattern in topics",
                );
            }
            let frame_bytes_max = entry
                .max_frame_bytes
                .as_ref()
                .map(|bytes| self.frame_bytes(bytes));
            subscribers.push(StaticSubscriber {
                name: name.clone(),
                topics: self.patterns(&entry.topics),
                frame_bytes_max,
                terms: self.terms(entry),
                address: match self.subscriber_address(&entry.address) {
                    Some(address) => address,
                    None => continue,
                },
            });
        }
        subscribers
    }

    fn terms(&mut self, entry: &StaticEntry) -> Terms {
        Terms {
            group: entry.group.as_ref().map(|group| self.group(group)),
            sample: entry
                .sample
                .as_ref()
                .map_or(Sample::ALL, |sample| self.sample(sample)),
            events_per_second: self.rate(entry.events_per_second.as_ref()),
        }
    }

    /// Refuses whoever would be one member too many beside those before it.
    fn check_members(&mut self, entry: &StaticEntry, before: &[StaticSubscriber], most: usize) {
        let Some(group) = &entry.group else {
            return;
        };
        let is_member =
            |other: &&StaticSubscriber| other.terms.group.as_deref() == Some(group.get_ref());
        if before.iter().filter(is_member).count() >= most {
            let message = format!("a group has at most {most} members (members_per_group)");
            self.refuse(group, &message);
        }
    }

    fn group(&mut self, group: &Spanned<String>) -> Arc<str> {
        if group.get_ref().is_empty() || !is_legal_name(group.get_ref()) {
            self.refuse(group, "a group's name is 1 to 64 of A-Z a-z 0-9 . _ -");
        }
        group.get_ref().as_str().into()
    }

    fn sample(&mut self, sample: &Spanned<f64>) -> Sample {
        let checked = Sample::of_share(*sample.get_ref());
        if checked.is_none() {
            self.refuse(sample, "sample is a share over 0 and at most 1");
        }
        checked.unwrap_or(Sample::ALL)
    }

    fn rate(&mut self, rate: Option<&Spanned<u64>>) -> Option<u32> {
        let rate = rate?;
        let checked = u32::try_from(*rate.get_ref()).ok().filter(|rate| *rate > 0);
        if checked.is_none() {
            let message = format!(
                "events_per_second must be 1 to {}; without the key there is no limit",
                u32::MAX
            );
            self.refuse(rate, &message);
        }
        checked
    }

    fn max_age(&mut self, age: Option<&Spanned<u64>>) -> Option<Duration> {
        let age = age?;
        if !MAX_AGE_MS.contains(age.get_ref()) {
            let (least, most) = (MAX_AGE_MS.start(), MAX_AGE_MS.end());
            let message =
                format!("max_age_ms must be {least} to {most}; without the key no event is stale");
            self.refuse(age, &message);
        }
        Some(Duration::from_millis(*age.get_ref()))
    }

    fn frame_bytes(&mut self, bytes: &Spanned<u32>) -> u32 {
        let value = *bytes.get_ref();
        if value < FRAME_BYTES_MIN || value as usize > DATAGRAM_BYTES_MAX {
            let range = format!("{FRAME_BYTES_MIN} to {DATAGRAM_BYTES_MAX}");
            self.refuse(bytes, &format!("max_frame_bytes must be {range}"));
        }
        value
    }

    fn subscriber_address(&mut self, address: &Spanned<String>) -> Option<Address> {
        let text = address.get_ref();
        let parsed = match text.strip_prefix("unix://") {
            Some(path) if path.starts_with('/') && path.len() <= PATH_BYTES_MAX => {
                Some(Address::Unix(path.as_bytes().into()))
            }
            Some(_) => None,
            None => {
                let ip: Option<SocketAddr> =
                    text.strip_prefix("udp://").unwrap_or(text).parse().ok();
                ip.filter(|ip| ip.port() != 0).map(Address::Ip)
            }
        };
        if parsed.is_none() {
            self.refuse(
                address,
                "a subscriber's address is IP:PORT, udp://IP:PORT or unix:///PATH",
            );
        }
        parsed
    }

    fn policies(&mut self, entries: &[TopicEntry]) -> Vec<TopicPolicy> {
        let mut policies: Vec<TopicPolicy> = Vec::new();
        for entry in entries {
            let pattern = self.pattern(&entry.r#match);
            let includes = |other: &&TopicPolicy| {
                topic::includes(other.pattern.as_bytes(), pattern.as_bytes())
            };
            if let Some(other) = policies.iter().find(includes) {
                let message = match other.pattern == pattern {
                    true => "there is an entry for this pattern already".to_owned(),
                    false => format!(
                        "this entry never counts: the one for {:?} before it matches all that \
                         this one does, and the first that matches counts",
                        other.pattern
                    ),
                };
                self.refuse(&entry.r#match, &message);
            }
            policies.push(TopicPolicy {
                pattern,
                events_per_second: self.rate(entry.events_per_second.as_ref()),
                priority: entry.priority,
                age_max: self.max_age(entry.max_age_ms.as_ref()),
            });
        }
        policies
    }

    fn patterns(&mut self, patterns: &[Spanned<String>]) -> Vec<String> {
        patterns
            .iter()
            .map(|pattern| self.pattern(pattern))
            .collect()
    }

    fn pattern(&mut self, pattern: &Spanned<String>) -> String {
        if let Err(error) = topic::check_pattern(pattern.get_ref().as_bytes()) {
            self.refuse(pattern, &error.to_string());
        }
        pattern.get_ref().clone()
    }

    fn refuse<T: fmt::Debug>(&mut self, value: &Spanned<T>, message: &str) {
        if self.problems.len() >= PROBLEMS_MAX {
            self.untold += 1;
            return;
        }
        let span = value.span();
        self.problems.push(Problem {
            line: (!span.is_empty()).then(|| line_of(self.text, span.start)),
            message: format!("{:?}: {message}", value.get_ref()),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(text: &str) -> String {
        Config::parse("bus.toml", text)
            .map(|_| ())
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn the_longest_file_is_read_and_a_longer_one_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("bus.toml");
        let mut text = "[listen]\n".to_owned();
        text.extend(std::iter::repeat_n('#', (1 << 20) - text.len()));
        for load in [Config::load, Config::load_regular] {
            std::fs::write(&file, &text).unwrap();
            load(&file).unwrap();
            std::fs::write(&file, format!("{text}#")).unwrap();
            let error = load(&file).unwrap_err().to_string();
            assert!(
                error.ends_with("it is longer than 1048576 bytes"),
                "{error}"
            );
        }
    }

    /// Files with a mistake, and what is told of it.
    const WRONG: &[(&str, &str)] = &[
        ("", "bus.toml: the file is empty"),
        ("# only\n\n", "bus.toml: the file is empty"),
        (
            "[listen]\nupd = []\n",
            "bus.toml:2: unknown field `upd`, expected one of `udp`",
        ),
        (
            "[confine]\nmode = \"\\u001b[2J\\n\"\n",
            "bus.toml:2: unknown variant `\\u{1b}[2J\\n`, expected one of",
        ),
        (
            "[listen]\nudp = [\n \"localhost:1\"]\n",
            "bus.toml:3: \"localhost:1\": an address is IP:PORT",
        ),
        ("[listen]\nudp = []\n", "both empty"),
        (
            "[listen]\nunix = [\"bus.sock\"]\n",
            "bus.toml:2: \"bus.sock\": a Unix socket's path is absolute",
        ),
        (
            "[listen]\nadmin = \"on\"\n",
            "bus.toml:2: \"on\": admin is IP:PORT",
        ),
        (
            "[loop]\nworkers = 65\n",
            "bus.toml:2: 65: workers must be 1 to 64",
        ),
        (
            "[loop]\nlinger_us = 10001\n",
            "linger_us must be 0 to 10000",
        ),
        ("[loop]\nlinger_us = -1\n", "bus.toml:2: "),
        (
            "[loop]\nsend_buffer_bytes = 1\n",
            "send_buffer_bytes must be 4096 to",
        ),
        (
            "[limits]\nlease_ms = 300001\n",
            "lease_ms must be 1000 to 300000",
        ),
        (
            "[limits]\nlease_ms = 9000\nlease_ms_max = 8000\n",
            "bus.toml:2: 9000: lease_ms must not be over",
        ),
        (
            "[access]\npublish = [{ from = [\"10/8\"], topics = [\">\"] }]\n",
            "bus.toml:2: \"10/8\": a source is",
        ),
        (
            "[access]\npublish = []\nsubscribe = [\n{ from = [\n\"::1\",\n\"unix\"], topics = [\">\"] }]\n",
            "bus.toml:6: \"unix\": a source is an address or a network, such as \"::1\" or \"10.0.0.0/8\", \
             or for Unix sockets \"uid:1000\" or \"gid:1000\"",
        ),
        (
            "[access]\npublish = [{ from = [\"10.0.0.0/33\"], topics = [\">\"] }]\n",
            "bus.toml:2: \"10.0.0.0/33\": a source is",
        ),
        (
            "[access]\npublish = [{ from = [\"uid:4294967296\"], topics = [\">\"] }]\n",
            "bus.toml:2: \"uid:4294967296\": behind uid: or gid: stands a number of 0 to 4294967295",
        ),
        (
            "[access]\npublish = [{ from = [\"uid:-1\"], topics = [\">\"], deny = true }]\n",
            "bus.toml:2: \"uid:-1\": behind",
        ),
        (
            "[access]\npublish = [{ from = [\"gid:\"], topics = [\">\"] }]\n",
            "bus.toml:2: \"gid:\": behind",
        ),
        (
            "[access]\npublish = [{ from = [], topics = [\"a.>.b\"] }]\n",
            "bus.toml:2: \"a.>.b\": ",
        ),
        (
            "[[subscriber]]\nname = \"a b\"\naddress = \"1.2.3.4:5\"\ntopics = [\"a\"]\n",
            "bus.toml:2: \"a b\": a name",
        ),
        (
            "[[subscriber]]\nname = \"a\"\naddress = \"1.2.3.4\"\ntopics = [\"a\"]\n",
            "bus.toml:3: \"1.2.3.4\": a subscriber's address",
        ),
        (
            "[[subscriber]]\nname = \"a\"\naddress = \"1.2.3.4:5\"\ntopics = []\n",
            "at least one pattern",
        ),
        (
            "[[subscriber]]\nname = \"a\"\naddress = \"1.2.3.4:5\"\ntopics = [\"a\"]\nmax_frame_bytes = 65508\n",
            "bus.toml:5: 65508: max_frame_bytes must be 508 to 65507",
        ),
        (
            "[[topic]]\nmatch = \"a\"\n[[topic]]\nmatch = \"a\"\n",
            "bus.toml:4: \"a\": there is an entry",
        ),
        (
            "[[topic]]\nmatch = \"a.>\"\n[[topic]]\nmatch = \"a.*\"\n",
            "bus.toml:4: \"a.*\": this entry never counts: the one for \"a.>\" before it",
        ),
        (
            "[[topic]]\nmatch = \"a\"\nevents_per_second = 0\n",
            "bus.toml:3: 0: events_per_second must be 1 to 4294967295; without",
        ),
        (
            "[[topic]]\nmatch = \"a\"\nevents_per_second = 4294967296\n",
            "bus.toml:3: 4294967296: events_per_second must be 1 to",
        ),
        (
            "[[topic]]\nmatch = \"a\"\nevents_per_second = 18446744073709551615\n",
            "bus.toml:3: ",
        ),
        (
            "[[topic]]\nmatch = \"a\"\nmax_age_ms = 0\n",
            "bus.toml:3: 0: max_age_ms must be 1 to 86400000",
        ),
        (
            "[[topic]]\nmatch = \"a\"\npriority = \"urgent\"\n",
            "bus.toml:3: unknown variant `urgent`, expected one of `low`, `normal`, `high`",
        ),
        (
            "[[subscriber]]\nname = \"a\"\naddress = \"1.2.3.4:5\"\ntopics = [\"a\"]\nsample = nan\n",
            "bus.toml:5: NaN: sample is a share over 0 and at most 1",
        ),
        (
            "[[subscriber]]\nname = \"a\"\naddress = \"1.2.3.4:5\"\ntopics = [\"a\"]\nsample = -0.5\n",
            "bus.toml:5: -0.5: sample is",
        ),
        (
            "[[subscriber]]\nname = \"a\"\naddress = \"1.2.3.4:5\"\ntopics = [\"a\"]\nsample = 7.0\n",
            "bus.toml:5: 7.0: sample is",
        ),
        (
            "[[subscriber]]\nname = \"a\"\naddress = \"1.2.3.4:5\"\ntopics = [\"a\"]\ngroup = \"\"\n",
            "bus.toml:5: \"\": a group's name is 1 to 64",
        ),
        (
            "[[subscriber]]\nname = \"a\"\naddress = \"1.2.3.4:5\"\ntopics = [\"a\"]\nevents_per_second = -1\n",
            "bus.toml:5: ",
        ),
        (
            "[limits]\nmembers_per_group = 1\n\
             [[subscriber]]\nname = \"a\"\naddress = \"1.2.3.4:5\"\ntopics = [\"a\"]\ngroup = \"g\"\n\
             [[subscriber]]\nname = \"b\"\naddress = \"1.2.3.4:6\"\ntopics = [\"a\"]\ngroup = \"g\"\n",
            "bus.toml:12: \"g\": a group has at most 1 members",
        ),
        (
            "[limits]\nmembers_per_group = 5000\n",
            "bus.toml:2: 5000: members_per_group must be 1 to 4096",
        ),
        (
            "[canary]\ninterval_ms = 9\n",
            "bus.toml:2: 9: interval_ms must be 0, for no canary, or 10 to 3600000",
        ),
        (
            "[canary]\n\ninterval_ms = 3600001\n",
            "bus.toml:3: 3600001: interval_ms must be",
        ),
        (
            "[[subscriber]]\nname = \"_hailmary.x\"\naddress = \"1.2.3.4:5\"\ntopics = [\"a\"]\n",
            "bus.toml:2: \"_hailmary.x\": names that begin with _hailmary are",
        ),
        (
            "[confine]\nmode = \"on\"\n",
            "bus.toml:2: unknown variant `on`, expected one of `best-effort`, `required`, `off`",
        ),
        ("[listen\n", "bus.toml:1: "),
    ];

    #[test]
    fn names_the_line_and_what_is_allowed() {
        for (text, expected) in WRONG {
            let told = problems(text);
            assert!(
                told.contains(expected),
                "{text:?} told {told:?}, not {expected:?}"
            );
        }
    }

    #[test]
    fn a_file_that_is_all_wrong_is_told_in_few_lines() {
        const RULES: usize = 1_000;
        let rules = "\"x\",\n".repeat(RULES);
        let text = format!("[access]\npublish = [{{ from = [\n{rules}], topics = [] }}]\n");
        let told = problems(&text);
        assert_eq!(told.lines().count(), PROBLEMS_MAX + 1);
        let untold = RULES - PROBLEMS_MAX;
        assert!(told.ends_with(&format!("bus.toml: and {untold} more")));
    }

    #[test]
    fn tells_all_problems_at_once() {
        let told = problems("[loop]\nworkers = 0\nlinger_us = 99999\n");
        assert_eq!(told.lines().count(), 2, "{told}");
    }

    #[test]
    fn what_is_printed_is_read_back_the_same() {
        let text = "[listen]\nunix = [\"/run/x.sock\"]\n[[subscriber]]\nname = \"a\"\n\
                    address = \"unix:///run/a.sock\"\ntopics = [\"a.>\"]\nmax_frame_bytes = 9000\n\
                    [[topic]]\nmatch = \"spam.>\"\n";
        let (config, _) = Config::parse("x", text).unwrap();
        let printed = toml::to_string(&config).unwrap();
        let (again, plan) = Config::parse("x", &printed).unwrap();
        assert_eq!(toml::to_string(&again).unwrap(), printed);
        assert_eq!(plan.listen.len(), 2);
        assert_eq!(plan.settings.subscribers[0].frame_bytes_max, Some(9000));
        let (_, defaults) =
            Config::parse("x", &toml::to_string(&Config::default()).unwrap()).unwrap();
        assert_eq!(defaults.admin, Some("127.0.0.1:7278".parse().unwrap()));
    }

    #[test]
    fn users_and_groups_are_for_systems_that_tell_of_them() {
        let text = "[access]\npublish = [{ from = [\"::1\", \"uid:0\", \"gid:7\"], topics = [\">\"] }]\n\
                    subscribe = [{ from = [\"uid:7\"], topics = [\"a\"], deny = true }]\n";
        if !TELLS_CREDENTIALS {
            let told = problems(text);
            assert_eq!(told.lines().count(), 3, "{told}");
            assert!(told.contains("bus.toml:2: \"uid:0\": uid: and gid: are not for this system"));
            return;
        }
        let (config, plan) = Config::parse("x", text).unwrap();
        let publish = &plan.settings.access.publish.0[0];
        let this_host = "::1/128".parse().unwrap();
        let expected = [Whom::Network(this_host), Whom::User(0), Whom::Group(7)];
        assert_eq!(publish.from, expected);
        let printed = toml::to_string(&config).unwrap();
        let (again, _) = Config::parse("x", &printed).unwrap();
        assert_eq!(toml::to_string(&again).unwrap(), printed);
    }

    #[test]
    fn a_canary_is_off_till_it_has_an_interval_and_needs_a_path_of_its_own() {
        let interval = |text: &str| Config::parse("x", text).unwrap().1.canary_interval;
        assert_eq!(interval("[canary]\n"), None);
        assert_eq!(
            interval("[canary]\ninterval_ms = 10\n"),
            Some(Duration::from_millis(10))
        );
        let path = format!("/{}", "a".repeat(PATH_BYTES_MAX - 1));
        let with = |path: &str, ms: u32| {
            format!("[listen]\nunix = [{path:?}]\n[canary]\ninterval_ms = {ms}\n")
        };
        assert_eq!(interval(&with(&path, 0)), None);
        let told = problems(&with(&path, 10));
        assert!(
            told.contains("bus.toml:2: ") && told.contains("at most 100 bytes"),
            "{told}"
        );
        let shorter = format!("/{}", "a".repeat(99));
        assert!(interval(&with(&shorter, 10)).is_some());
    }
}
