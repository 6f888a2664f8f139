//! `hailmary bench`: its books, what it refuses, and that nothing of it outlives it.

use std::fs;
use std::net::UdpSocket;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use super::support::{Serving, hailmary, sum, value, wait_until};

/// A bench whose temporary files, and by that its processes, are told from all others.
fn bench(directory: &Path, arguments: &[&str]) -> Command {
    let mut command = hailmary();
    command.arg("bench").args(arguments);
    command.env("TMPDIR", directory);
    command
}

/// Runs a bench to its end: exit status, standard output and standard error.
fn run(arguments: &[&str]) -> (Option<i32>, String, String) {
    let directory = tempfile::tempdir().unwrap();
    let output = bench(directory.path(), arguments).output().unwrap();
    assert_is_empty(directory.path());
    (
        output.status.code(),
        String::from_utf8(output.stdout).unwrap(),
        String::from_utf8(output.stderr).unwrap(),
    )
}

fn report(arguments: &[&str]) -> Value {
    let (status, printed, said) = run(&[arguments, &["--json"]].concat());
    assert_eq!(status, Some(0), "{said}");
    let report = serde_json::from_str(&printed).unwrap();
    assert_books(&report);
    report
}

fn count(figure: &Value) -> u64 {
    figure.as_u64().unwrap_or_else(|| panic!("{figure}"))
}

/// What was published is, for every subscriber, what it received and what was lost by hop.
fn assert_books(report: &Value) {
    let (published, lost) = (&report["published"], &report["lost"]);
    let subscribers = report["subscribers"].as_array().unwrap();
    assert_eq!(
        count(&report["workload"]["fan_out"]),
        subscribers.len() as u64
    );
    let total = |name: &str| subscribers.iter().map(|s| count(&s[name])).sum::<u64>();
    for books in subscribers {
        let accounted = count(&books["received"])
            + count(&books["lost_in_bus"])
            + count(&books["lost_to_subscriber"])
            + count(&lost["by_publishers"])
            + count(&lost["before_bus"]);
        let unaccounted = books["unaccounted"].as_i64().unwrap();
        assert_eq!(
            count(&published["events"]).checked_add_signed(-unaccounted),
            Some(accounted),
            "{report:#}"
        );
        assert_eq!(books["lease_lapses"], 0, "{report:#}");
    }
    assert_eq!(count(&report["received"]["events"]), total("received"));
    assert_eq!(count(&lost["in_bus"]), total("lost_in_bus"));
    assert_eq!(count(&lost["to_subscribers"]), total("lost_to_subscriber"));
}

fn assert_quantiles(us: &Value) {
    let all = ["p50", "p90", "p99", "p99_9", "max"].map(|name| us[name].as_f64().unwrap());
    assert!(all[0] > 0.0 && all.is_sorted(), "{us}");
}

/// What a bench knows of a bus of its own.
fn assert_own_bus(report: &Value) {
    let bus = &report["bus"];
    assert_quantiles(&report["latency_us"]);
    assert_eq!(report["lost"]["unaccounted"], 0, "{report:#}");
    let lost = count(&report["lost"]["in_bus"]) + count(&report["lost"]["to_subscribers"]);
    let received = count(&report["received"]["events"]);
    assert_eq!(count(&bus["copies"]), received + lost, "{report:#}");
    if cfg!(target_os = "linux") {
        assert!(bus["cpu_ns_per_copy"].as_f64().unwrap() > 0.0, "{bus}");
        assert!(count(&bus["resident_bytes"]) <= count(&bus["resident_bytes_max"]));
    }
}

#[test]
fn all_that_a_rate_calls_for_is_published_and_told() {
    let report = report(&[
        "--rate=2000",
        "--duration=0.5",
        "--publishers=3",
        "--fan-out=2",
        "--topics=10",
        "--payload=0-300",
        "--events-per-datagram=4",
    ]);
    assert_own_bus(&report);
    // Of each publisher 4 events every 6 ms, from 0 to 498 ms.
    assert_eq!(report["published"]["events"], 3 * 84 * 4);
    assert_eq!(report["published"]["missed"], 0);
    assert_quantiles(&report["published"]["late_us"]);
    assert!(count(&report["received"]["events"]) > 0);
}

