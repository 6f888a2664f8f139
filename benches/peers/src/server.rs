//! The buses and brokers: where their programs are, and one run of each.
//!
//! Owns how each is started: on free ports of loopback, in a directory that goes with it, with
//! the settings that `README.md` names. It ends no process but those that it started.

use std::env;
use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use hailmary_client::Address;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::resources::{Memory, cpu_nano};
use crate::system::System;

/// How long a program may take to listen, and to end.
const PATIENCE: Duration = Duration::from_secs(10);

/// How often it is looked at meanwhile.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Where Debian puts daemons, which is not on everybody's path.
const DAEMON_DIRECTORIES: [&str; 2] = ["/usr/sbin", "/usr/local/sbin"];

/// Where the programs are.
#[derive(Clone, Debug, clap::Args)]
pub struct Programs {
    /// The program `hailmary`, built for release.
    #[arg(long, value_name = "FILE", default_value = "hailmary")]
    hailmary: PathBuf,
    /// The proxy of `zmq_proxy.c`.
    #[arg(long, value_name = "FILE", default_value = "zmq_proxy")]
    zmq_proxy: PathBuf,
}

impl Programs {
    /// Where the system's program is, or what is to be done about it.
    ///
    /// # Errors
    ///
    /// It is not there.
    pub fn find(&self, system: System) -> Result<PathBuf, String> {
        let (program, remedy) = match system {
            System::HailMary | System::HailMaryPrompt => {
                (self.hailmary.as_path(), "cargo build --release")
            }
            System::Nats => (Path::new("nats-server"), "apt-get install nats-server"),
            System::Redis => (Path::new("redis-server"), "apt-get install redis-server"),
            System::Mosquitto => (Path::new("mosquitto"), "apt-get install mosquitto"),
            System::ZeroMq => (
                self.zmq_proxy.as_path(),
                "apt-get install gcc libzmq3-dev, and let benches/peers/run build the proxy",
            ),
        };
        search(program).ok_or_else(|| format!("there is no {}: {remedy}", program.display()))
    }

    /// What the system's program says of its version.
    ///
    /// # Errors
    ///
    /// It does not run.
    pub fn version(&self, system: System) -> anyhow::Result<String> {
        let mut command = Command::new(self.find(system).map_err(anyhow::Error::msg)?);
        match system {
            System::Mosquitto => command.arg("-h"),
            _ => command.arg("--version"),
        };
        let output = command.stdin(Stdio::null()).output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        Ok(text.lines().next().unwrap_or_default().to_owned())
    }
}

/// A name without a directory is looked for where programs are.
fn search(program: &Path) -> Option<PathBuf> {
    if program.components().count() > 1 {
        return program.is_file().then(|| program.to_owned());
    }
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(DAEMON_DIRECTORIES.map(PathBuf::from))
        .map(|directory| directory.join(program))
        .find(|file| file.is_file())
}

/// A run of a bus or broker. It ends with this value.
#[derive(Debug)]
pub struct Server {
    system: System,
    child: Child,
    /// Where publishers go.
    pub publish: SocketAddr,
    /// Where subscribers go.
    pub subscribe: SocketAddr,
    directory: TempDir,
}

impl Server {
    /// Starts it and waits till it listens.
    ///
    /// # Errors
    ///
    /// It does not start, or does not listen in time; with what it said.
    pub fn start(system: System, programs: &Programs) -> anyhow::Result<Self> {
        let program = programs.find(system).map_err(anyhow::Error::msg)?;
        let directory = tempfile::tempdir()?;
        let publish = free_address(system)?;
        let subscribe = match system {
            System::ZeroMq => free_address(system)?,
            _ => publish,
        };
        let mut command = Command::new(program);
        configure(&mut command, system, [publish, subscribe], directory.path())?;
        let log = File::create(log_of(&directory))?;
        let child = command
            .current_dir(directory.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        let mut server = Self {
            system,
            child,
            publish,
            subscribe,
            directory,
        };
        server.await_listening()?;
        Ok(server)
    }

    /// CPU used so far, in ns.
    ///
    /// # Errors
    ///
    /// It has ended.
    pub fn cpu_nano(&self) -> anyhow::Result<u64> {
        cpu_nano(self.child.id())
    }

    /// Memory that it has.
    ///
    /// # Errors
    ///
    /// It has ended.
    pub fn memory(&self) -> anyhow::Result<Memory> {
        Memory::of(self.child.id())
    }

    fn await_listening(&mut self) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !self.listens() {
            let ended = self.child.try_wait()?;
            if ended.is_some() || Instant::now() > deadline {
                let log = fs::read_to_string(log_of(&self.directory)).unwrap_or_default();
                bail!("{} does not listen: {log}", self.system.title());
            }
            sleep(LOOK_EVERY);
        }
        Ok(())
    }

