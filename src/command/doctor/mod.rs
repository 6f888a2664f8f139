//! `hailmary doctor`: what on this host loses events, or will, and what mends it.
//!
//! Each check is a function from what the system or a running bus tells to findings; `host` and
//! `running` are where that is read. Nothing is changed and no rights are needed: what cannot be
//! read is told as not known.

mod buffers;
mod counts;
mod finding;
mod host;
mod report;
mod running;
mod sockets;
mod softnet;
mod ways;

use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use crate::bus::address::Address;
use crate::command::admin_client::AdminClient;
use crate::config::{Config, ConfigError, Plan};
use crate::net::listener::ListenAddress;

use self::buffers::Capability;
use self::finding::{Finding, Known, NotKnown};
use self::host::Host;
use self::report::Report;
use self::running::{Answer, Bus, Chosen, Listener};
use self::sockets::Socket;

/// How long any one answer of the running bus may take: it takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(5);

/// Says what on this host will lose events, and the command that mends it.
///
/// Reads the kernel's limits and counts, the routes to subscribers, and asks the running bus.
/// Changes nothing, and needs no rights.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  hailmary doctor
  hailmary doctor --config hailmary.toml
  hailmary doctor --admin 127.0.0.1:7278 --json

Exit status: 0 nothing found that loses events, 1 something does or will, 2 wrong usage,
78 bad configuration.")]
pub struct Doctor {
    /// The bus's configuration; the defaults if left out.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Ask the bus whose admin is here, HOST:PORT or http://HOST:PORT, and not where the
    /// configuration says; not to reach it is a finding.
    #[arg(long, value_name = "ADDR|URL", value_parser = admin_address)]
    admin: Option<String>,
    /// Print one JSON object in place of text.
    #[arg(long)]
    json: bool,
}

impl Doctor {
    /// Looks at everything and prints what it found.
    ///
    /// # Errors
    ///
    /// A [`ConfigError`] where the configuration is at fault; else that something loses events.
    pub fn run(&self) -> anyhow::Result<()> {
        let plan = self.plan()?;
        let report = Report::new(examine(&Host::system(), &plan, &self.admin(&plan)));
        let text = match self.json {
            true => serde_json::to_string(&report)? + "\n",
            false => report.to_string(),
        };
        io::stdout().write_all(text.as_bytes())?;
        report.check()
    }

    fn plan(&self) -> Result<Plan, ConfigError> {
        match &self.config {
            Some(file) => Ok(Config::load(file)?.1),
            None => Config::default().check("defaults", ""),
        }
    }

    fn admin(&self, plan: &Plan) -> Asked {
        match (&self.admin, plan.admin) {
            (Some(address), _) => Asked::At(address.clone(), Chosen::ByUser),
            (None, Some(address)) if address.port() != 0 => {
                Asked::At(reachable(address).to_string(), Chosen::ByConfiguration)
            }
            (None, Some(_)) => Asked::Not(NotKnown("admin may have any port (0)".to_owned())),
            (None, None) => Asked::Not(NotKnown("admin is off in the configuration".to_owned())),
        }
    }
}

/// Whom to ask.
#[derive(Debug)]
enum Asked {
    At(String, Chosen),
    Not(NotKnown),
}

/// HOST:PORT of an address or URL.
fn admin_address(text: &str) -> Result<String, &'static str> {
    let address = text.strip_prefix("http://").unwrap_or(text);
    let address = address.strip_suffix('/').unwrap_or(address);
    let parts = address.rsplit_once(':');
    let is_legal = parts.is_some_and(|(host, port)| {
        let is_port = port.parse::<u16>().is_ok_and(|port| port > 0);
        is_port && !host.is_empty() && !host.contains('/')
    });
    is_legal
        .then(|| address.to_owned())
        .ok_or("an admin's address is HOST:PORT or http://HOST:PORT")
}

/// Where to reach who listens on an address.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

