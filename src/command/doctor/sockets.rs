//! The kernel's lists of sockets: `/proc/net/udp`, `/proc/net/udp6`, `/proc/net/unix` (proc(5)).
//!
//! A bus's sockets are known by the numbers that it tells. Those of others on the same port are
//! not counted.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::command::grouped::Grouped;

use super::buffers::raise;
use super::finding::{Finding, Known, NotKnown};
use super::running::{Bus, Listener};

const CHECK: &str = "kernel-drops";

/// A UDP socket of this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Socket {
    /// Where it is bound.
    pub local: SocketAddr,
    /// Whose it is.
    pub user: u32,
    /// Its number.
    pub inode: u64,
    /// Datagrams dropped since it was made.
    pub drops: u64,
}

impl Socket {
    /// Whether it is this listener's, by number and address.
    pub fn is_of(&self, listener: &Listener) -> bool {
        // Not by the address as a whole, which may also name a link.
        let is_there =
            |local: SocketAddr| (self.local.ip(), self.local.port()) == (local.ip(), local.port());
        listener.udp().is_some_and(is_there) && listener.inodes.contains(&self.inode)
    }
}

/// Reads `/proc/net/udp` or `/proc/net/udp6`.
pub fn parse_udp(text: &str) -> Known<Vec<Socket>> {
    let mut lines = text.lines();
    let is_head = |line: &&str| line.contains("local_address") && line.contains("drops");
    lines
        .next()
        .filter(is_head)
        .ok_or_else(|| NotKnown("the list of UDP sockets has no head".to_owned()))?;
    let socket = |(line, number): (&str, u32)| {
        let why = || NotKnown(format!("line {number} of the list of UDP sockets is odd"));
        parse_socket(line).ok_or_else(why)
    };
    lines.zip(2..).map(socket).collect()
}

fn parse_socket(line: &str) -> Option<Socket> {
    const LOCAL: usize = 1;
    const USER: usize = 7;
    const INODE: usize = 9;
    const DROPS: usize = 12;
    let fields: Vec<&str> = line.split_whitespace().collect();
    let field = |index: usize| fields.get(index).copied();
    let (ip, port) = field(LOCAL)?.split_once(':')?;
    Some(Socket {
        local: SocketAddr::new(parse_ip(ip)?, u16::from_str_radix(port, 16).ok()?),
        user: field(USER)?.parse().ok()?,
        inode: field(INODE)?.parse().ok()?,
        drops: field(DROPS)?.parse().ok()?,
    })
}

/// An address as the kernel prints it: its words in hexadecimal, in the order of this processor.
pub fn parse_ip(text: &str) -> Option<IpAddr> {
    const WORD_DIGITS: usize = 8;
    if !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let word = |digits: &[u8]| {
        let digits = std::str::from_utf8(digits).ok()?;
        Some(u32::from_str_radix(digits, 16).ok()?.to_ne_bytes())
    };
    let words = text.as_bytes().chunks_exact(WORD_DIGITS);
    let bytes = words.map(word).collect::<Option<Vec<_>>>()?.concat();
    match text.len() {
        8 => <[u8; 4]>::try_from(bytes)
            .ok()
            .map(|bytes| Ipv4Addr::from(bytes).into()),
        32 => <[u8; 16]>::try_from(bytes)
            .ok()
            .map(|bytes| Ipv6Addr::from(bytes).into()),
        _ => None,
    }
}

/// The numbers of the sockets in `/proc/net/unix`.
pub fn parse_unix_inodes(text: &str) -> Vec<u64> {
    const INODE: usize = 6;
    let inode = |line: &str| line.split_whitespace().nth(INODE)?.parse().ok();
    text.lines().skip(1).filter_map(inode).collect()
}

