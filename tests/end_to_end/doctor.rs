//! `hailmary doctor`: that it finds what a real bus loses, blames nobody else, and bears whatever
//! answers.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, UdpSocket};
use std::process::Output;

use serde_json::Value;

use super::support::{Serving, datagram, event, hailmary, sum_of, wait_until};

fn doctor(arguments: &[&str]) -> Output {
    hailmary().arg("doctor").args(arguments).output().unwrap()
}

/// What it finds; its exit status must say the same.
fn findings(arguments: &[&str]) -> Vec<Value> {
    let output = doctor(&[arguments, &["--json"]].concat());
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let findings = report["findings"].as_array().unwrap().clone();
    let is_grave = |finding: &Value| {
        assert!(finding["check"].is_string() && finding["finding"].is_string());
        match finding["severity"].as_str().unwrap() {
            "loses" | "may lose" => {
                assert!(finding["why"].is_string() && finding["mend"].is_string());
                true
            }
            other => {
                assert!(["fine", "unknown"].contains(&other), "{other}");
                false
            }
        }
    };
    let graves = findings.iter().filter(|finding| is_grave(finding)).count();
    assert_eq!(output.status.code(), Some(i32::from(graves > 0)));
    assert_eq!(output.stderr.is_empty(), graves == 0);
    findings
}

/// The severities and texts of one check's findings.
fn of<'a>(findings: &'a [Value], check: &str) -> Vec<(&'a str, &'a str)> {
    let text = |finding: &'a Value, key| finding[key].as_str().unwrap();
    findings
        .iter()
        .filter(|finding| finding["check"] == check)
        .map(|finding| (text(finding, "severity"), text(finding, "finding")))
        .collect()
}

#[test]
fn a_bus_that_loses_nothing_is_found_and_known_by_its_sockets() {
    let bus = Serving::start(&[], &["127.0.0.1:0", "127.0.0.1:0"]);
    let found = findings(&["--admin", &format!("http://{}/", bus.admin)]);
    let [("fine", told)] = of(&found, "bus")[..] else {
        panic!("{found:?}");
    };
    assert!(told.contains(&bus.admin.to_string()), "{told}");
    let [("fine", told)] = of(&found, "counted")[..] else {
        panic!("{found:?}");
    };
    assert!(told.contains("no loss"), "{told}");
    if cfg!(target_os = "linux") {
        assert_eq!(of(&found, "kernel-drops")[0].0, "fine");
        assert_ne!(of(&found, "capability")[0].0, "unknown");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn drops_of_a_full_buffer_are_told_with_their_listener() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("bus.toml");
    fs::write(&file, "[loop]\nreceive_buffer_bytes = 4096\n").unwrap();
    let file = file.to_str().unwrap();
    let bus = Serving::start(&["--config", file], &["127.0.0.1:0", "127.0.0.1:0"]);
    // A stranger's socket on another address of the port loses far more.
    let stranger = UdpSocket::bind(("127.0.0.2", bus.udp().port())).unwrap();
    let publisher = UdpSocket::bind("127.0.0.1:0").unwrap();
    let datagram = datagram(vec![event("a")]);
    wait_until("drops", || {
        for _ in 0..1_000 {
            publisher.send_to(&datagram, bus.udp()).unwrap();
            publisher
                .send_to(&datagram, stranger.local_addr().unwrap())
                .unwrap();
        }
        let page = bus.get("/metrics");
        let drops = sum_of(&page, "ingress_dropped_frames_total", "kernel_buffer");
        (drops > 0).then_some(())
    });
    let page = bus.get("/metrics");
    let drops = sum_of(&page, "ingress_dropped_frames_total", "kernel_buffer");

    let admin = bus.admin.to_string();
    let found = findings(&["--config", file, "--admin", &admin]);
    let [("loses", told)] = of(&found, "kernel-drops")[..] else {
        panic!("{found:?}");
    };
    let told: String = told.chars().filter(|c| *c != ',').collect();
    assert!(
        told.starts_with(&format!("the kernel dropped {drops} of ")),
        "{told}"
    );
    assert!(told.contains(bus.address()), "{told}");
    assert!(!told.contains(&bus.listening[1]), "{told}");

    let output = doctor(&["--config", file, "--admin", &admin]);
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        text.starts_with("LOSES EVENTS\n\n  kernel-drops: "),
        "{text}"
    );
    assert!(
        text.contains("#   receive_buffer_bytes = 8388608\n"),
        "{text}"
    );
}

#[test]
fn copies_that_nobody_takes_are_told_by_subscriber() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("bus.toml");
    let gone = format!("unix://{}", directory.path().join("gone.sock").display());
    let entry =
        format!("[[subscriber]]\nname = \"gone\"\naddress = \"{gone}\"\ntopics = [\">\"]\n");
    fs::write(&file, entry).unwrap();
    let bus = Serving::start(&["--config", file.to_str().unwrap()], &[]);
    let publisher = UdpSocket::bind("127.0.0.1:0").unwrap();
    let datagram = datagram(vec![event("a")]);
    wait_until("a refusal", || {
        publisher.send_to(&datagram, bus.udp()).unwrap();
        let page = bus.get("/metrics");
        let refused = sum_of(&page, "egress_dropped_events_total", "\"refused\"");
        (refused > 0).then_some(())
    });
    let found = findings(&["--admin", &bus.admin.to_string()]);
    let told = of(&found, "counted");
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!(told[0].0, "loses");
    assert!(told[0].1.starts_with("subscriber gone: "), "{told:?}");
    assert!(told[0].1.contains("nobody listened"), "{told:?}");
    if cfg!(target_os = "linux") {
        let queue = of(&found, "unix-queue");
        assert!(queue[0].1.contains(&gone), "{queue:?}");
    }
}

