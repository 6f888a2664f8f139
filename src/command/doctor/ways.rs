//! The ways to subscribers: the MTU of each route, and who must answer on it (`/proc/net/route`,
//! `/proc/net/arp`, proc(5)).

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use crate::bus::StaticSubscriber;
use crate::bus::address::Address;
use crate::bus::subscribers::FrameBytes;
use crate::command::grouped::Grouped;

use super::finding::{Finding, Known, NotKnown, first_of};
use super::host::NoRoute;
use super::running::Subscriber;
use super::sockets::parse_ip;

const ROUTE: &str = "route";
const NEIGHBOUR: &str = "neighbour";

/// A subscriber over UDP, configured or of a running bus.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// What it calls itself.
    pub name: String,
    /// Where its datagrams go.
    pub address: SocketAddr,
    /// What they are filled to, in bytes.
    pub frame_bytes: u32,
}

/// All targets, each once. What a running bus does comes before what is configured.
pub fn targets(configured: &[StaticSubscriber], running: &[Subscriber]) -> Vec<Target> {
    let running = running.iter().filter_map(|subscriber| {
        Some(Target {
            name: subscriber.name.clone(),
            address: subscriber.udp()?,
            frame_bytes: subscriber.frame_bytes,
        })
    });
    let configured = configured.iter().filter_map(|subscriber| {
        let Address::Ip(address) = subscriber.address else {
            return None;
        };
        let frame_bytes = FrameBytes::choose(subscriber.frame_bytes_max, &subscriber.address);
        Some(Target {
            name: subscriber.name.clone(),
            address,
            frame_bytes: frame_bytes.target,
        })
    });
    let mut seen = BTreeSet::new();
    let is_new = |target: &Target| seen.insert((target.address, target.name.clone()));
    running.chain(configured).filter(is_new).collect()
}

impl Target {
    fn whose(&self) -> String {
        match self.name.as_str() {
            "" => format!("subscriber udp://{}", self.address),
            name => format!("subscriber {name} (udp://{})", self.address),
        }
    }

    /// Bytes of the packet that a full frame makes.
    fn packet_bytes(&self) -> u32 {
        self.frame_bytes.saturating_add(self.header_bytes())
    }

    /// IP (RFC 791 without options, RFC 8200) and UDP (RFC 768).
    fn header_bytes(&self) -> u32 {
        match self.address.ip() {
            IpAddr::V4(_) => 28,
            IpAddr::V6(_) => 48,
        }
    }
}

/// Whether a full frame is one packet on each route.
pub fn routes(
    targets: &[Target],
    mtu: impl Fn(SocketAddr) -> Result<u32, NoRoute>,
) -> Vec<Finding> {
    let mut fitting = 0_u64;
    let findings: Vec<_> = targets
        .iter()
        .filter_map(|target| {
            let finding = route(target, mtu(target.address));
            fitting += u64::from(finding.is_none());
            finding
        })
        .collect();
    let mut findings = first_of(findings);
    if targets.is_empty() {
        findings.push(Finding::fine(ROUTE, "no subscriber over UDP is known"));
    } else if fitting > 0 {
        let text = format!(
            "on {} of {} routes to subscribers a full frame is one packet",
            Grouped(fitting),
            targets.len()
        );
        findings.push(Finding::fine(ROUTE, text));
    }
    findings
}

fn route(target: &Target, mtu: Result<u32, NoRoute>) -> Option<Finding> {
    let ip = target.address.ip();
    match mtu {
        Ok(mtu) if target.packet_bytes() <= mtu => None,
        Ok(mtu) => Some(Finding::may_lose(
            ROUTE,
            format!(
                "frames of {} bytes for {} make packets of {}, and the route's MTU is {} bytes",
                Grouped(target.frame_bytes.into()),
                target.whose(),
                Grouped(target.packet_bytes().into()),
                Grouped(mtu.into())
            ),
            "Such a frame travels in fragments: one of them lost is all of its events lost, and \
             many firewalls drop fragments.",
            format!(
                "# In the subscriber's [[subscriber]], or what it asks for in its lease:\n\
                 #   max_frame_bytes = {}\n\
                 ip route get {ip}   # which way it is",
                mtu.saturating_sub(target.header_bytes())
            ),
        )),
        Err(NoRoute::Unreachable(error)) => Some(Finding::loses(
            ROUTE,
            format!("there is no route to {}: {error}", target.whose()),
            "Everything for it is dropped (unreachable).",
            format!("ip route get {ip}"),
        )),
        Err(NoRoute::NotKnown(reason)) => {
            let what = format!("the MTU of the route to {}", target.whose());
            Some(Finding::unknown(ROUTE, &what, &reason))
        }
    }
}