/// What the kernel dropped in front of a running bus. The bus's own count, which has all of its
/// listeners in one, stands in where the lists do not show its sockets.
pub fn kernel_drops(bus: &Bus, sockets: &Known<Vec<Socket>>) -> Vec<Finding> {
    let listed = sockets.as_ref().map_err(Clone::clone);
    let drops = match listed.and_then(|sockets| drops_by_listener(bus, sockets)) {
        Ok(drops) => drops,
        Err(reason) => match drops_by_bus(bus) {
            Ok(drops) => vec![drops],
            Err(also) => {
                let reasons = NotKnown(format!("{reason}; {also}"));
                let what = "what the kernel dropped in front of the bus";
                return vec![Finding::unknown(CHECK, what, &reasons)];
            }
        },
    };
    let since = bus.status.since_start();
    let drops = drops.iter().filter(|drops| drops.count > 0);
    let mut findings: Vec<_> = drops.map(|drops| dropped(drops, &since)).collect();
    if findings.is_empty() {
        let none = format!("the kernel dropped no datagram in front of the bus {since}");
        findings.push(Finding::fine(CHECK, none));
    }
    findings
}

/// Datagrams that the kernel dropped.
#[derive(Debug)]
struct Drops {
    /// In front of whom.
    whose: String,
    count: u64,
    /// Datagrams that were taken there.
    taken: Option<u64>,
    /// The receive buffer there, wanted and granted, in bytes.
    buffer: Option<(u64, u64)>,
}

fn dropped(drops: &Drops, since: &str) -> Finding {
    let count = drops.count;
    let of = drops.taken.map(|taken| taken.saturating_add(count));
    let of = of.map_or(String::new(), |all| format!(" of {}", Grouped(all)));
    Finding::loses(
        CHECK,
        format!(
            "the kernel dropped {}{of} datagrams in front of {} {since}",
            Grouped(count),
            drops.whose
        ),
        "The receive buffer was full: it is too small for the bursts that come, or the bus was \
         too slow for what comes, or stood still.",
        larger_buffer(drops.buffer) + "ss -ulnm   # the last number, d, is that of the drops",
    )
}

fn larger_buffer(buffer: Option<(u64, u64)>) -> String {
    /// What the configuration says where it says nothing, in bytes.
    const DEFAULT: u64 = 8 << 20;
    match buffer {
        Some((wanted, granted)) if granted < wanted => {
            format!("{}\n", raise("net.core.rmem_max", wanted))
        }
        buffer => {
            let (wanted, _) = buffer.unwrap_or_default();
            let wanted = wanted.saturating_mul(2).max(DEFAULT);
            format!(
                "# A larger buffer, in [loop] of the configuration:\n\
                 #   receive_buffer_bytes = {wanted}\n\
                 # If they come without bursts, too: publish more events in a datagram, or have \
                 several publishers' load shared, workers = 2 in [loop].\n"
            )
        }
    }
}

/// By listener on UDP. A listener whose sockets are not in the lists is elsewhere, and so is the
/// bus.
fn drops_by_listener(bus: &Bus, sockets: &[Socket]) -> Known<Vec<Drops>> {
    let elsewhere = || {
        NotKnown("its sockets are not among this host's, or in another network namespace".into())
    };
    let mut all = Vec::new();
    for listener in &bus.status.listeners {
        if listener.udp().is_none() {
            continue;
        }
        let its = sockets.iter().filter(|socket| socket.is_of(listener));
        let its: Vec<_> = its.collect();
        if its.is_empty() {
            return Err(elsewhere());
        }
        let drops = its.iter().map(|socket| socket.drops);
        all.push(Drops {
            whose: listener.address.clone(),
            count: drops.fold(0, u64::saturating_add),
            taken: taken(bus, &listener.address),
            buffer: listener.buffer(),
        });
    }
    Ok(all)
}

fn taken(bus: &Bus, listener: &str) -> Option<u64> {
    let mut frames = bus.metrics.as_ref().ok()?.samples("ingress_frames_total");
    let its = frames.find(|sample| sample.label("listener") == Some(listener))?;
    Some(its.value)
}

