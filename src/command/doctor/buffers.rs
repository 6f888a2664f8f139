//! Socket buffers: what the bus wants, what the system allows, and what it gave.

use crate::command::grouped::Grouped;
use crate::net::listener::DATAGRAM_CHARGE_BYTES;

use super::finding::{Finding, Known, NotKnown};
use super::running::Listener;

/// Datagrams that a Unix socket's queue should hold: a burst of so many hardly ever fills it.
const UNIX_QUEUE_WANTED: u64 = 512;

/// CAP_NET_ADMIN's place in a set of capabilities (capabilities(7)).
const CAP_NET_ADMIN: u32 = 12;

/// Whether a running bus on this host may have larger buffers than the system's maximum.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Capability {
    /// No bus runs here.
    NoBus,
    /// It has CAP_NET_ADMIN.
    Has,
    /// It had it when it bound its sockets, and gave it up then.
    Had,
    /// The process of this id does not.
    Lacks(u32),
    /// Why that cannot be told.
    NotKnown(NotKnown),
}

impl Capability {
    /// With what the bus says that it gave up.
    pub fn after_dropping(self, dropped: &[String]) -> Self {
        match self {
            Capability::Lacks(_) if dropped.iter().any(|name| name == "CAP_NET_ADMIN") => {
                Capability::Had
            }
            other => other,
        }
    }
}

/// Reads `/proc/PID/status`. A process of another name is not the bus, whatever its id.
pub fn capability(process: u32, status: &str) -> Known<Capability> {
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.map(str::trim)
    };
    let not_known = |why: &str| NotKnown(format!("process {process} {why}"));
    if field("Name:") != Some(env!("CARGO_PKG_NAME")) {
        return Err(not_known("is not the bus here"));
    }
    let set = field("CapEff:").and_then(|set| u64::from_str_radix(set, 16).ok());
    let set = set.ok_or_else(|| not_known("does not tell its capabilities"))?;
    Ok(match set >> CAP_NET_ADMIN & 1 {
        1 => Capability::Has,
        _ => Capability::Lacks(process),
    })
}

/// Whether the running bus lacks what would make up for a low maximum.
pub fn capability_finding(capability: &Capability, limits: &[(&Known<u64>, u64)]) -> Finding {
    const CHECK: &str = "capability";
    let is_short = |(limit, wanted): &(&Known<u64>, u64)| {
        let limit = limit.as_ref();
        limit.map_or(true, |limit| limit < wanted)
    };
    match capability {
        Capability::NoBus => Finding::fine(CHECK, "no bus runs here that could lack CAP_NET_ADMIN"),
        Capability::Has => Finding::fine(CHECK, "the running bus has CAP_NET_ADMIN"),
        Capability::Had => Finding::fine(
            CHECK,
            "the running bus had CAP_NET_ADMIN when it opened its sockets, and gave it up then: \
             those of reloads and of Unix subscribers get what the system's maximum allows",
        ),
        Capability::Lacks(_) if !limits.iter().any(is_short) => Finding::fine(
            CHECK,
            "the running bus has no CAP_NET_ADMIN, and needs none: the limits are high enough",
        ),
        Capability::Lacks(process) => Finding::may_lose(
            CHECK,
            format!("the running bus, process {process}, has no CAP_NET_ADMIN"),
            "Without it the system's maximum cuts its socket buffers down; raising that \
             maximum does as well.",
            "# Under systemd, in the [Service] section of the bus's unit:\n\
             #   AmbientCapabilities=CAP_NET_ADMIN\n\
             # Elsewhere, give it to the program, and restart the bus:\n"
                .to_owned()
                + &format!("sudo setcap cap_net_admin+ep \"$(readlink /proc/{process}/exe)\""),
        ),
        Capability::NotKnown(reason) => {
            Finding::unknown(CHECK, "whether the running bus has CAP_NET_ADMIN", reason)
        }
    }
}

/// The receive buffers of a running bus, and what a bus of this configuration would get.
pub fn receive(
    limit: &Known<u64>,
    wanted: u64,
    listeners: &[Listener],
    capability: &Capability,
) -> Vec<Finding> {
    const CHECK: &str = "receive-buffer";
    let udp = || listeners.iter().filter(|listener| listener.udp().is_some());
    let mut findings: Vec<_> = udp()
        .filter_map(|listener| {
            let (wanted, granted) = listener.buffer()?;
            (granted < wanted).then(|| {
                Finding::may_lose(
                    CHECK,
                    format!(
                        "{} has a receive buffer of {} bytes where {} are wanted",
                        listener.address,
                        Grouped(granted),
                        Grouped(wanted)
                    ),
                    holds(granted),
                    raise("net.core.rmem_max", wanted),
                )
            })
        })
        .collect();
    let has_all = |listener: &Listener| {
        let buffer = listener.buffer();
        buffer.is_some_and(|(_, granted)| granted >= wanted)
    };
    if findings.is_empty() && udp().count() > 0 && udp().all(has_all) {
        let has = format!("the running bus has the {} bytes wanted", Grouped(wanted));
        findings.push(Finding::fine(CHECK, has));
    } else if findings.is_empty() {
        let places = |limit| holds(limit);
        let parameter = "net.core.rmem_max";
        findings.push(limited(CHECK, parameter, limit, wanted, capability, places));
    }
    findings
}