/// Whether those answer whom datagrams are handed to: subscribers on the link, or gateways.
pub fn neighbours(
    targets: &[Target],
    routes: &Known<String>,
    neighbours: &Known<String>,
) -> Vec<Finding> {
    let remote = |target: &&Target| !Address::Ip(target.address).is_local();
    let remote: Vec<_> = targets.iter().filter(remote).collect();
    if remote.is_empty() {
        return vec![Finding::fine(NEIGHBOUR, "no subscriber is on another host")];
    }
    let mut findings = Vec::new();
    let v4: Vec<_> = remote
        .iter()
        .filter_map(|target| match target.address.ip() {
            IpAddr::V4(ip) => Some((*target, ip)),
            IpAddr::V6(_) => None,
        })
        .collect();
    if let Some(target) = remote.iter().find(|target| target.address.is_ipv6()) {
        let reason = NotKnown("the kernel shows IPv6 neighbours in no file".to_owned());
        let what = format!("whether {} answers on its link", target.whose());
        let finding = Finding::unknown(NEIGHBOUR, &what, &reason);
        findings.push(finding.with_mend("ip -6 neigh show   # FAILED and INCOMPLETE lose"));
    }
    if !v4.is_empty() {
        let tables = routes.as_ref().map_err(Clone::clone).and_then(|routes| {
            let neighbours = neighbours.as_ref().map_err(Clone::clone)?;
            Ok((parse_routes(routes)?, parse_unresolved(neighbours)?))
        });
        findings.extend(match tables {
            Ok((routes, unresolved)) => unresolved_findings(&v4, &routes, &unresolved),
            Err(reason) => {
                let what = "whether all subscribers answer on their links";
                vec![Finding::unknown(NEIGHBOUR, what, &reason)]
            }
        });
    }
    findings
}

fn unresolved_findings(
    targets: &[(&Target, Ipv4Addr)],
    routes: &[Route],
    unresolved: &BTreeSet<Ipv4Addr>,
) -> Vec<Finding> {
    let findings = targets.iter().filter_map(|(target, ip)| {
        let hop = next_hop(routes, *ip);
        unresolved.contains(&hop).then(|| {
            let (whose, who) = (target.whose(), if hop == *ip { "" } else { "the gateway " });
            Finding::loses(
                NEIGHBOUR,
                format!("{who}{hop} does not answer ARP, on the way to {whose}"),
                "Everything for this subscriber is lost. Until the kernel gives up, its datagrams \
                 also fill the bus's send buffer, which takes those of the living along.",
                format!(
                    "ping -c 3 {hop}; ip neigh show {hop}\n\
                     # Start that host or mend the link; if it is gone, take the subscriber out of \
                     the configuration."
                ),
            )
        })
    });
    let findings: Vec<_> = findings.collect();
    if findings.is_empty() {
        let text = "every neighbour on the way to an IPv4 subscriber answers ARP, or was not asked";
        return vec![Finding::fine(NEIGHBOUR, text)];
    }
    first_of(findings)
}

/// A line of `/proc/net/route`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Route {
    network: u32,
    mask: u32,
    gateway: Option<Ipv4Addr>,
    metric: u32,
}

/// Whom a datagram is handed to: the most specific route's gateway, or the destination itself.
/// Routes by rules of policy (ip-rule(8)) are not looked at.
fn next_hop(routes: &[Route], to: Ipv4Addr) -> Ipv4Addr {
    let leads = |route: &&Route| to.to_bits() & route.mask == route.network;
    let best = routes
        .iter()
        .filter(leads)
        .max_by_key(|route| (route.mask, std::cmp::Reverse(route.metric)));
    best.and_then(|route| route.gateway).unwrap_or(to)
}

