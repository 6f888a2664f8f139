//! Several hosts on one machine.
//!
//! They are network namespaces with cables between them (veth(4)), or a switch. The test starts
//! itself again inside one of them; all vanish with their processes. Nothing here touches the
//! machine's own network.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

/// Set for the test inside of its namespace.
const INSIDE: &str = "HAILMARY_TEST_INSIDE_NAMESPACE";

/// The bus's and the subscribers' host. The range is for tests of devices (RFC 2544).
pub const HOSTS: [&str; 2] = ["198.18.0.1", "198.18.0.2"];

/// The range that all hosts' addresses are of.
pub const ALL_HOSTS: &str = "198.18.0.0/15";

/// Makes new namespaces of users and of networks for a program.
const UNSHARE: [&str; 3] = ["--user", "--map-root-user", "--net"];

/// The addresses of both ends of a cable, by its number: the end here, and the other one.
pub fn ends(cable: u8) -> [String; 2] {
    [1, 2].map(|end| format!("198.18.{cable}.{end}"))
}

/// Whether the test is to go on here. If not it has been run, or cannot be.
pub fn is_inside(test: &str) -> bool {
    is_inside_with(test, "true")
}

/// As [`is_inside`], where these commands of a shell have to work as well on a host that has a
/// network device named `cable`.
pub fn is_inside_with(test: &str, needed: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let try_out = "ip link add cable type veth peer name other";
    let trial = Command::new("unshare")
        .args(UNSHARE)
        .args([
            "sh",
            "-c",
            &format!("command -v nsenter && {try_out} && {needed}"),
        ])
        .output();
    if !trial.is_ok_and(|trial| trial.status.success()) {
        eprintln!(
            "skipped: `unshare {} {try_out}`, nsenter(1) or `{needed}` does not work",
            UNSHARE.join(" ")
        );
        return false;
    }
    let output = Command::new("unshare")
        .args(UNSHARE)
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--ignored", "--nocapture"])
        .env(INSIDE, "1")
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}");
    // Of another name than this one's, none would be run.
    assert!(said.contains("1 passed"), "{test}: {said}");
    false
}

/// Has ip(8) do something on this host.
pub fn ip(arguments: &str) {
    run(&mut Command::new("ip"), arguments);
}

/// Has tc(8) do something on this host. Its arguments are a shell's.
pub fn tc(arguments: &str) {
    sh(&mut Command::new("sh"), &format!("tc {arguments}"));
}

/// What this host has counted by this name of a protocol (proc_pid_net(5)).
pub fn counted(protocol: &str, name: &str) -> u64 {
    let counts = std::fs::read_to_string("/proc/self/net/snmp").unwrap();
    let rows = counts.lines().filter_map(|line| line.split_once(": "));
    let mut rows = rows.filter(|(of, _)| *of == protocol);
    let [names, values] = [(); 2].map(|()| rows.next().unwrap().1.split(' '));
    let (_, value) = names.zip(values).find(|(of, _)| *of == name).unwrap();
    value.parse().unwrap()
}

fn sh(command: &mut Command, script: &str) {
    let status = command.args(["-c", script]).status();
    assert!(status.unwrap().success(), "{command:?}");
}

fn run(command: &mut Command, arguments: &str) {
    let status = command.args(arguments.split(' ')).status();
    assert!(status.unwrap().success(), "{command:?}");
}

/// Another host: a process in a namespace of its own, ended when dropped.
pub struct Host(Child);

impl Host {
    /// With a cable to this one, for packets of so many bytes.
    pub fn connect(mtu_bytes: u32) -> Self {
        Self::connect_by(0, mtu_bytes)
    }

    /// With a cable of this number to this one: the device `cable0` and so on at both ends.
    pub fn connect_by(cable: u8, mtu_bytes: u32) -> Self {
        let host = Self::alone();
        ip("link set lo up");
        lay(cable, mtu_bytes, &host, ip);
        host
    }

    /// With a cable to another one, which passes packets on between it and this one.
    pub fn behind(router: &Host, cable: u8, mtu_bytes: u32) -> Self {
        let host = Self::alone();
        lay(cable, mtu_bytes, &host, |arguments| router.ip(arguments));
        sh(
            &mut router.command("sh"),
            "echo 1 > /proc/sys/net/ipv4/ip_forward",
        );
        host
    }

    fn alone() -> Self {
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
        host.ip("link set lo up");
        host
    }

    /// A program that is to run there.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        let id = self.0.id().to_string();
        command.args(["--net", "--target", &id, program]);
        command
    }

    /// Has ip(8) do something there.
    pub fn ip(&self, arguments: &str) {
        run(&mut self.command("ip"), arguments);
    }

    /// Has tc(8) do something there. Its arguments are a shell's.
    pub fn tc(&self, arguments: &str) {
        sh(&mut self.command("sh"), &format!("tc {arguments}"));
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // Ended already is as good.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Lays a cable between the host whose ip(8) is given and another one.
fn lay(cable: u8, mtu_bytes: u32, far: &Host, near_ip: impl Fn(&str)) {
    let (device, mtu) = (format!("cable{cable}"), format!("mtu {mtu_bytes}"));
    let id = far.0.id();
    near_ip(&format!(
        "link add {device} {mtu} type veth peer name {device} {mtu} netns {id}"
    ));
    let [near, other] = ends(cable);
    near_ip(&format!("address add {near}/24 dev {device}"));
    far.ip(&format!("address add {other}/24 dev {device}"));
    near_ip(&format!("link set {device} up"));
    far.ip(&format!("link set {device} up"));
}

/// A switch that this host is plugged into, as [`Switch::HERE`], and others can be.
pub struct Switch(());

impl Switch {
    /// This host's address.
    pub const HERE: &str = "198.18.200.1";

    /// The only one, its device here named `switch`.
    pub fn new() -> Self {
        ip("link set lo up");
        ip("link add switch type bridge");
        ip(&format!("address add {}/24 dev switch", Self::HERE));
        ip("link set switch up");
        Self(())
    }

    /// The address of the host with this number, which is over 1.
    pub fn address(number: u8) -> String {
        format!("198.18.200.{number}")
    }

    /// A host with the address of this number, in the switch's port of that number.
    pub fn plug(&self, port: u8, number: u8) -> Host {
        let host = Host::alone();
        let id = host.0.id();
        ip(&format!(
            "link add port{port} type veth peer name cable netns {id}"
        ));
        ip(&format!("link set port{port} master switch up"));
        host.ip(&format!(
            "address add {}/24 dev cable",
            Self::address(number)
        ));
        host.ip("link set cable up");
        host
    }

    /// Pulls a host's plug: whoever sends to it hears nothing of that, but may forget where it was.
    pub fn unplug(&self, port: u8, number: u8) {
        ip(&format!("link set port{port} down"));
        self.forget(number);
    }

    /// Puts a host's plug in again.
    pub fn plug_in(&self, port: u8) {
        ip(&format!("link set port{port} up"));
    }

    /// Forgets which device had an address, as this host does by itself when nobody answers, some
    /// seconds later.
    pub fn forget(&self, number: u8) {
        ip(&format!("neigh flush to {}", Self::address(number)));
    }
}