/// The send buffer that a bus of this configuration gets.
pub fn send(limit: &Known<u64>, wanted: u64, capability: &Capability) -> Finding {
    limited(
        "send-buffer",
        "net.core.wmem_max",
        limit,
        wanted,
        capability,
        |_| {
            "Datagrams to a host that does not answer wait in this buffer. Once they fill it, \
             those to hosts that share its socket, one in 16, are dropped too (would_block)."
                .to_owned()
        },
    )
}

fn limited(
    check: &'static str,
    parameter: &str,
    limit: &Known<u64>,
    wanted: u64,
    capability: &Capability,
    why: impl Fn(u64) -> String,
) -> Finding {
    let limit = match limit {
        Ok(limit) => *limit,
        Err(reason) => return Finding::unknown(check, parameter, reason),
    };
    let is = format!("{parameter} is {} bytes", Grouped(limit));
    let wanted_bytes = format!("{} are wanted", Grouped(wanted));
    if limit >= wanted {
        return Finding::fine(check, format!("{is}, and {wanted_bytes}"));
    }
    if matches!(capability, Capability::Has | Capability::Had) {
        let text = format!("{is} where {wanted_bytes}, but the bus's CAP_NET_ADMIN goes past it");
        return Finding::fine(check, text);
    }
    let text = format!("{is} where {wanted_bytes}, so a bus without CAP_NET_ADMIN gets no more");
    Finding::may_lose(check, text, why(limit), raise(parameter, wanted))
}

fn holds(granted: u64) -> String {
    // Linux grants the double of what is asked, for its own bookkeeping.
    let charge = u64::try_from(DATAGRAM_CHARGE_BYTES).unwrap_or(u64::MAX);
    let places = granted.saturating_mul(2) / charge;
    format!(
        "It holds some {} datagrams of 1,400 bytes. Of a burst that the bus cannot read as fast \
         as it comes, the kernel drops the rest.",
        Grouped(places)
    )
}

/// How a kernel parameter is raised for a bus that runs.
pub fn raise(parameter: &str, to: u64) -> String {
    format!(
        "sudo sysctl -w {parameter}={to}\n\
         # Then restart the bus. To keep it after a reboot: the same, {parameter} = {to}, into a \
         file in /etc/sysctl.d/."
    )
}

/// The queues of Unix sockets, where any are used.
pub fn unix_queue(limit: &Known<u64>, sockets: &[String]) -> Finding {
    const CHECK: &str = "unix-queue";
    const PARAMETER: &str = "net.unix.max_dgram_qlen";
    let Some(first) = sockets.first() else {
        return Finding::fine(CHECK, "no Unix socket is configured");
    };
    let limit = match limit {
        Ok(limit) => *limit,
        Err(reason) => return Finding::unknown(CHECK, PARAMETER, reason),
    };
    let and_others = match sockets.len() {
        1 => String::new(),
        count => format!(" and {} more", count - 1),
    };
    let text = format!(
        "{PARAMETER} is {} datagrams, for {first}{and_others}",
        Grouped(limit)
    );
    if limit >= UNIX_QUEUE_WANTED {
        return Finding::fine(CHECK, text);
    }
    Finding::may_lose(
        CHECK,
        text,
        "A Unix socket holds no more datagrams than this, however small they are. What is sent \
         to a full one is dropped by its sender.",
        raise(PARAMETER, UNIX_QUEUE_WANTED),
    )
}

#[cfg(test)]
mod tests {
    use super::super::finding::Severity;
    use super::*;

    const MIB: u64 = 1 << 20;

    fn listener(granted: u64) -> Listener {
        Listener::example("udp://127.0.0.1:7277", 8 * MIB, granted)
    }

    fn unread<T>() -> Known<T> {
        Err(NotKnown("/proc/x: no".to_owned()))
    }

    fn severities(findings: &[Finding]) -> Vec<Severity> {
        findings.iter().map(|finding| finding.severity).collect()
    }

    #[test]
    fn a_receive_buffer_is_judged_by_what_was_granted_or_else_by_the_limit() {
        let severity = |limit, granted: &[u64], capability| {
            let listeners: Vec<_> = granted.iter().copied().map(listener).collect();
            severities(&receive(&limit, 8 * MIB, &listeners, &capability))
        };
        use Severity::{Fine, MayLose, Unknown};
        let none = || Capability::NoBus;
        assert_eq!(severity(Ok(8 * MIB), &[], none()), [Fine]);
        assert_eq!(severity(Ok(8 * MIB - 1), &[], none()), [MayLose]);
        assert_eq!(severity(unread(), &[], none()), [Unknown]);
        assert_eq!(severity(Ok(0), &[8 * MIB], Capability::Has), [Fine]);
        assert_eq!(severity(unread(), &[8 * MIB], none()), [Fine]);
        let (short, lacks) = (8 * MIB - 1, Capability::Lacks(7));
        assert_eq!(
            severity(Ok(short), &[8 * MIB, short], lacks.clone()),
            [MayLose]
        );
        // The limit was raised since, and the bus not restarted.
        assert_eq!(severity(Ok(8 * MIB), &[short], lacks), [MayLose]);
    }

