//! What a table of figures must say of where it comes from.

use std::fs;
use std::process::{Command, Stdio};
use std::thread::available_parallelism;

use rustix::system::uname;
use serde::Serialize;

use crate::server::Programs;
use crate::system::System;

/// The machine and the programs. What could not be found out is empty.
#[derive(Clone, Debug, Serialize)]
pub struct Facts {
    /// The day, in UTC.
    pub date: String,
    /// Of the project.
    pub commit: String,
    /// Name and release of the kernel.
    pub kernel: String,
    /// What the processor calls itself.
    pub processor: String,
    /// CPUs that these processes may use.
    pub cpus: usize,
    /// The largest receive buffer that the kernel grants without privilege, in bytes.
    pub receive_buffer_bytes_max: String,
    /// Programs and what they say of their versions.
    pub versions: Vec<(System, String)>,
    /// The load average of the last minute, before the first run.
    pub load_average_before: String,
    /// The same behind the last run, with what was measured in it.
    pub load_average_after: String,
}

impl Facts {
    /// Looks at the machine and asks the programs.
    pub fn find(systems: &[System], programs: &Programs) -> Self {
        let system = uname();
        Self {
            date: said("date", &["-u", "+%F"]),
            commit: said("git", &["describe", "--always", "--dirty"]),
            kernel: format!(
                "{} {}",
                system.sysname().to_string_lossy(),
                system.release().to_string_lossy()
            ),
            processor: processor(),
            cpus: available_parallelism().map_or(0, usize::from),
            receive_buffer_bytes_max: first_word("/proc/sys/net/core/rmem_max"),
            versions: systems
                .iter()
                .map(|system| (*system, programs.version(*system).unwrap_or_default()))
                .collect(),
            load_average_before: load_average(),
            load_average_after: String::new(),
        }
    }
}

/// Of the last minute.
pub fn load_average() -> String {
    first_word("/proc/loadavg")
}

fn first_word(file: &str) -> String {
    let text = fs::read_to_string(file).unwrap_or_default();
    text.split_whitespace()
        .next()
        .unwrap_or_default()
        .to_owned()
}

fn processor() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("model name"));
    let name = line.and_then(|line| line.split_once(':'));
    name.map(|(_, name)| name.trim().to_owned())
        .unwrap_or_default()
}

fn said(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output();
    let text = output.map(|output| output.stdout).unwrap_or_default();
    String::from_utf8_lossy(&text).trim().to_owned()
}
