//! A start that cannot succeed: it fails at once, with a word, or the bus works.

use std::process::{Command, Stdio};

use crate::support::evidence::{figure, tell};
use crate::support::{Process, wait_until};

/// Descriptors from none beside the standard ones to more than a start needs.
const DESCRIPTORS: std::ops::Range<u32> = 3..70;

/// Runs a bus by this program and its arguments till it ends, or says that it listens. Gives its
/// status if it ended, and what it said.
fn start(program: &str, arguments: &[&str]) -> (Option<i32>, String) {
    let mut child = Command::new(program)
        .args(arguments)
        .args([env!("CARGO_BIN_EXE_hailmary"), "serve"])
        .args(["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let said = crate::support::lines(child.stderr.take().unwrap());
    let mut process = Process(child);
    let (mut text, mut status) = (String::new(), None);
    wait_until("the bus to start or to end", || {
        // In this order: what it said before it ended is there when it has.
        status = process.0.try_wait().unwrap();
        while let Ok(line) = said.recv_timeout(std::time::Duration::from_millis(1)) {
            text.extend([&line, "\n"]);
        }
        (status.is_some() || text.contains("admin listening")).then_some(())
    });
    if status.is_some() {
        // To the end, however late it is read.
        said.iter().for_each(|line| text.extend([&line, "\n"]));
    }
    (status.map(|status| status.code().unwrap_or(-1)), text)
}

fn assert_told(status: i32, said: &str) {
    assert_eq!(status, 1, "{said}");
    let last = said.lines().last().unwrap_or_default();
    assert!(last.starts_with("hailmary: "), "{said}");
    assert!(!said.contains("panicked"), "{said}");
}

#[test]
fn without_descriptors_it_says_so_and_ends() {
    let (mut failed, mut started, mut unloaded) = (0, 0, 0);
    for descriptors in DESCRIPTORS {
        let shell = format!("ulimit -n {descriptors} && exec \"$0\" \"$@\"");
        match start("sh", &["-c", &shell]) {
            (None, _) => started += 1,
            // Not even the program's own libraries could be opened.
            (Some(127), said) => {
                assert!(said.contains("shared libraries"), "{said}");
                unloaded += 1;
            }
            (Some(status), said) => {
                assert_told(status, &said);
                assert!(said.contains("Too many open files"), "{said}");
                failed += 1;
            }
        }
    }
    assert!(failed > 0 && started > 0, "{failed} and {started}");
    let others = DESCRIPTORS.len() - failed - started - unloaded;
    let figures = [
        figure("limits of open files tried", DESCRIPTORS.len(), "limits"),
        figure("starts that failed with a word", failed, "starts"),
        figure("starts that succeeded", started, "starts"),
        figure("that the system's loader failed", unloaded, "starts"),
        figure("starts that hung or panicked", others, "starts"),
    ];
    tell(
        "start_without_descriptors",
        "The bus is started with ever fewer file descriptors.",
        "It works, or ends at once with status 1 and says what it lacks.",
        &figures,
    );
}

#[test]
#[ignore = "needs root, to be somebody else"]
fn without_threads_it_says_so_and_ends() {
    let nobody = ["--reuid=65534", "--regid=65534", "--clear-groups"];
    let program = Command::new("setpriv")
        .args(nobody)
        .args([env!("CARGO_BIN_EXE_hailmary"), "--version"])
        .output();
    let may_run = program.is_ok_and(|output| output.status.success());
    if !may_run {
        eprintln!("skipped: the program cannot be run as somebody else by setpriv(1)");
        return;
    }
    let arguments = [&nobody[..], &["prlimit", "--nproc=1"]].concat();
    let (status, said) = start("setpriv", &arguments);
    assert_told(status.unwrap(), &said);
    assert!(
        said.contains("thread") || said.contains("temporarily"),
        "{said}"
    );
}