    #[test]
    fn a_clamped_buffer_is_told_with_its_numbers_and_the_command() {
        let findings = receive(
            &Ok(212_992),
            8 * MIB,
            &[listener(212_992)],
            &Capability::NoBus,
        );
        let finding = &findings[0];
        assert_eq!(
            finding.finding,
            "udp://127.0.0.1:7277 has a receive buffer of 212,992 bytes where 8,388,608 are wanted"
        );
        let why = finding.why.as_deref().unwrap();
        assert!(why.contains("184 datagrams"), "{why}");
        let mend = finding.mend.as_deref().unwrap();
        assert!(mend.starts_with("sudo sysctl -w net.core.rmem_max=8388608\n#"));
    }

    #[test]
    fn a_unix_listener_is_judged_by_its_queue_alone() {
        let unix = Listener::example("unix:///run/bus.sock", 8 * MIB, 4_096);
        let found = receive(&Ok(8 * MIB), 8 * MIB, &[unix], &Capability::NoBus);
        assert_eq!(severities(&found), [Severity::Fine]);
        let sockets = |count| vec!["unix:///run/bus.sock".to_owned(); count];
        let severity = |limit, count| unix_queue(&limit, &sockets(count)).severity;
        assert_eq!(severity(Ok(10), 0), Severity::Fine);
        assert_eq!(severity(Ok(10), 1), Severity::MayLose);
        assert_eq!(severity(Ok(512), 1), Severity::Fine);
        assert_eq!(severity(unread(), 1), Severity::Unknown);
        let told = unix_queue(&Ok(10), &sockets(3)).finding;
        assert!(told.ends_with("is 10 datagrams, for unix:///run/bus.sock and 2 more"));
    }

    #[test]
    fn a_send_buffer_is_held_to_the_limit_unless_the_bus_may_pass_it() {
        let severity = |limit, capability| send(&limit, 8 * MIB, &capability).severity;
        assert_eq!(severity(Ok(8 * MIB), Capability::NoBus), Severity::Fine);
        assert_eq!(severity(Ok(1), Capability::NoBus), Severity::MayLose);
        assert_eq!(severity(Ok(1), Capability::Lacks(1)), Severity::MayLose);
        assert_eq!(severity(Ok(1), Capability::Has), Severity::Fine);
        assert_eq!(severity(Ok(1), Capability::Had), Severity::Fine);
        assert_eq!(severity(unread(), Capability::NoBus), Severity::Unknown);
    }

    #[test]
    fn capabilities_are_read_of_the_bus_alone() {
        let status = |name, set| format!("Name:\t{name}\nUmask:\t0022\nCapEff:\t{set}\n");
        let of = |name, set| capability(7, &status(name, set));
        assert_eq!(of("hailmary", "000001ffffffffff"), Ok(Capability::Has));
        assert_eq!(of("hailmary", "0000000000001000"), Ok(Capability::Has));
        assert_eq!(of("hailmary", "ffffffffffffefff"), Ok(Capability::Lacks(7)));
        for (name, set) in [
            ("nginx", "000001ffffffffff"),
            ("hailmary", ""),
            ("hailmary", "fffffffffffffffff"),
            ("hailmary", "-1"),
        ] {
            assert!(of(name, set).is_err(), "{name} {set}");
        }
        assert!(capability(7, "").is_err());
        let dropped = ["CAP_NET_RAW", "CAP_NET_ADMIN"].map(str::to_owned);
        let after = |capability: Capability, dropped| capability.after_dropping(dropped);
        assert_eq!(after(Capability::Lacks(7), &dropped), Capability::Had);
        assert_eq!(
            after(Capability::Lacks(7), &dropped[..1]),
            Capability::Lacks(7)
        );
        assert_eq!(after(Capability::NoBus, &dropped), Capability::NoBus);
    }

    #[test]
    fn a_lack_matters_where_a_limit_is_short() {
        let severity = |capability: Capability, limit: Known<u64>| {
            capability_finding(&capability, &[(&Ok(9), 8), (&limit, 8)]).severity
        };
        assert_eq!(severity(Capability::Lacks(7), Ok(8)), Severity::Fine);
        assert_eq!(severity(Capability::Lacks(7), Ok(7)), Severity::MayLose);
        assert_eq!(severity(Capability::Lacks(7), unread()), Severity::MayLose);
        assert_eq!(severity(Capability::Has, Ok(7)), Severity::Fine);
        let not_known = Capability::NotKnown(NotKnown("no".to_owned()));
        assert_eq!(severity(not_known, Ok(9)), Severity::Unknown);
    }
}