#[test]
fn books_balance_at_the_most_that_can_be_sent() {
    for over in ["udp", "unix"] {
        let more = ["--events-per-datagram=20", "--publishers=2", "--fan-out=3"];
        for load in [&[][..], &more] {
            let report = report(&[&["--duration=0.2", "--over", over], load].concat());
            assert_own_bus(&report);
            assert_eq!(report["published"]["late_us"], Value::Null);
            let scheme = format!("{over}://");
            assert!(
                report["bus"]["address"]
                    .as_str()
                    .unwrap()
                    .starts_with(&scheme)
            );
        }
    }
}

#[test]
fn a_running_bus_is_loaded_and_asked() {
    let bus = Serving::start(&[], &[]);
    let load = ["--against", bus.address(), "--rate=1000", "--duration=0.3"];
    let blind = report(&load);
    let admin = bus.admin.to_string();
    let asking = report(&[&load[..], &["--admin", &admin]].concat());
    for report in [&blind, &asking] {
        assert_eq!(report["bus"]["address"], bus.address());
        assert_eq!(report["bus"]["cpu_seconds"], Value::Null);
        assert_eq!(report["published"]["events"], 300);
    }
    assert_eq!(blind["lost"]["in_bus_by_reason"], Value::Null);
    assert_eq!(asking["lost"]["unaccounted"], 0, "{asking:#}");
    assert_eq!(
        asking["bus"]["copies"],
        300 - count(&asking["lost"]["before_bus"])
    );
    let lost = count(&blind["lost"]["before_bus"]) + count(&asking["lost"]["before_bus"]);
    let page = bus.wait_for_metric("ingress_events_total", 600 - lost);
    assert_eq!(sum(&page, "ingress_events_total"), 600 - lost);
    bus.wait_for("/metrics", |page| value(page, "leases") == 0);
}

#[test]
fn what_makes_no_sense_exits_2() {
    for (arguments, told) in [
        (&["--fan-out=0"][..], "--fan-out"),
        (&["--fan-out=257"], "256"),
        (&["--publishers=0"], "--publishers"),
        (&["--topics=0"], "--topics"),
        (&["--events-per-datagram=0"], "--events-per-datagram"),
        (&["--rate=0"], "a rate is over 0"),
        (&["--rate=-1"], "a rate is over 0"),
        (&["--rate=nan"], "a rate is over 0"),
        (&["--rate=1e10"], "at most 1e9"),
        (&["--duration=0"], "a duration is"),
        (&["--duration=inf"], "a duration is"),
        (&["--payload=65508"], "a payload is"),
        (&["--payload=9-1"], "a payload is"),
        (&["--payload=65459"], "the most is 65507"),
        (
            &["--payload=1000", "--events-per-datagram=100"],
            "the most is 65507",
        ),
        (&["--against=nowhere"], "--against"),
        (&["--admin=127.0.0.1:1"], "--against"),
        (&["--against=127.0.0.1:1", "--over=unix"], "--over"),
    ] {
        let (status, printed, said) = run(arguments);
        assert_eq!((status, printed.as_str()), (Some(2), ""), "{arguments:?}");
        assert!(said.contains(told), "{arguments:?}: {said}");
    }
}

#[test]
fn what_cannot_be_done_exits_1_and_says_why() {
    let nobody = UdpSocket::bind("127.0.0.1:0").unwrap();
    let no_bus = nobody.local_addr().unwrap().to_string();
    let bus = Serving::start(&[], &[]);
    for (arguments, told) in [
        (
            &["--against", &no_bus][..],
            "no bus answers at udp://127.0.0.1",
        ),
        (
            &["--against", "unix:///nonexistent/bus.sock"],
            "no bus answers at unix:///nonexistent",
        ),
        (
            &["--against", bus.address(), "--admin=127.0.0.1:1"],
            "cannot read metrics at 127.0.0.1:1",
        ),
    ] {
        let (status, printed, said) = run(arguments);
        assert_eq!((status, printed.as_str()), (Some(1), ""), "{said}");
        assert!(said.contains(told), "{arguments:?}: {said}");
    }
}

