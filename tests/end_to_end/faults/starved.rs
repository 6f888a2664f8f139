//! A bus that gets hardly any time on a processor: what it cannot take is counted, and it goes on
//! when it has time again.

use std::fs;
use std::net::UdpSocket;
use std::path::{Path, PathBuf};

use hailmary_client::{Address, Publisher, Subscriber};

use crate::support::evidence::{figure, tell};
use crate::support::{PATIENCE, Serving, assert_laws, datagram, event, value};

/// Datagrams that come at full speed: far more than the buffer holds.
const DATAGRAMS: u64 = 200_000;

/// Events that go round when it has time again.
const ROUND_TRIPS: u64 = 200;

/// The share of one processor, in %, and the µs of each 100 ms that it is.
const SHARE: u64 = 5;
const QUOTA_US: u64 = SHARE * 1_000;

/// A control group that bounds the time on processors (cgroups(7)), gone when dropped.
struct Group {
    directory: PathBuf,
    quota: &'static str,
}

impl Group {
    /// By whichever version of control groups may be used here.
    fn make() -> Option<Self> {
        let name = format!("hailmary-{}", std::process::id());
        let versions = [
            ("/sys/fs/cgroup/cpu", "cpu.cfs_quota_us"),
            ("/sys/fs/cgroup", "cpu.max"),
        ];
        versions.into_iter().find_map(|(parent, quota)| {
            if !Path::new(parent).join("cgroup.procs").exists() {
                return None;
            }
            let directory = Path::new(parent).join(&name);
            fs::create_dir(&directory).ok()?;
            let group = Self { directory, quota };
            group.directory.join(quota).exists().then_some(group)
        })
    }

    fn set(&self, file: &str, value: &str) -> bool {
        fs::write(self.directory.join(file), value).is_ok()
    }

    fn starve(&self, process: u32) -> bool {
        self.set(self.quota, &QUOTA_US.to_string())
            && self.set("cgroup.procs", &process.to_string())
    }

    /// In how many of the periods its share was used up.
    fn times_throttled(&self) -> u64 {
        let stat = fs::read_to_string(self.directory.join("cpu.stat")).unwrap();
        let line = stat
            .lines()
            .find_map(|line| line.strip_prefix("nr_throttled "));
        line.unwrap().parse().unwrap()
    }

    fn feed(&self) {
        let all = if self.quota == "cpu.max" { "max" } else { "-1" };
        assert!(self.set(self.quota, all));
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // It is busy till the kernel has buried who was in it.
        for _ in 0..10_000 {
            if fs::remove_dir(&self.directory).is_ok() {
                return;
            }
        }
    }
}

#[test]
#[ignore = "needs a control group of its own"]
fn what_it_has_no_time_for_is_counted_and_it_goes_on_afterwards() {
    let Some(group) = Group::make() else {
        eprintln!("skipped: no control group can be made that bounds time on processors");
        return;
    };
    let bus = Serving::start(&[], &[]);
    let address: Address = bus.address().parse().unwrap();
    let subscriber = Subscriber::builder(&address).pattern("back").name("live");
    let mut subscriber = subscriber.connect(PATIENCE).unwrap();
    if !group.starve(bus.id()) {
        eprintln!("skipped: nobody can be put into a control group");
        return;
    }
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let flood = datagram(vec![event("a")]);
    for _ in 0..DATAGRAMS {
        socket.send_to(&flood, bus.udp()).unwrap();
    }
    // It is slow and not stuck, and says so.
    assert!(bus.get("/-/healthy").contains("200 OK"));
    assert!(bus.get("/-/ready").contains("200 OK"));
    assert_laws(&bus.get("/metrics"));
    let throttled = group.times_throttled();
    assert!(throttled > 0, "it had all the time that it wanted");
    group.feed();

    let lost = "ingress_dropped_frames_total{reason=\"kernel_buffer\"}";
    let page = bus.wait_for("/metrics", |page| {
        value(page, "unmatched_events_total") + value(page, lost) == DATAGRAMS
    });
    let publisher = Publisher::connect(&address).unwrap();
    let mut back = 0;
    for number in 0..ROUND_TRIPS {
        publisher.publish("back", &number.to_string());
        let event = subscriber.recv_timeout(PATIENCE).unwrap().unwrap();
        assert_eq!(event.payload, number.to_string().as_bytes());
        back += 1;
    }
    let after = bus.wait_for_metric("matched_events_total", ROUND_TRIPS);
    assert_laws(&after);
    let (taken, lost) = (value(&page, "unmatched_events_total"), value(&after, lost));
    assert_eq!(taken + lost, DATAGRAMS, "nothing is lost afterwards");
    assert!(lost > 0, "{after}");
    assert_eq!(value(&after, "leases_granted_total"), 1);
    assert_eq!(bus.stop().0, 0);
    let figures = [
        figure("sent at full speed", DATAGRAMS, "datagrams"),
        figure("share of one processor", SHARE, "%"),
        figure("times that it was held up", throttled, "times"),
        figure("counted as lost in the kernel's buffer", lost, "datagrams"),
        figure(
            "neither taken nor counted",
            DATAGRAMS - taken - lost,
            "datagrams",
        ),
        figure("events lost afterwards", ROUND_TRIPS - back, "events"),
    ];
    tell(
        "processor_starved",
        "The bus gets 5 % of one processor while it is flooded.",
        "What it has no time for is counted, both laws hold, and it goes on without a restart.",
        &figures,
    );
}
