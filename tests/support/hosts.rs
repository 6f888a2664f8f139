//! Several hosts on one machine.
//!
//! They are network namespaces with a cable between them (veth(4)). The test starts itself again
//! inside one of them; all vanish with their processes. Nothing here touches the machine's own
//! network.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

/// Set for the test inside of its namespace.
const INSIDE: &str = "HAILMARY_TEST_INSIDE_NAMESPACE";

/// The bus's and the subscribers' host. The range is for tests of devices (RFC 2544).
pub const HOSTS: [&str; 2] = ["198.18.0.1", "198.18.0.2"];

/// Makes new namespaces of users and of networks for a program.
const UNSHARE: [&str; 3] = ["--user", "--map-root-user", "--net"];

/// Whether the test is to go on here. If not it has been run, or cannot be.
pub fn is_inside(test: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let try_out = "ip link add cable type veth peer name other";
    let trial = Command::new("unshare")
        .args(UNSHARE)
        .args(["sh", "-c", &format!("command -v nsenter && {try_out}")])
        .output();
    if !trial.is_ok_and(|trial| trial.status.success()) {
        eprintln!(
            "skipped: `unshare {} {try_out}` or nsenter(1) does not work",
            UNSHARE.join(" ")
        );
        return false;
    }
    let status = Command::new("unshare")
        .args(UNSHARE)
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--ignored", "--nocapture"])
        .env(INSIDE, "1")
        .status();
    assert!(status.unwrap().success());
    false
}

/// Has ip(8) do something on this host.
pub fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status();
    assert!(status.unwrap().success(), "ip {arguments}");
}

/// The subscribers' host: a process in a namespace of its own, ended when dropped.
pub struct Host(Child);

impl Host {
    /// With a cable to this one, for packets of so many bytes.
    pub fn connect(mtu_bytes: u32) -> Self {
        let mut child = Command::new("unshare")
            .args(["--net", "sh", "-c", "echo there; exec cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = String::new();
        let stdout = child.stdout.take().unwrap();
        BufReader::new(stdout).read_line(&mut said).unwrap();
        assert_eq!(said, "there\n");
        let host = Self(child);
        let id = host.0.id();
        let mtu = format!("mtu {mtu_bytes}");
        ip("link set lo up");
        ip(&format!(
            "link add cable {mtu} type veth peer name cable {mtu} netns {id}"
        ));
        ip(&format!("address add {}/24 dev cable", HOSTS[0]));
        ip("link set cable up");
        for arguments in [
            &format!("address add {}/24 dev cable", HOSTS[1]),
            "link set cable up",
            "link set lo up",
        ] {
            let status = host.command("ip").args(arguments.split(' ')).status();
            assert!(status.unwrap().success(), "ip {arguments}");
        }
        host
    }

    /// A program that is to run there.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        let id = self.0.id().to_string();
        command.args(["--net", "--target", &id, program]);
        command
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // Ended already is as good.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
