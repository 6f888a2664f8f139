//! The Python client's own tests, against this build of the program.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::path::Path;
use std::process::Command;

fn run(command: &mut Command) {
    let status = command.status().unwrap();
    assert!(status.success(), "{command:?} ended with {status}");
}

/// Installs the client into a virtual environment under `target/`, as a user would, and runs
/// its tests there.
#[test]
fn the_python_client_passes_its_tests() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let client = root.join("clients/python");
    let environment = Path::new(env!("CARGO_TARGET_TMPDIR")).join("python");
    if !environment.join("bin/python").exists() {
        run(Command::new("python3").args(["-m", "venv"]).arg(&environment));
    }
    let python = environment.join("bin/python");
    let package = format!("{}[test]", client.display());
    run(Command::new(&python).args(["-m", "pip", "install", "--quiet", &package]));
    run(Command::new(&python)
        .args(["-m", "pytest", "--quiet", "-p", "no:cacheprovider"])
        .current_dir(&client)
        .env("HAILMARY_PROGRAM", env!("CARGO_BIN_EXE_hailmary")));
}
