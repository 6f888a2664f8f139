//! A running bus, as its admin tells of it.
//!
//! What answers may be something else, or hostile: all is parsed into values of known kinds
//! before anything is made of it.

use std::net::SocketAddr;
use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::command::admin_client::{AdminClient, AskError, Scrape};

use super::finding::{Finding, Known, NotKnown};

const CHECK: &str = "bus";

/// What became of asking.
#[derive(Debug)]
pub enum Answer {
    /// A bus answered.
    Bus(Box<Bus>),
    /// Something else did, or a bus in distress.
    Stranger(String),
    /// Nobody did.
    Nobody(String),
    /// There is no address to ask.
    NotAsked(NotKnown),
}

/// A running bus.
#[derive(Debug)]
pub struct Bus {
    /// What it says of itself.
    pub status: Status,
    /// Its subscribers.
    pub subscribers: Known<Vec<Subscriber>>,
    /// What it has counted.
    pub metrics: Known<Scrape>,
}

/// `/api/v1/status`
#[derive(Debug, Deserialize)]
pub struct Status {
    version: String,
    /// Its process.
    pub pid: Option<u32>,
    uptime_seconds: f64,
    /// Where it listens.
    pub listeners: Vec<Listener>,
    /// What it gave up.
    #[serde(default)]
    pub confinement: Confinement,
}

/// What it gave up once its sockets were bound.
#[derive(Debug, Default, Deserialize)]
pub struct Confinement {
    /// Capabilities, by name.
    #[serde(default)]
    pub dropped: Vec<String>,
}

/// One of its listeners.
#[derive(Debug, Deserialize)]
pub struct Listener {
    /// Its address, with scheme.
    pub address: String,
    /// The numbers of its sockets.
    #[serde(default)]
    pub inodes: Vec<u64>,
    wanted_buffer_bytes: Option<u64>,
    granted_buffer_bytes: Option<u64>,
}

impl Listener {
    /// Its UDP address, if it is on UDP.
    pub fn udp(&self) -> Option<SocketAddr> {
        self.address.strip_prefix("udp://")?.parse().ok()
    }

    /// Its receive buffer, wanted and granted, in bytes.
    pub fn buffer(&self) -> Option<(u64, u64)> {
        self.wanted_buffer_bytes.zip(self.granted_buffer_bytes)
    }

    /// One for tests.
    #[cfg(test)]
    pub fn example(address: &str, wanted: u64, granted: u64) -> Self {
        Self {
            address: address.to_owned(),
            inodes: vec![101, 102],
            wanted_buffer_bytes: Some(wanted),
            granted_buffer_bytes: Some(granted),
        }
    }
}

/// One of `/api/v1/subscribers`.
#[derive(Debug, Deserialize)]
pub struct Subscriber {
    /// What it calls itself.
    pub name: String,
    /// Its address, with scheme.
    pub address: String,
    /// Its datagrams' size, in bytes.
    pub frame_bytes: u32,
}

impl Subscriber {
    /// Its UDP address, if it is on UDP.
    pub fn udp(&self) -> Option<SocketAddr> {
        self.address.strip_prefix("udp://")?.parse().ok()
    }
}

/// Asks for everything.
pub fn ask(admin: &AdminClient) -> Answer {
    let status = match admin.get("/api/v1/status") {
        Ok(text) => json::<Status>(&text),
        Err(AskError::Unreachable(error)) => return Answer::Nobody(error.to_string()),
        Err(AskError::Answer(why)) => Err(why),
    };
    let get = |path| admin.get(path).map_err(|error| error.to_string());
    match status {
        Ok(status) => Answer::Bus(Box::new(Bus {
            status,
            subscribers: get("/api/v1/subscribers")
                .and_then(|text| json(&text))
                .map_err(NotKnown),
            metrics: get("/metrics")
                .map(|page| Scrape::parse(&page))
                .map_err(NotKnown),
        })),
        Err(why) => Answer::Stranger(why),
    }
}

fn json<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    serde_json::from_str(text).map_err(|error| format!("not a bus's JSON: {error}"))
}

impl Status {
    /// "in the 3 h 20 min since it started"
    pub fn since_start(&self) -> String {
        match Duration::try_from_secs_f64(self.uptime_seconds) {
            Ok(uptime) => format!("in the {} since it started", span(uptime.as_secs())),
            Err(_) => "since it started".to_owned(),
        }
    }
}

