//! How a bus begins, idles and ends.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::PathBuf;

use hailmary_proto::v1::frame::Control;
use hailmary_proto::v1::{Lease, Subscribe};

use super::publish;
use super::support::{ByHand, Serving, Subscribing, hailmary, subscribe, value};

/// Runs a bus that cannot start and gives its last word.
fn fails(arguments: &[&str]) -> String {
    let output = hailmary().arg("serve").args(arguments).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    let last = said.lines().last().unwrap_or_default();
    assert!(last.starts_with("hailmary: "), "{said}");
    last.to_owned()
}

#[test]
fn a_port_in_use_fails_with_a_word() {
    let bus = Serving::start(&[], &[]);
    let said = fails(&["--admin", "off", "--listen", bus.address()]);
    assert!(
        said.contains("in use") && said.contains(bus.address()),
        "{said}"
    );
    let admin = bus.admin.to_string();
    let said = fails(&["--admin", &admin, "--listen", "127.0.0.1:0"]);
    assert!(
        said.contains("admin") && said.contains("in use") && said.contains(&admin),
        "{said}"
    );
    assert_eq!(bus.stop().0, 0);
}

#[test]
fn a_unix_path_is_taken_from_nobody_and_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("bus.sock");
    let address = format!("unix://{}", path.display());
    let refused = || fails(&["--admin", "off", "--listen", &address]);
    let is_socket = || fs::symlink_metadata(&path).unwrap().file_type().is_socket();

    fs::write(&path, "precious").unwrap();
    let said = refused();
    assert!(
        said.contains(&address) && said.contains("not a socket"),
        "{said}"
    );
    assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    fs::remove_file(&path).unwrap();

    let bus = Serving::start(&[], &[&address]);
    let said = refused();
    assert!(said.contains(&address) && said.contains("in use"), "{said}");
    publish(&address, &["a", "x"]);
    bus.wait_for_metric("ingress_events_total", 1);

    bus.kill();
    assert!(is_socket(), "left behind");
    let bus = Serving::start(&[], &[&address]);
    publish(&address, &["a", "x"]);
    bus.wait_for_metric("ingress_events_total", 1);
    assert_eq!(bus.stop().0, 0);
    assert!(!path.exists(), "removed at the end");
}

#[test]
fn a_stop_takes_what_is_in_the_socket() {
    for signal in ["TERM", "INT"] {
        let bus = Serving::start(&[], &[]);
        // What a receive buffer holds that was not made larger.
        publish(bus.address(), &["a", "x", "--count", "200"]);
        let (status, said) = bus.stop_by(signal);
        assert_eq!(status, 0, "{said}");
        assert!(
            said.contains("stopped") && said.contains("events=200"),
            "{said}"
        );
    }
}

#[test]
fn an_idle_bus_sleeps_till_a_lease_ends() {
    /// Going to sleep before and after the lease's end, and what the locks may cost.
    const SLEEPS_MAX: u64 = 5;
    let bus = Serving::start(&[], &[]);
    let subscriber = ByHand::new();
    let with_shortest_lease = |cookie: &[u8]| match subscribe(1, cookie) {
        Control::Subscribe(subscribe) => Control::Subscribe(Subscribe {
            lease_ms: 1,
            ..subscribe
        }),
        other => other,
    };
    let Control::Challenge(challenge) = subscriber.ask(bus.udp(), with_shortest_lease(b"")) else {
        panic!("no challenge");
    };
    match subscriber.ask(bus.udp(), with_shortest_lease(&challenge.cookie)) {
        Control::Lease(Lease {
            lease_ms: 1_000, ..
        }) => {}
        other => panic!("{other:?}"),
    }
    let page = bus.wait_for_metric("leases_granted_total", 1);
    assert_eq!(value(&page, "leases"), 1);
    // From here to the lease's end a second passes by the bus's own clock, and nothing comes but
    // scrapes, which are another thread's.
    let before = bus.sleeps();
    let page = bus.wait_for_metric("leases_expired_total", 1);
    let sleeps = bus.sleeps() - before;
    assert!(
        (1..=SLEEPS_MAX).contains(&sleeps),
        "{sleeps} times in a second"
    );
    assert_eq!(value(&page, "leases"), 0);
}

/// How many Unix sockets a process has.
fn unix_sockets(process: u32) -> usize {
    let table = fs::read_to_string("/proc/net/unix").unwrap();
    let inodes = table
        .lines()
        .filter_map(|row| row.split_whitespace().nth(6));
    let links: HashSet<_> = inodes
        .map(|inode| PathBuf::from(format!("socket:[{inode}]")))
        .collect();
    let descriptors = fs::read_dir(format!("/proc/{process}/fd")).unwrap();
    // Whatever is no link any more was closed meanwhile.
    let open = descriptors.filter_map(|entry| fs::read_link(entry.unwrap().path()).ok());
    open.filter(|open| links.contains(open)).count()
}

#[test]
fn an_idle_bus_keeps_no_socket_for_a_lease_that_ended() {
    let directory = tempfile::tempdir().unwrap();
    let address = format!("unix://{}", directory.path().join("bus.sock").display());
    let file = directory.path().join("bus.toml");
    fs::write(&file, "[limits]\nlease_ms = 1000\n").unwrap();
    let bus = Serving::start(&["--config", file.to_str().unwrap()], &[&address]);
    let before = unix_sockets(bus.id());
    let subscriber = Subscribing::start(&address, &["a"]);
    publish(&address, &["a", "x"]);
    bus.wait_for_metric("copies_total", 1);
    assert_eq!(unix_sockets(bus.id()), before + 1);
    subscriber.signal("KILL");
    bus.wait_for_metric("leases_expired_total", 1);
    // Scrapes are another thread's: nothing wakes the bus.
    bus.wait_for("/metrics", |_| unix_sockets(bus.id()) == before);
}