fn drops_by_bus(bus: &Bus) -> Known<Drops> {
    let metrics = bus.metrics.as_ref().map_err(Clone::clone)?;
    let mut frames = metrics.samples("ingress_dropped_frames_total");
    let drops = frames.find(|sample| sample.label("reason") == Some("kernel_buffer"));
    let drops = drops.ok_or_else(|| NotKnown("the bus's system does not tell".to_owned()))?;
    Ok(Drops {
        whose: "the bus".to_owned(),
        count: drops.value,
        taken: Some(metrics.sum("ingress_frames_total")),
        buffer: None,
    })
}

/// Drops of sockets where a bus of this configuration listens, if no bus tells whose they are.
pub fn drops_of_nobody(listen: &[SocketAddr], sockets: &Known<Vec<Socket>>) -> Finding {
    const WHAT: &str = "what the kernel drops in front of a bus";
    let sockets = match sockets {
        Ok(sockets) => sockets,
        Err(reason) => return Finding::unknown(CHECK, WHAT, reason),
    };
    let held = sockets
        .iter()
        .find(|socket| listen.contains(&socket.local) && socket.drops > 0);
    let Some(socket) = held else {
        let reason = NotKnown("no bus tells which sockets are its own".to_owned());
        return Finding::unknown(CHECK, WHAT, &reason);
    };
    let reason = NotKnown(format!(
        "udp://{} is held by a socket of user {} that has dropped {} datagrams, and no bus says \
         that it is its own",
        socket.local,
        socket.user,
        Grouped(socket.drops)
    ));
    Finding::unknown(CHECK, WHAT, &reason).with_mend("sudo ss -ulnpm   # whose it is")
}

#[cfg(test)]
mod tests {
    use super::super::finding::Severity;
    use super::*;
    use crate::command::admin_client::Scrape;

    const UDP: &str = "   \
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops            
15312: 0100007F:1C6D 00000000:0000 07 00000000:00000000 00:00000000 00000000  1000        0 101 2 00000000a6794ba8 40       
15312: 0100007F:1C6D 00000000:0000 07 00000000:00000000 00:00000000 00000000  1000        0 102 2 00000000a6794ba8 2       
15312: 0100007F:1C6D 00000000:0000 07 00000000:00000000 00:00000000 00000000  1001        0 666 2 00000000a6794ba8 1000       
15313: 00000000:1C6D 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 101 2 0000000000000000 7
";
    const UDP6: &str = "  \
  sl  local_address                         remote_address                        st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops
15313: 00000000000000000000000001000000:1C6D 00000000000000000000000000000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 2313454 2 000000008ce15173 0
";

    fn bus(listener: &str, metrics: &str) -> Bus {
        let status = "{\"version\":\"1\",\"uptime_seconds\":5,\"listeners\":[]}";
        let mut bus = Bus {
            status: serde_json::from_str(status).unwrap(),
            subscribers: Ok(Vec::new()),
            metrics: Ok(Scrape::parse(metrics)),
        };
        bus.status.listeners.push(Listener::example(listener, 1, 1));
        bus
    }

    #[cfg(target_endian = "little")]
    #[test]
    fn sockets_of_both_families_are_read() {
        let sockets = parse_udp(UDP).unwrap();
        assert_eq!(sockets.len(), 4);
        assert_eq!(
            sockets[0],
            Socket {
                local: "127.0.0.1:7277".parse().unwrap(),
                user: 1_000,
                inode: 101,
                drops: 40,
            }
        );
        let sockets = parse_udp(UDP6).unwrap();
        assert_eq!(sockets[0].local, "[::1]:7277".parse().unwrap());
    }

    #[test]
    fn odd_lists_are_refused() {
        let head = UDP.lines().next().unwrap();
        assert_eq!(parse_udp(head), Ok(Vec::new()));
        let line = UDP.lines().nth(1).unwrap();
        for (text, told) in [
            (String::new(), "no head"),
            ("\u{1b}[2J\n".to_owned(), "no head"),
            (format!("{head}\n\n"), "line 2"),
            (
                format!("{head}\n{line}\n{}", line.get(..90).unwrap()),
                "line 3",
            ),
            (format!("{head}\n{}", line.replace("7F", "7G")), "line 2"),
            (format!("{head}\n{}", line.replace("7F", "é")), "line 2"),
            (format!("{head}\n{}", line.replace("7F", "+F")), "line 2"),
            (
                format!("{head}\n{}", line.replace(" 101 ", " -1 ")),
                "line 2",
            ),
        ] {
            let refused = parse_udp(&text).unwrap_err();
            assert!(refused.0.contains(told), "{text} told {refused}");
        }
    }