fn parse_routes(text: &str) -> Known<Vec<Route>> {
    const IS_UP: u32 = 0x1;
    const HAS_GATEWAY: u32 = 0x2;
    let route = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let ip = |index: usize| match parse_ip(fields.get(index)?)? {
            IpAddr::V4(ip) => Some(ip),
            IpAddr::V6(_) => None,
        };
        let flags = u32::from_str_radix(fields.get(3)?, 16).ok()?;
        let route = Route {
            network: ip(1)?.to_bits(),
            mask: ip(7)?.to_bits(),
            gateway: ip(2).filter(|_| flags & HAS_GATEWAY != 0),
            metric: fields.get(6)?.parse().ok()?,
        };
        Some((flags & IS_UP != 0).then_some(route))
    };
    let routes = table(text, "Iface", "/proc/net/route", route)?;
    Ok(routes.into_iter().flatten().collect())
}

/// Those that were asked and did not answer: entries without the flag ATF_COM (arp(7)).
fn parse_unresolved(text: &str) -> Known<BTreeSet<Ipv4Addr>> {
    const IS_COMPLETE: u32 = 0x2;
    let entry = |line: &str| {
        let mut fields = line.split_whitespace();
        let ip: Ipv4Addr = fields.next()?.parse().ok()?;
        let flags = fields.nth(1)?.strip_prefix("0x")?;
        let flags = u32::from_str_radix(flags, 16).ok()?;
        Some((flags & IS_COMPLETE == 0).then_some(ip))
    };
    let entries = table(text, "IP address", "/proc/net/arp", entry)?;
    Ok(entries.into_iter().flatten().collect())
}

