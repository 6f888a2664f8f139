use std::fs;
use std::path::Path;

use super::finding::Severity;
use super::*;

const UDP: &str = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   \
                   uid  timeout inode ref pointer drops\n";

/// A host of which these files are known and no others.
fn examine_with(files: &[(&str, &str)], config: &str) -> Vec<Finding> {
    let proc = tempfile::tempdir().unwrap();
    for (file, text) in files {
        let path = proc.path().join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    examine_at(proc.path(), config)
}

fn examine_at(proc: &Path, config: &str) -> Vec<Finding> {
    let plan = Config::parse("x", config).unwrap().1;
    let asked = Asked::Not(NotKnown("admin is off".to_owned()));
    examine(&Host::at(proc), &plan, &asked)
}

fn severities(findings: &[Finding], check: &str) -> Vec<Severity> {
    let its = findings.iter().filter(|finding| finding.check == check);
    its.map(|finding| finding.severity).collect()
}

const CONFIG: &str = "[listen]\nunix = [\"/run/bus.sock\"]\n";

#[test]
fn what_cannot_be_read_is_told_check_by_check() {
    let findings = examine_with(&[], CONFIG);
    for check in [
        "bus",
        "kernel-drops",
        "receive-buffer",
        "send-buffer",
        "unix-queue",
        "softnet",
    ] {
        assert_eq!(severities(&findings, check), [Severity::Unknown], "{check}");
    }
    assert!(Report::new(findings).check().is_ok());
}

#[test]
fn a_good_host_and_a_bad_one_are_told_apart() {
    let host = |limit, queue, softnet| {
        [
            ("sys/net/core/rmem_max", limit),
            ("sys/net/core/wmem_max", limit),
            ("sys/net/core/netdev_max_backlog", "1000\n"),
            ("sys/net/unix/max_dgram_qlen", queue),
            ("net/softnet_stat", softnet),
            ("net/udp", UDP),
        ]
    };
    let good = examine_with(&host("8388608\n", "512\n", "0001 0000 0001\n"), CONFIG);
    let bad = examine_with(&host("212992\n", "10\n", "0001 0001 0001\n"), CONFIG);
    for check in ["receive-buffer", "send-buffer", "unix-queue", "softnet"] {
        assert_eq!(severities(&good, check), [Severity::Fine], "{check}");
        assert_eq!(severities(&bad, check), [Severity::MayLose], "{check}");
    }
    assert!(Report::new(good).check().is_ok());
    assert!(Report::new(bad).check().is_err());
}

#[cfg(target_endian = "little")]
#[test]
fn a_configured_subscriber_whose_neighbour_is_silent_is_told() {
    let config = "[[subscriber]]\nname = \"a\"\naddress = \"192.0.2.9:1\"\ntopics = [\"a\"]\n";
    let findings = examine_with(
        &[
            ("net/udp", UDP),
            (
                "net/route",
                "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\n\
                 eth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\n",
            ),
            (
                "net/arp",
                "IP address HW type Flags HW address Mask Device\n\
                 192.0.2.9 0x1 0x0 00:00:00:00:00:00 * eth0\n",
            ),
        ],
        config,
    );
    assert_eq!(severities(&findings, "neighbour"), [Severity::Loses]);
}

#[test]
fn an_admins_address_is_a_host_and_a_port() {
    for (text, address) in [
        ("127.0.0.1:7278", Some("127.0.0.1:7278")),
        ("http://[::1]:7278/", Some("[::1]:7278")),
        ("http://bus.example:80", Some("bus.example:80")),
        ("off", None),
        ("7278", None),
        (":7278", None),
        ("host:0", None),
        ("host:65536", None),
        ("https://host:1", None),
        ("http://host:1/metrics", None),
        ("", None),
    ] {
        assert_eq!(admin_address(text).ok().as_deref(), address, "{text}");
    }
    assert_eq!(
        reachable("0.0.0.0:1".parse().unwrap()),
        "127.0.0.1:1".parse().unwrap()
    );
}

#[test]
fn a_bus_is_here_if_one_of_its_sockets_is() {
    let proc = tempfile::tempdir().unwrap();
    fs::create_dir(proc.path().join("net")).unwrap();
    let host = Host::at(proc.path());
    let status = "{\"version\":\"1\",\"uptime_seconds\":5,\"listeners\":[]}";
    let mut bus = Bus {
        status: serde_json::from_str(status).unwrap(),
        subscribers: Ok(Vec::new()),
        metrics: Err(NotKnown("no".to_owned())),
    };
    let placed = |bus: &Bus| place(&host, bus, &udp_sockets(&host));
    let listeners = ["udp://127.0.0.1:7277", "unix:///run/bus.sock"];
    for address in listeners {
        bus.status.listeners = vec![Listener::example(address, 1, 1)];
        assert!(matches!(placed(&bus), Place::NotKnown(_)));
    }
    fs::write(proc.path().join("net/udp"), UDP).unwrap();
    let unix = "Num RefCount Protocol Flags Type St Inode Path\n";
    fs::write(proc.path().join("net/unix"), unix).unwrap();
    assert_eq!(placed(&bus), Place::Elsewhere);
    let line = "0: 00000002 00000000 00000000 0002 01 102 /run/bus.sock\n";
    fs::write(proc.path().join("net/unix"), [unix, line].concat()).unwrap();
    assert_eq!(placed(&bus), Place::Here);
    bus.status.listeners = vec![Listener::example(listeners[0], 1, 1)];
    assert_eq!(placed(&bus), Place::Elsewhere, "a number of another kind");
}