#[test]
fn a_rate_that_cannot_be_kept_is_told_with_what_could() {
    let (status, printed, said) = run(&["--rate=1e9", "--duration=0.1", "--json"]);
    assert_eq!(status, Some(1), "{said}");
    assert!(
        said.contains("the rate is more than the publishers could send"),
        "{said}"
    );
    let report: Value = serde_json::from_str(&printed).unwrap();
    let published = &report["published"];
    let wanted = count(&published["events"]) + count(&published["missed"]);
    assert_eq!(wanted, 100_000_000);
    assert_books(&report);
}

const NO_BENCH_TOPICS: &str = "\
[access]
publish = [{ from = [\"127.0.0.1\"], topics = [\"search.>\"] }]
";

#[test]
fn the_configuration_is_the_bus_s() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("bus.toml");
    let file = path.to_str().unwrap();
    fs::write(&path, NO_BENCH_TOPICS).unwrap();
    let report = report(&["--config", file, "--duration=0.1", "--rate=1000"]);
    assert_eq!(report["lost"]["in_bus_by_reason"]["not_allowed"], 100);
    assert_eq!(report["received"]["events"], 0);
    assert_eq!(report["latency_us"], Value::Null);

    fs::write(&path, "[access]\nsubscribe = []\n").unwrap();
    let (status, _, said) = run(&["--config", file]);
    assert_eq!(status, Some(1), "{said}");
    assert!(said.contains("subscriber 0: "), "{said}");

    fs::write(&path, "[loop]\nlinger = 3\n").unwrap();
    let (status, printed, said) = run(&["--config", file]);
    assert_eq!((status, printed.as_str()), (Some(78), ""), "{said}");
    assert!(said.contains("linger"), "{said}");
}

/// Ids of the processes that this bench began with: they all have its directory for temporary
/// files in their environment.
fn processes(directory: &Path) -> Vec<String> {
    let mark = format!("TMPDIR={}\0", directory.display());
    let is_marked = |id: &String| {
        let environment = fs::read(format!("/proc/{id}/environ")).unwrap_or_default();
        String::from_utf8_lossy(&environment).contains(&mark)
    };
    fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().into_string().ok())
        .filter(is_marked)
        .collect()
}

fn assert_is_empty(directory: &Path) {
    assert_eq!(fs::read_dir(directory).unwrap().count(), 0);
}

/// A bench in full swing: itself, a bus, two subscribers, two publishers.
#[cfg(target_os = "linux")]
fn running(directory: &Path, over: &str) -> Child {
    let load = [
        "--duration=600",
        "--rate=100",
        "--fan-out=2",
        "--publishers=2",
        "--over",
        over,
    ];
    let child = bench(directory, &load)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    wait_until("all processes", || {
        (processes(directory).len() == 6).then_some(())
    });
    child
}

#[cfg(target_os = "linux")]
#[test]
fn a_signal_ends_all_of_it() {
    for (signal, over) in [("INT", "unix"), ("TERM", "udp")] {
        let directory = tempfile::tempdir().unwrap();
        let child = running(directory.path(), over);
        let id = child.id().to_string();
        assert!(
            Command::new("kill")
                .args(["-s", signal, &id])
                .status()
                .unwrap()
                .success()
        );
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert_eq!(output.stdout, b"");
        assert_eq!(output.stderr, b"hailmary: interrupted\n");
        assert_eq!(processes(directory.path()), [""; 0]);
        assert_is_empty(directory.path());
    }
}

#[cfg(target_os = "linux")]
#[test]
fn nothing_outlives_a_bench_that_is_killed() {
    let directory = tempfile::tempdir().unwrap();
    let mut child = running(directory.path(), "udp");
    child.kill().unwrap();
    child.wait().unwrap();
    wait_until("the end of all processes", || {
        processes(directory.path()).is_empty().then_some(())
    });
    assert_is_empty(directory.path());
}