#[test]
fn no_bus_is_a_remark_unless_it_was_named() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = free.local_addr().unwrap().to_string();
    drop(free);
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("bus.toml");
    fs::write(&file, format!("[listen]\nadmin = \"{address}\"\n")).unwrap();
    let file = file.to_str().unwrap();
    let found = findings(&["--config", file]);
    let bus = of(&found, "bus");
    assert_eq!((bus.len(), bus[0].0), (1, "unknown"), "{bus:?}");
    assert!(bus[0].1.contains(&address), "{bus:?}");
    let found = findings(&["--config", file, "--admin", &address]);
    assert_eq!(of(&found, "bus")[0].0, "loses");
    fs::write(file, "[listen]\nadmin = \"off\"\n").unwrap();
    let found = findings(&["--config", file]);
    assert!(of(&found, "bus")[0].1.contains("admin is off"));
}

#[test]
fn whatever_else_answers_is_a_finding() {
    for says in [
        "",
        "\0\u{1b}[2J\r\n\r\n",
        "SSH-2.0-OpenSSH_10.0\r\n",
        "HTTP/1.1 404 Not Found\r\n\r\n",
        "HTTP/1.1 200 OK\r\n\r\n",
        "HTTP/1.1 200 OK\r\n\r\n<html>",
        "HTTP/1.1 200 OK\r\n\r\n{\"version\":\"1\",\"uptime_seconds\":1}",
        "HTTP/1.1 200 OK\r\n\r\n{\"version\":\"1\",\"uptime_seconds\":-1e999,\"listeners\":[]}",
    ] {
        let stranger = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = stranger.local_addr().unwrap().to_string();
        let answering = std::thread::spawn(move || {
            let (mut stream, _) = stranger.accept().unwrap();
            let mut request = [0; 256];
            let _ = stream.read(&mut request);
            let _ = stream.write_all(says.as_bytes());
        });
        let output = doctor(&["--admin", &address]);
        answering.join().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert_eq!(output.status.code(), Some(1), "{says:?}: {text}");
        assert!(text.contains("does not answer as a bus does"), "{text}");
        assert!(!text.contains(['\0', '\u{1b}']), "{text:?}");
    }
}

#[test]
fn a_bus_that_only_claims_to_be_here_is_not_taken_for_it() {
    let stranger = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = stranger.local_addr().unwrap().to_string();
    let answers = [
        "{\"version\":\"9\",\"pid\":1,\"uptime_seconds\":1,\"listeners\":[\
         {\"address\":\"udp://127.0.0.1:9\",\"inodes\":[1],\"wanted_buffer_bytes\":9,\
         \"granted_buffer_bytes\":1}]}",
        "[{\"name\":\"x\\u001b\",\"address\":\"udp://192.0.2.1:1\",\"frame_bytes\":4294967295}]",
        "hailmary_ingress_dropped_frames_total{reason=\"kernel_buffer\"} 7\n",
    ];
    let answering = std::thread::spawn(move || {
        for answer in answers {
            let (mut stream, _) = stranger.accept().unwrap();
            let mut request = [0; 256];
            let _ = stream.read(&mut request);
            let _ = write!(stream, "HTTP/1.1 200 OK\r\n\r\n{answer}");
        }
    });
    let found = findings(&["--admin", &address]);
    answering.join().unwrap();
    assert_eq!(of(&found, "bus")[0].0, "unknown", "{found:?}");
    assert!(of(&found, "bus")[0].1.contains("another host"));
    let [("loses", told)] = of(&found, "kernel-drops")[..] else {
        panic!("{found:?}");
    };
    assert!(told.contains("dropped 7 of 7 datagrams in front of the bus"));
    // What it says of itself stands, wherever it is.
    let [("may lose", told)] = of(&found, "receive-buffer")[..] else {
        panic!("{found:?}");
    };
    assert!(told.contains("of 1 bytes where 9 are wanted"), "{told}");
    // Its subscribers are not reached from here, and its process is none of this host's.
    assert_eq!(of(&found, "route")[0].0, "fine");
    assert_eq!(of(&found, "capability")[0].0, "fine");
}

#[test]
fn a_bad_configuration_exits_78_and_wrong_usage_2() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("bus.toml");
    let file = path.to_str().unwrap();
    for text in [None, Some(""), Some("[loop]\nworkers = 0\n")] {
        if let Some(text) = text {
            fs::write(&path, text).unwrap();
        }
        let output = doctor(&["--config", file, "--json"]);
        assert_eq!(output.status.code(), Some(78), "{output:?}");
        assert!(output.stdout.is_empty());
        assert!(String::from_utf8(output.stderr).unwrap().contains(file));
    }
    for arguments in [&["--admin", "off"][..], &["--admin", "x"], &["--proc", "/"]] {
        assert_eq!(doctor(arguments).status.code(), Some(2), "{arguments:?}");
    }
}
