//! Wall clocks of programs that a test sets. The machine's own is left as it is.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use tempfile::TempDir;

/// What is compiled once, for all tests of this process. None where there is no compiler.
static SHIM: OnceLock<Option<Shim>> = OnceLock::new();

struct Shim {
    library: PathBuf,
    _directory: TempDir,
}

/// A clock of one program.
pub struct WallClock {
    library: &'static Path,
    file: tempfile::NamedTempFile,
}

impl WallClock {
    /// One that is right. None, and a word about it, where none can be had.
    pub fn new() -> Option<Self> {
        let shim = SHIM.get_or_init(compile).as_ref();
        if shim.is_none() {
            eprintln!("skipped: rustc cannot compile a library here");
        }
        let clock = Self {
            library: &shim?.library,
            file: tempfile::NamedTempFile::new().unwrap(),
        };
        clock.set_ahead(0);
        Some(clock)
    }

    /// Has a program that is yet to start go by this clock.
    pub fn lend(&self, mut program: Command) -> Command {
        program
            .env("LD_PRELOAD", self.library)
            .env("HAILMARY_TEST_CLOCK", self.file.path());
        program
    }

    /// From now on it is ahead of the right time by so many seconds.
    pub fn set_ahead(&self, seconds: i64) {
        let file = self.file.as_file();
        file.write_all_at(&seconds.to_ne_bytes(), 0).unwrap();
    }
}

fn compile() -> Option<Shim> {
    let source = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/support/wall_clock_shim.rs"
    );
    let directory = tempfile::tempdir().unwrap();
    let library = directory.path().join("libclock.so");
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let status = Command::new(rustc)
        .args(["--edition", "2024", "--crate-type", "cdylib"])
        .args(["-O", "-C", "panic=abort", "-o"])
        .arg(&library)
        .arg(source)
        .status();
    status.is_ok_and(|status| status.success()).then(|| Shim {
        library,
        _directory: directory,
    })
}