/// All checks.
fn examine(host: &Host, plan: &Plan, asked: &Asked) -> Vec<Finding> {
    let (answer, reached) = ask(asked);
    let sockets = udp_sockets(host);
    let mut findings = vec![reached];
    let Answer::Bus(bus) = answer else {
        let drops = sockets::drops_of_nobody(&udp_addresses(plan), &sockets);
        findings.push(drops);
        findings.extend(of_buffers(host, plan, &[], None));
        findings.extend(of_host(host, plan, None));
        return findings;
    };
    let place = place(host, &bus, &sockets);
    let here = (place != Place::Elsewhere).then_some(&*bus);
    findings.extend(place.finding());
    findings.extend(sockets::kernel_drops(&bus, &sockets));
    findings.extend(counted(&bus));
    findings.extend(of_buffers(host, plan, &bus.status.listeners, here));
    findings.extend(of_host(host, plan, here));
    findings
}

/// What the bus answers, and whether it does.
fn ask(asked: &Asked) -> (Answer, Finding) {
    let (answer, address, chosen) = match asked {
        Asked::At(address, chosen) => {
            let admin = AdminClient::new(address, PATIENCE);
            (running::ask(&admin), address.as_str(), *chosen)
        }
        Asked::Not(reason) => {
            let answer = Answer::NotAsked(reason.clone());
            (answer, "", Chosen::ByConfiguration)
        }
    };
    let reached = running::reached(&answer, address, chosen);
    (answer, reached)
}

/// The checks of socket buffers: what the listeners of the bus that was asked were granted,
/// wherever it runs, and what this host grants.
fn of_buffers(
    host: &Host,
    plan: &Plan,
    listeners: &[Listener],
    here: Option<&Bus>,
) -> Vec<Finding> {
    let capability = capability(host, here);
    let receive = host.sysctl("net.core.rmem_max");
    let send = host.sysctl("net.core.wmem_max");
    let receive_wanted = u64::try_from(plan.receive_buffer_bytes).unwrap_or(u64::MAX);
    let send_wanted = u64::try_from(plan.send_buffer_bytes).unwrap_or(u64::MAX);

    let mut findings = buffers::receive(&receive, receive_wanted, listeners, &capability);
    findings.push(buffers::send(&send, send_wanted, &capability));
    let limits = [(&receive, receive_wanted), (&send, send_wanted)];
    findings.push(buffers::capability_finding(&capability, &limits));
    findings
}

/// The other checks of this host, with the bus that runs on it.
fn of_host(host: &Host, plan: &Plan, bus: Option<&Bus>) -> Vec<Finding> {
    let mut findings = vec![
        buffers::unix_queue(
            &host.sysctl("net.unix.max_dgram_qlen"),
            &unix_sockets(plan, bus),
        ),
        softnet::softnet(
            &host.read("net/softnet_stat"),
            &host.sysctl("net.core.netdev_max_backlog"),
        ),
    ];
    let subscribers = match bus.map(|bus| bus.subscribers.as_deref()) {
        Some(Err(reason)) => {
            let what = "who subscribes at the running bus";
            findings.push(Finding::unknown("bus", what, reason));
            &[]
        }
        Some(Ok(subscribers)) => subscribers,
        None => &[],
    };
    let targets = ways::targets(&plan.settings.subscribers, subscribers);
    findings.extend(ways::routes(&targets, |to| host.route_mtu(to)));
    let (routes, arp) = (host.read("net/route"), host.read("net/arp"));
    findings.extend(ways::neighbours(&targets, &routes, &arp));
    findings
}

fn counted(bus: &Bus) -> Vec<Finding> {
    match &bus.metrics {
        Ok(metrics) => counts::counted(metrics, &bus.status.since_start()),
        Err(reason) => vec![Finding::unknown("counted", "what the bus lost", reason)],
    }
}

