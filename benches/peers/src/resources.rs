//! What a process has used, by `/proc` (proc(5)).

use std::fs;
use std::io;

use anyhow::Context;

/// CPU of all threads that a process has now, in ns. A thread that has ended is not in it: no
/// broker here ends one within a run.
///
/// # Errors
///
/// There is no such process.
pub fn cpu_nano(process: u32) -> anyhow::Result<u64> {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).context("a broker has ended")?;
    tasks.map(|task| schedstat(&task?)).sum()
}

fn schedstat(task: &fs::DirEntry) -> anyhow::Result<u64> {
    let text = match fs::read_to_string(task.path().join("schedstat")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        text => text?,
    };
    let nanos = text.split_whitespace().next().context("no schedstat")?;
    Ok(nanos.parse()?)
}

/// Resident memory of a process.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    /// Now, in bytes.
    pub resident_bytes: u64,
    /// At most so far, in bytes.
    pub peak_bytes: u64,
}

impl Memory {
    /// Of this process.
    ///
    /// # Errors
    ///
    /// There is no such process.
    pub fn of(process: u32) -> anyhow::Result<Self> {
        let status = fs::read_to_string(format!("/proc/{process}/status"))?;
        Ok(Self {
            resident_bytes: kilobytes(&status, "VmRSS:").context("no VmRSS")? << 10,
            peak_bytes: kilobytes(&status, "VmHWM:").context("no VmHWM")? << 10,
        })
    }
}

fn kilobytes(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_of_this_process() {
        let process = std::process::id();
        let before = cpu_nano(process).unwrap();
        let memory = Memory::of(process).unwrap();
        assert!(memory.peak_bytes >= memory.resident_bytes);
        assert!(memory.resident_bytes > 100_000);
        let mut number = 1_u64;
        while cpu_nano(process).unwrap() == before {
            number = std::hint::black_box(number.wrapping_mul(3));
        }
    }

    #[test]
    fn reads_a_line_of_status() {
        let status = "VmPeak:\t  9 kB\nVmRSS:\t    4711 kB\n";
        assert_eq!(kilobytes(status, "VmRSS:"), Some(4711));
        assert_eq!(kilobytes(status, "VmHWM:"), None);
    }
}