    #[test]
    fn unix_sockets_have_numbers() {
        let text = "Num       RefCount Protocol Flags    Type St Inode Path\n\
                    0000000000000000: 00000002 00000000 00000000 0002 01 4711 /run/bus.sock\n\
                    odd\n\
                    0000000000000000: 00000003 00000000 00000000 0001 03 12\n";
        assert_eq!(parse_unix_inodes(text), [4_711, 12]);
        assert!(parse_unix_inodes("").is_empty());
    }

    #[cfg(target_endian = "little")]
    #[test]
    fn drops_are_the_buss_own_and_nobody_elses() {
        let page = "hailmary_ingress_frames_total{listener=\"udp://127.0.0.1:7277\"} 958\n";
        let findings = kernel_drops(&bus("udp://127.0.0.1:7277", page), &parse_udp(UDP));
        assert_eq!(findings.len(), 1);
        assert_eq!(findings[0].severity, Severity::Loses);
        assert_eq!(
            findings[0].finding,
            "the kernel dropped 42 of 1,000 datagrams in front of udp://127.0.0.1:7277 in the 5 s \
             since it started"
        );
        let mend = findings[0].mend.as_deref().unwrap();
        assert!(mend.contains("receive_buffer_bytes = 8388608\n"), "{mend}");
    }

    #[test]
    fn a_clamped_buffer_is_mended_before_a_larger_one_is_wanted() {
        let mend = |wanted, granted| larger_buffer(Some((wanted, granted)));
        assert!(mend(1 << 24, 1 << 23).starts_with("sudo sysctl -w net.core.rmem_max=16777216\n"));
        assert!(mend(1 << 24, 1 << 24).contains("receive_buffer_bytes = 33554432\n"));
        assert!(mend(u64::MAX, u64::MAX).ends_with('\n'));
    }

    #[test]
    fn where_sockets_are_not_to_be_seen_the_bus_tells() {
        let page = "hailmary_ingress_dropped_frames_total{reason=\"kernel_buffer\"} 9\n";
        let elsewhere = "udp://127.0.0.2:7277";
        let sockets = parse_udp(UDP);
        let unread = Err(NotKnown("no".to_owned()));
        for sockets in [&sockets, &unread] {
            let told = kernel_drops(&bus(elsewhere, page), sockets);
            assert!(
                told[0]
                    .finding
                    .contains(" 9 datagrams in front of the bus ")
            );
            let page = page.replace('9', "0");
            let fine = kernel_drops(&bus(elsewhere, &page), sockets);
            assert_eq!(fine[0].severity, Severity::Fine);
            let neither = kernel_drops(&bus(elsewhere, ""), sockets);
            assert_eq!(neither[0].severity, Severity::Unknown);
        }
        let unix = kernel_drops(&bus("unix:///run/bus.sock", ""), &sockets);
        assert_eq!(unix[0].severity, Severity::Fine, "it has none to drop by");
    }

    #[cfg(target_endian = "little")]
    #[test]
    fn a_strangers_drops_are_told_as_such() {
        let listen = |address: &str| [address.parse().unwrap()];
        let sockets = parse_udp(UDP);
        let told = drops_of_nobody(&listen("127.0.0.1:7277"), &sockets);
        assert_eq!(told.severity, Severity::Unknown);
        assert!(
            told.finding
                .contains("a socket of user 1000 that has dropped 40")
        );
        let told = drops_of_nobody(&listen("127.0.0.1:1"), &sockets);
        assert!(told.finding.contains("no bus tells"));
    }
}
