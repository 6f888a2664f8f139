//! What the program is told, and what it says of what it cannot do.

use std::fs;
use std::io::Write;
use std::process::Stdio;

use super::support::{Process, Serving, hailmary};

#[test]
fn wrong_usage_exits_2() {
    let code = |arguments: &[&str]| hailmary().args(arguments).output().unwrap().status.code();
    assert_eq!(code(&["--help"]), Some(0));
    assert_eq!(code(&["--version"]), Some(0));
    assert_eq!(code(&["pub", "not a topic", "x"]), Some(2));
    assert_eq!(code(&["sub", "a.>.b"]), Some(2));
    assert_eq!(code(&["sub", ">", "--from", "nowhere"]), Some(2));
    assert_eq!(code(&["serve", "--log-level", "loud"]), Some(2));
}

#[test]
fn terms_that_are_none_are_wrong_usage_and_it_says_what_is_allowed() {
    let long = "n".repeat(65);
    for (flag, wrong, allowed) in [
        (
            "--sample",
            &["nan", "inf", "-1", "7", "0", "-0", "1.1", "x", ""][..],
            "over 0 and at most 1",
        ),
        ("--sample", &["0"], "leave the flag out"),
        (
            "--max-rate",
            &[
                "0",
                "-1",
                "4294967296",
                "18446744073709551615",
                "1.5",
                "nan",
                "",
            ],
            "1 to 4294967295 events a second",
        ),
        ("--max-rate", &["0"], "leave the flag out"),
        (
            "--group",
            &["a b", "", "g\n", "*", &long],
            "1 to 64 of A-Z a-z 0-9 . _ and -",
        ),
        (
            "--name",
            &["a b", "", &long],
            "1 to 64 of A-Z a-z 0-9 . _ and -",
        ),
    ] {
        for wrong in wrong {
            let output = hailmary().args(["sub", ">", flag, wrong]).output().unwrap();
            assert_eq!(output.status.code(), Some(2), "{flag} {wrong}: {output:?}");
            let said = String::from_utf8(output.stderr).unwrap();
            // It is wrapped to the terminal's width.
            let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
            assert!(
                said.contains(flag) && said.contains(allowed),
                "{flag} {wrong}: {said}"
            );
        }
    }
}

/// What `check` and `serve` say of a configuration that is at fault: the same.
fn refusal(file: &str) -> String {
    let refusal = |arguments: &[&str]| {
        let output = hailmary().args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(78), "{output:?}");
        assert!(output.stdout.is_empty(), "{output:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    let said = refusal(&["check", file]);
    assert_eq!(refusal(&["serve", "--config", file]), said);
    assert_eq!(
        refusal(&["serve", "--print-config", "--config", file]),
        said
    );
    said
}

/// Bad files, and what is said of each.
const BAD: &[(&[u8], &[&str])] = &[
    (b"", &[": the file is empty", "--print-config"]),
    (b"\n# nothing\n", &[": the file is empty"]),
    (
        b"[listen]\n\nport = 7277\n",
        &[":3: unknown field `port`", "`udp`", "`unix`", "`admin`"],
    ),
    (
        b"\n[listener]\n",
        &[":2: unknown field `listener`", "`listen`", "`access`"],
    ),
    (
        b"[loop]\nlinger_us = 10001\n",
        &[":2: 10001: linger_us must be 0 to 10000"],
    ),
    (
        b"[loop]\nworkers = 0\nlinger_us = \"x\"\n",
        &[":3: ", "expected u32"],
    ),
    (
        b"[loop]\nworkers = 0\n[limits]\nlease_ms = 1\n",
        &[
            ":2: 0: workers must be 1 to 64",
            ":4: 1: lease_ms must be 1000 to 300000",
        ],
    ),
    (
        b"[listen]\nudp = [\"127.0.0.1:99999\"]\n",
        &[":2: \"127.0.0.1:99999\": an address is IP:PORT"],
    ),
    (
        b"[[subscriber]]\nname = \"a\"\naddress = \"127.0.0.1:1\"\ntopics = [\"a\"]\n\
          sample = nan\ngroup = \"a b\"\nevents_per_second = 0\n\
          [[subscriber]]\nname = \"b\"\naddress = \"127.0.0.1:2\"\ntopics = [\"a\"]\n\
          sample = 7.0\nevents_per_second = 4294967296\n",
        &[
            ":5: NaN: sample is a share over 0 and at most 1",
            ":6: \"a b\": a group's name is 1 to 64 of A-Z a-z 0-9 . _ -",
            ":7: 0: events_per_second must be 1 to 4294967295; without the key there is no limit",
            ":12: 7.0: sample is",
            ":13: 4294967296: events_per_second must be",
        ],
    ),
    (
        b"[[subscriber]]\nname = \"a\"\naddress = \"127.0.0.1:1\"\ntopics = [\"a\"]\nsample = -1\n",
        &[":5: -1.0: sample is a share over 0 and at most 1"],
    ),
    (
        b"[limits]\nmembers_per_group = 0\n[[topic]]\nmatch = \"a\"\nevents_per_second = 0\n\
          max_age_ms = 0\n[[topic]]\nmatch = \"a\"\n",
        &[
            ":2: 0: members_per_group must be 1 to 4096",
            ":5: 0: events_per_second must be 1 to",
            ":6: 0: max_age_ms must be 1 to 86400000; without the key no event is stale",
            ":8: \"a\": there is an entry for this pattern already",
        ],
    ),
    (
        b"[[topic]]\nmatch = \"a\"\nevents_per_second = 18446744073709551615\n",
        &[":3: 18446744073709551615: events_per_second must be 1 to 4294967295"],
    ),
    (b"[[topic]]\nmatch = \"a\"\nmax_age_ms = -1\n", &[":3: "]),
    (
        b"[[topic]]\nmatch = \"a\"\npriority = \"urgent\"\n",
        &[
            ":3: unknown variant `urgent`",
            "`low`",
            "`normal`",
            "`high`",
        ],
    ),
    (
        b"[[topic]]\nmatch = \"a\"\nsample = 0.5\n",
        &[
            ":3: unknown field `sample`",
            "`events_per_second`",
            "`max_age_ms`",
        ],
    ),
    (b"[listen\n", &[":1: "]),
    (b"name = \"\xff\"\n", &["cannot be read", "UTF-8"]),
];

#[test]
fn a_bad_configuration_exits_78_and_is_told_by_line() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("bus.toml");
    let file = path.to_str().unwrap();
    assert_eq!(
        refusal(file),
        format!("hailmary: {file}: cannot be read: No such file or directory (os error 2)\n")
    );
    fs::create_dir(&path).unwrap();
    assert!(refusal(file).contains("cannot be read: Is a directory"));
    fs::remove_dir(&path).unwrap();

    for (text, told) in BAD {
        fs::write(&path, text).unwrap();
        let said = refusal(file);
        for told in *told {
            assert!(said.contains(told), "{told} is not in {said}");
        }
        assert!(said.contains(file), "{said}");
    }
}