fn span(seconds: u64) -> String {
    let (minutes, hours) = (seconds / 60, seconds / 3_600);
    match hours {
        0 if minutes == 0 => format!("{seconds} s"),
        0 => format!("{minutes} min"),
        1..48 => format!("{hours} h {} min", minutes % 60),
        _ => format!("{} days", hours / 24),
    }
}

/// Who chose the address that was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chosen {
    /// The user: a bus is to be there.
    ByUser,
    /// The configuration, or its default: a bus may be there.
    ByConfiguration,
}

/// Whether a bus runs there.
pub fn reached(answer: &Answer, admin: &str, chosen: Chosen) -> Finding {
    match answer {
        Answer::Bus(bus) => Finding::fine(
            CHECK,
            match bus.status.pid {
                Some(pid) => format!(
                    "a bus runs, version {}, process {pid}, admin {admin}",
                    bus.status.version
                ),
                None => format!("a bus runs, version {}, admin {admin}", bus.status.version),
            },
        ),
        Answer::Stranger(why) => Finding::may_lose(
            CHECK,
            format!("what answers at {admin} does not answer as a bus does: {why}"),
            "Where another program has the admin port, a bus of this configuration does not \
             start; where it is a bus, it is in distress.",
            "sudo ss -ltnp   # who listens there",
        ),
        Answer::Nobody(why) if chosen == Chosen::ByUser => Finding::loses(
            CHECK,
            format!("no bus can be reached at {admin}: {why}"),
            "Whatever is sent to a bus that is not running is lost.",
            "# Start it, or ask where it really is:\n\
             hailmary serve --config FILE\n\
             hailmary doctor --admin HOST:PORT",
        ),
        Answer::Nobody(why) => {
            let reason = NotKnown(format!("nobody answers at {admin} ({why})"));
            Finding::unknown(CHECK, "what a running bus loses", &reason)
                .with_mend("hailmary doctor --admin HOST:PORT   # if a bus runs elsewhere")
        }
        Answer::NotAsked(reason) => Finding::unknown(CHECK, "what a running bus loses", reason)
            .with_mend("hailmary doctor --admin HOST:PORT   # if a bus runs elsewhere"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::Severity;
    use super::*;

    #[test]
    fn what_is_no_status_is_refused() {
        let status = "{\"version\":\"1\",\"uptime_seconds\":7300.5,\"listeners\":[]}";
        let status = json::<Status>(status).unwrap();
        assert_eq!(status.since_start(), "in the 2 h 1 min since it started");
        for text in [
            "",
            "{}",
            "[]",
            "{\"version\":1,\"uptime_seconds\":1,\"listeners\":[]}",
            "{\"version\":\"1\",\"pid\":-1,\"uptime_seconds\":1,\"listeners\":[]}",
            "{\"version\":\"1\",\"uptime_seconds\":1,\"listeners\":[{}]}",
            &"[".repeat(100_000),
        ] {
            assert!(json::<Status>(text).is_err(), "{text:.60}");
        }
    }

    #[test]
    fn a_time_that_is_none_is_left_out() {
        for (uptime_seconds, told) in [
            (-1.0, "since it started"),
            (1e300, "since it started"),
            (59.9, "in the 59 s since it started"),
            (60.0, "in the 1 min since it started"),
            (1e6, "in the 11 days since it started"),
        ] {
            let status = Status {
                version: String::new(),
                pid: None,
                uptime_seconds,
                listeners: Vec::new(),
                confinement: Confinement::default(),
            };
            assert_eq!(status.since_start(), told);
        }
    }

    #[test]
    fn an_absent_bus_is_a_finding_only_where_the_user_says_it_is_there() {
        let severity = |answer: &Answer, chosen| reached(answer, "h:1", chosen).severity;
        let nobody = Answer::Nobody("refused".to_owned());
        assert_eq!(severity(&nobody, Chosen::ByUser), Severity::Loses);
        assert_eq!(
            severity(&nobody, Chosen::ByConfiguration),
            Severity::Unknown
        );
        let stranger = Answer::Stranger("no HTTP".to_owned());
        assert_eq!(
            severity(&stranger, Chosen::ByConfiguration),
            Severity::MayLose
        );
    }
}
