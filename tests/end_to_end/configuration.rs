//! What the program is told, and what it says of what it cannot do.

use std::fs;

use super::support::{Serving, hailmary};

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

    for (text, told) in [
        (&b""[..], &[": the file is empty", "--print-config"][..]),
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
                ":2: 0: workers must be 1",
                ":4: 1: lease_ms must be 1000 to 300000",
            ],
        ),
        (
            b"[listen]\nudp = [\"127.0.0.1:99999\"]\n",
            &[":2: \"127.0.0.1:99999\": an address is IP:PORT"],
        ),
        (b"[listen\n", &[":1: "]),
        (b"name = \"\xff\"\n", &["cannot be read", "UTF-8"]),
    ] {
        fs::write(&path, text).unwrap();
        let said = refusal(file);
        for told in told {
            assert!(said.contains(told), "{told} is not in {said}");
        }
        assert!(said.contains(file), "{said}");
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