/// Where a bus runs.
#[derive(Debug, PartialEq, Eq)]
enum Place {
    /// On this host, in this network namespace.
    Here,
    /// On another host, or in another network namespace.
    Elsewhere,
    /// Why that cannot be told. It is taken to be here then.
    NotKnown(NotKnown),
}

impl Place {
    fn finding(&self) -> Option<Finding> {
        match self {
            Place::Here => None,
            Place::Elsewhere => {
                let reason = NotKnown(
                    "its sockets are not among this host's, so it runs on another host or in \
                     another network namespace; what is said here of limits, routes and \
                     neighbours is of this host alone"
                        .to_owned(),
                );
                let finding = Finding::unknown("bus", "what the bus's own host loses", &reason);
                Some(finding.with_mend("# Run hailmary doctor there, in a container inside of it."))
            }
            Place::NotKnown(reason) => {
                let what = "whether the bus runs on this host";
                Some(Finding::unknown("bus", what, reason))
            }
        }
    }
}

fn udp_sockets(host: &Host) -> Known<Vec<Socket>> {
    let mut sockets = sockets::parse_udp(&host.read("net/udp")?)?;
    // A system without IPv6 has no such file.
    if host.has("net/udp6") {
        sockets.extend(sockets::parse_udp(&host.read("net/udp6")?)?);
    }
    Ok(sockets)
}

/// Whether one of the sockets that the bus tells is this host's, by number and, on UDP, address.
fn place(host: &Host, bus: &Bus, udp: &Known<Vec<Socket>>) -> Place {
    let unix = host.read("net/unix");
    let unix = unix.map(|text| sockets::parse_unix_inodes(&text));
    let is_listed = |listener: &Listener| match listener.udp() {
        Some(_) => udp.iter().flatten().any(|socket| socket.is_of(listener)),
        None => {
            let mut listed = unix.iter().flatten();
            listed.any(|inode| listener.inodes.contains(inode))
        }
    };
    if bus.status.listeners.iter().any(is_listed) {
        return Place::Here;
    }
    match (udp, unix) {
        (Err(reason), _) => Place::NotKnown(reason.clone()),
        (_, Err(reason)) => Place::NotKnown(reason),
        (Ok(_), Ok(_)) => Place::Elsewhere,
    }
}

fn capability(host: &Host, bus: Option<&Bus>) -> Capability {
    let Some(bus) = bus else {
        return Capability::NoBus;
    };
    let told = bus.status.pid.ok_or_else(|| {
        let why = "it does not tell its process";
        NotKnown(why.to_owned())
    });
    let dropped = &bus.status.confinement.dropped;
    let read = |pid: u32| {
        let capability = buffers::capability(pid, &host.read(&format!("{pid}/status"))?)?;
        Ok(capability.after_dropping(dropped))
    };
    told.and_then(read).unwrap_or_else(Capability::NotKnown)
}

fn udp_addresses(plan: &Plan) -> Vec<SocketAddr> {
    let udp = |address: &ListenAddress| match address {
        ListenAddress::Udp(address) => Some(*address),
        ListenAddress::Unix(_) => None,
    };
    plan.listen.iter().filter_map(udp).collect()
}

/// Unix sockets that datagrams wait in: listeners and subscribers, each once.
fn unix_sockets(plan: &Plan, bus: Option<&Bus>) -> Vec<String> {
    let listeners = plan.listen.iter().map(ToString::to_string);
    let subscribers = plan.settings.subscribers.iter();
    let subscribers = subscribers.map(|subscriber| Address::to_string(&subscriber.address));
    let running = bus.into_iter().flat_map(|bus| {
        let listeners = bus.status.listeners.iter().map(|it| it.address.clone());
        let subscribers = bus.subscribers.iter().flatten();
        listeners.chain(subscribers.map(|it| it.address.clone()))
    });
    let all = listeners.chain(subscribers).chain(running);
    let mut unix: Vec<String> = all.filter(|it| it.starts_with("unix://")).collect();
    unix.sort_unstable();
    unix.dedup();
    unix
}

#[cfg(test)]
mod tests;