    fn listens(&self) -> bool {
        match self.system {
            System::HailMary | System::HailMaryPrompt => self
                .publish
                .to_string()
                .parse::<Address>()
                .is_ok_and(|bus| hailmary_client::ping(&bus, LOOK_EVERY).is_ok()),
            _ => [self.publish, self.subscribe]
                .into_iter()
                .all(|address| TcpStream::connect(address).is_ok()),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // What has ended already gets no signal: its id may be another's by now. What does not end
        // by one is killed.
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = kill_process(Pid::from_child(&self.child), Signal::TERM);
        }
        let deadline = Instant::now() + PATIENCE;
        while matches!(self.child.try_wait(), Ok(None)) {
            if Instant::now() > deadline {
                let _ = self.child.kill();
            }
            sleep(LOOK_EVERY);
        }
    }
}

fn log_of(directory: &TempDir) -> PathBuf {
    directory.path().join("log")
}

/// A port that nobody has at this moment.
fn free_address(system: System) -> anyhow::Result<SocketAddr> {
    let any = (Ipv4Addr::LOCALHOST, 0);
    Ok(match system {
        System::HailMary | System::HailMaryPrompt => UdpSocket::bind(any)?.local_addr()?,
        _ => TcpListener::bind(any)?.local_addr()?,
    })
}

/// The settings: each system's defaults, without storing anything, on loopback alone.
fn configure(
    command: &mut Command,
    system: System,
    [publish, subscribe]: [SocketAddr; 2],
    directory: &Path,
) -> anyhow::Result<()> {
    let port = publish.port().to_string();
    match system {
        System::HailMary => hailmary(command, publish),
        System::HailMaryPrompt => hailmary(command, publish)
            .arg("--config")
            .arg(file(directory, "[loop]\nlinger_us = 0\n")?),
        System::Nats => command.args(["--addr", "127.0.0.1", "--port", &port]),
        System::Redis => command
            .args(["--bind", "127.0.0.1", "--port", &port])
            .args(["--save", "", "--appendonly", "no"])
            .args(["--daemonize", "no", "--dir"])
            .arg(directory),
        System::Mosquitto => command.arg("-c").arg(file(directory, &mosquitto(&port))?),
        System::ZeroMq => command.args([publish, subscribe].map(|at| format!("tcp://{at}"))),
    };
    Ok(())
}

fn hailmary(command: &mut Command, address: SocketAddr) -> &mut Command {
    command
        .args(["serve", "--admin", "off", "--listen"])
        .arg(address.to_string())
}

/// Mosquitto takes these by a file alone.
fn mosquitto(port: &str) -> String {
    format!(
        "listener {port} 127.0.0.1\nallow_anonymous true\npersistence false\nset_tcp_nodelay true\n\
         log_type error\nlog_type warning\n"
    )
}

/// A file of settings. It may be read by root alone: who gives up its rights does so behind that.
fn file(directory: &Path, text: &str) -> anyhow::Result<PathBuf> {
    let file = directory.join("settings");
    fs::write(&file, text).context("the file of settings")?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_programs_on_the_path_and_says_what_is_missing() {
        assert!(search(Path::new("sh")).is_some());
        let programs = Programs {
            hailmary: "/nowhere/hailmary".into(),
            zmq_proxy: "no-such-proxy".into(),
        };
        let missing = programs.find(System::ZeroMq).unwrap_err();
        assert!(missing.contains("no-such-proxy") && missing.contains("libzmq3-dev"));
        assert!(programs.find(System::HailMary).is_err());
    }

    #[test]
    fn one_that_does_not_listen_says_why() {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("proxy");
        fs::write(&program, "#!/bin/sh\necho no such luck\n").unwrap();
        let mut permissions = fs::metadata(&program).unwrap().permissions();
        std::os::unix::fs::PermissionsExt::set_mode(&mut permissions, 0o755);
        fs::set_permissions(&program, permissions).unwrap();
        let programs = Programs {
            hailmary: "hailmary".into(),
            zmq_proxy: program,
        };
        let error = Server::start(System::ZeroMq, &programs).unwrap_err();
        assert!(error.to_string().contains("no such luck"), "{error}");
    }
}