/// The lines behind a head, each understood.
fn table<T>(
    text: &str,
    head: &str,
    file: &str,
    parse: impl Fn(&str) -> Option<T>,
) -> Known<Vec<T>> {
    let mut lines = text.lines();
    if !lines.next().is_some_and(|line| line.starts_with(head)) {
        return Err(NotKnown(format!("{file} has no head")));
    }
    let line = |(line, number): (&str, u32)| {
        parse(line).ok_or_else(|| NotKnown(format!("line {number} of {file} is odd")))
    };
    lines.zip(2..).map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::super::finding::Severity;
    use super::*;
    use crate::bus::subscribers::Terms;

    const ROUTES: &str = "\
Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0
eth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0
eth1\t000200C0\t090200C0\t0003\t0\t0\t100\t00FFFFFF\t0\t0\t0
eth2\t070200C0\t090200C0\t0002\t0\t0\t0\tFFFFFFFF\t0\t0\t0
";
    const ARP: &str = "\
IP address       HW type     Flags       HW address            Mask     Device
192.0.2.1        0x1         0x2         02:fc:00:00:00:05     *        eth0
192.0.2.9        0x1         0x0         00:00:00:00:00:00     *        eth0
192.0.2.10       0x1         0x6         02:fc:00:00:00:06     *        eth0
";

    fn target(address: &str, frame_bytes: u32) -> Target {
        Target {
            name: "indexer".to_owned(),
            address: address.parse().unwrap(),
            frame_bytes,
        }
    }

    fn judge_route(address: &str, frame_bytes: u32, mtu: Result<u32, NoRoute>) -> Vec<Finding> {
        routes(&[target(address, frame_bytes)], |_| mtu.clone())
    }

    #[test]
    fn a_frame_and_its_headers_fit_the_mtu_or_are_fragments() {
        let severity = |address, bytes, mtu| judge_route(address, bytes, Ok(mtu))[0].severity;
        assert_eq!(severity("192.0.2.9:1", 1_472, 1_500), Severity::Fine);
        assert_eq!(severity("192.0.2.9:1", 1_473, 1_500), Severity::MayLose);
        assert_eq!(severity("[2001:db8::1]:1", 1_452, 1_500), Severity::Fine);
        assert_eq!(severity("[2001:db8::1]:1", 1_453, 1_500), Severity::MayLose);
        assert_eq!(severity("192.0.2.9:1", u32::MAX, 0), Severity::MayLose);
        let finding = &judge_route("192.0.2.9:1", 9_000, Ok(1_500))[0];
        let mend = finding.mend.as_deref().unwrap();
        assert!(mend.contains("max_frame_bytes = 1472\n"), "{mend}");
        assert!(finding.finding.contains("MTU is 1,500 bytes"));
    }

    #[test]
    fn no_route_loses_and_no_answer_is_not_known() {
        let unreachable = NoRoute::Unreachable("Network is unreachable".to_owned());
        let found = judge_route("192.0.2.9:1", 1_400, Err(unreachable));
        assert_eq!(found[0].severity, Severity::Loses);
        let not_known = NoRoute::NotKnown(NotKnown("no".to_owned()));
        let found = judge_route("192.0.2.9:1", 1_400, Err(not_known));
        assert_eq!((found.len(), found[0].severity), (1, Severity::Unknown));
        assert_eq!(routes(&[], |_| Ok(0))[0].severity, Severity::Fine);
    }

    #[test]
    fn many_findings_are_told_as_many() {
        let targets = vec![target("192.0.2.9:1", 9_000); 100];
        let found = routes(&targets, |_| Ok(1_500));
        assert_eq!(found.len(), 17);
        assert_eq!(found[16].finding, "84 more findings of this kind");
    }

    #[cfg(target_endian = "little")]
    #[test]
    fn the_most_specific_route_that_is_up_leads() {
        let routes = parse_routes(ROUTES).unwrap();
        let hop = |to: &str| next_hop(&routes, to.parse().unwrap()).to_string();
        assert_eq!(hop("192.0.2.7"), "192.0.2.7");
        assert_eq!(hop("198.51.100.1"), "192.0.2.1");
        assert_eq!(next_hop(&[], Ipv4Addr::BROADCAST), Ipv4Addr::BROADCAST);
    }

    fn judge(addresses: &[&str], arp: &str) -> Vec<Finding> {
        let targets: Vec<_> = addresses.iter().map(|it| target(it, 1_400)).collect();
        neighbours(&targets, &Ok(ROUTES.to_owned()), &Ok(arp.to_owned()))
    }

    #[cfg(target_endian = "little")]
    #[test]
    fn a_neighbour_that_does_not_answer_loses() {
        let severity = |address| judge(&[address], ARP)[0].severity;
        assert_eq!(severity("192.0.2.9:1"), Severity::Loses);
        assert_eq!(severity("192.0.2.10:1"), Severity::Fine);
        assert_eq!(severity("192.0.2.11:1"), Severity::Fine);
        assert_eq!(severity("127.0.0.1:1"), Severity::Fine);
        assert_eq!(severity("[2001:db8::1]:1"), Severity::Unknown);
        let gone = ARP.replace("0x2 ", "0x0 ");
        let found = judge(&["198.51.100.1:1"], &gone);
        assert_eq!(
            found[0].finding,
            "the gateway 192.0.2.1 does not answer ARP, on the way to subscriber indexer \
             (udp://198.51.100.1:1)"
        );
    }

    #[test]
    fn odd_tables_are_not_known() {
        for arp in [
            "",
            "IP address\n192.0.2.9\n",
            "IP address\nx 0x1 0x0\n",
            "\0",
        ] {
            let found = judge(&["192.0.2.9:1"], arp);
            assert_eq!(found[0].severity, Severity::Unknown, "{arp:?}");
        }
        for line in [
            "eth0",
            "eth0 0 0 0 0 0 0 0",
            "eth0 000200C0 00000000 x 0 0 0 00FFFFFF",
        ] {
            assert!(parse_routes(&format!("Iface\n{line}\n")).is_err(), "{line}");
        }
    }

    #[test]
    fn a_target_is_judged_once_and_as_the_running_bus_does() {
        let running = |address: &str| Subscriber {
            name: "a".to_owned(),
            address: address.to_owned(),
            frame_bytes: 9_000,
        };
        let configured = |name: &str, address: &str| StaticSubscriber {
            name: name.to_owned(),
            address: Address::Ip(address.parse().unwrap()),
            topics: Vec::new(),
            frame_bytes_max: None,
            terms: Terms::default(),
        };
        let targets = targets(
            &[
                configured("a", "192.0.2.1:1"),
                configured("b", "192.0.2.2:1"),
            ],
            &[
                running("udp://192.0.2.1:1"),
                running("unix:///x"),
                running("?"),
            ],
        );
        let told: Vec<_> = targets
            .iter()
            .map(|it| (it.name.as_str(), it.frame_bytes))
            .collect();
        assert_eq!(told, [("a", 9_000), ("b", 1_400)]);
    }
}