#[test]
#[cfg(target_os = "linux")]
fn a_check_says_by_its_status_what_a_full_disk_does_not_take() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("bus.toml");
    fs::write(&path, "[loop]\nworkers = 2\n").unwrap();
    let full = fs::OpenOptions::new().write(true).open("/dev/full");
    let mut check = hailmary();
    let status = check.arg("check").arg(&path).stdout(full.unwrap()).status();
    assert_eq!(status.unwrap().code(), Some(0));
}

#[test]
fn a_configuration_is_checked_also_where_it_is_no_regular_file() {
    for (text, status) in [("[loop]\nworkers = 2\n", 0), ("[loop]\nworkers = 0\n", 78)] {
        let mut check = hailmary();
        check.args(["check", "/dev/stdin"]);
        check.stdin(Stdio::piped()).stderr(Stdio::null());
        let mut check = Process(check.stdout(Stdio::null()).spawn().unwrap());
        let mut stdin = check.0.stdin.take().unwrap();
        stdin.write_all(text.as_bytes()).unwrap();
        drop(stdin);
        assert_eq!(check.0.wait().unwrap().code(), Some(status), "{text}");
    }
}

#[test]
fn an_address_that_is_none_exits_78_and_is_named() {
    for arguments in [
        &["--listen", "nowhere"][..],
        &["--listen", "unix://relative"],
        &["--listen", "127.0.0.1:0", "--admin", "on"],
    ] {
        let output = hailmary().arg("serve").args(arguments).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(78), "{said}");
        let address = arguments[arguments.len() - 1].trim_start_matches("unix://");
        assert!(said.contains(address), "{said}");
    }
}

#[test]
fn what_is_printed_is_a_configuration() {
    let print = |arguments: &[&str]| {
        let output = hailmary()
            .args(["serve", "--print-config"])
            .args(arguments)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        output.stdout
    };
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("bus.toml");
    let file = path.to_str().unwrap();
    for arguments in [
        &[][..],
        &[
            "--listen",
            "127.0.0.1:0",
            "--listen",
            "unix:///run/x.sock",
            "--admin",
            "off",
        ],
    ] {
        let printed = print(arguments);
        fs::write(&path, &printed).unwrap();
        let output = hailmary().args(["check", file]).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        assert_eq!(print(&["--config", file]), printed, "the same again");
    }
    let bus = Serving::start(&["--config", file], &[]);
    assert_eq!(bus.stop().0, 0);
}
