//! What a bus gives up once its sockets are bound: that it does, and that it bites.
//!
//! What is given up is gone for good, so a test that does so itself starts itself again first.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use hailmary::confine::{Confinement, Fence, Hold, Mode, Needs, confine};
use hailmary::net::listener::ListenAddress;
use rustix::io::Errno;
use rustix::net::addr::SocketAddrArg;
use rustix::net::{MMsgHdr, SendAncillaryBuffer, SendFlags, sendmmsg};
use rustix::process::{
    Signal, getpriority_pgrp, getpriority_process, getpriority_user, setpriority_pgrp,
    setpriority_process, setpriority_user,
};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};
use serde_json::Value;
use socket2::{Domain, Protocol, Socket, Type};

use crate::support::evidence::{figure, tell};
use crate::support::{Configured, Serving, hailmary, value};

/// Set for a test inside of its own process: the directory that it may work in.
const INSIDE: &str = "HAILMARY_TEST_CONFINED_IN";

/// Set with it: what to do there.
const WHAT: &str = "HAILMARY_TEST_CONFINED_CALL";

/// What the kernel shows of each thread of a bus, by name.
fn threads(bus: &Serving) -> Vec<BTreeMap<String, String>> {
    threads_of(bus.id())
}

/// The same of any process.
fn threads_of(id: u32) -> Vec<BTreeMap<String, String>> {
    let tasks = fs::read_dir(format!("/proc/{id}/task")).unwrap();
    let read = |task: io::Result<fs::DirEntry>| {
        let status = fs::read_to_string(task.unwrap().path().join("status")).unwrap();
        let fields = status.lines().filter_map(|line| line.split_once(":\t"));
        fields
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect()
    };
    tasks.map(read).collect()
}

fn json(bus: &Serving) -> Value {
    let answer = bus.get("/api/v1/status");
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    serde_json::from_str(body).unwrap()
}

fn status(bus: &Serving) -> Value {
    json(bus)["confinement"].take()
}

#[test]
fn every_thread_of_a_bus_is_confined_without_being_told_to() {
    let directory = tempfile::tempdir().unwrap();
    let unix = directory.path().join("bus.sock");
    let bus = Configured::start(&format!(
        "[listen]\nunix = [{unix:?}]\n[loop]\nworkers = 3\n[canary]\ninterval_ms = 10\n"
    ));
    let threads = threads(&bus);
    let names: Vec<_> = threads.iter().map(|thread| &thread["Name"]).collect();
    assert_eq!(names.len(), 7, "{names:?}");
    for thread in &threads {
        for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
            assert_eq!(thread[set], "0000000000000000", "{set} of {thread:?}");
        }
        assert_eq!(thread["NoNewPrivs"], "1", "{thread:?}");
        assert_eq!(thread["Seccomp"], "2", "{thread:?}");
    }
    let told = status(&bus);
    assert_eq!(told["mode"], "best-effort");
    assert_eq!(told["capabilities"], "enforced");
    assert_eq!(told["seccomp"], "enforced");
    let page = bus.get("/metrics");
    let mut whole = 0;
    for fence in Fence::ALL.map(Fence::label) {
        let is_whole = u64::from(told[fence] == "enforced");
        assert_eq!(
            value(&page, &format!("confined{{fence=\"{fence}\"}}")),
            is_whole
        );
        whole += is_whole;
    }
    let held = |thread: &BTreeMap<String, String>| {
        let sets = u64::from_str_radix(&thread["CapPrm"], 16);
        u64::from(sets.unwrap().count_ones())
    };
    tell(
        "taken_over",
        "somebody else has a bus do what they like",
        "it has no capability, makes no call that no bus makes, and gets at no files but those \
         beside its configuration and its sockets",
        &[
            figure("confined", threads.len(), "threads"),
            figure(
                "held",
                threads.iter().map(held).sum::<u64>(),
                "capabilities",
            ),
            figure("in force of three", whole, "fences"),
        ],
    );
}

#[test]
fn a_bus_that_is_told_not_to_keeps_all_that_it_has() {
    let bus = Serving::start(&["--confine", "off"], &[]);
    let own = fs::read_to_string("/proc/self/status").unwrap();
    for thread in threads(&bus) {
        assert_eq!(thread["Seccomp"], "0");
        let same = format!("CapEff:\t{}\n", thread["CapEff"]);
        assert!(own.contains(&same), "{own}");
    }
    let told = status(&bus);
    assert_eq!(told["mode"], "off");
    for fence in Fence::ALL {
        assert_eq!(told[fence.label()], "off");
    }
}

#[test]
fn every_thread_of_a_bus_of_the_bench_is_confined_unless_told_not_to() {
    for (mode, filtered) in [("best-effort", "2"), ("off", "0")] {
        let mut command = hailmary();
        command.arg("bench-child").env("HAILMARY_CONFINE", mode);
        command.stdin(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut input = child.stdin.take().unwrap();
        let config = "[listen]\nudp = [\"127.0.0.1:0\"]\nadmin = \"127.0.0.1:0\"\n";
        let task = serde_json::json!({ "Serve": config });
        writeln!(input, "{task}").unwrap();
        let log = BufReader::new(child.stderr.take().unwrap());
        let is_up = |line: &String| line.contains("admin listening");
        assert!(log.lines().map_while(Result::ok).any(|line| is_up(&line)));
        let threads = threads_of(child.id());
        assert!(threads.len() > 2, "{threads:?}");
        for thread in threads {
            assert_eq!(thread["Seccomp"], filtered, "{thread:?}");
            if mode != "off" {
                assert_eq!(thread["CapEff"], "0000000000000000", "{thread:?}");
            }
        }
        drop(input);
        assert_eq!(child.wait().unwrap().code(), Some(1));
    }
}

/// Runs a test in a process of its own, to do this there.
fn run_alone(test: &str, what: &str) -> Output {
    let directory = tempfile::tempdir().unwrap();
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(INSIDE, directory.path())
        .env(WHAT, what)
        .output();
    output.unwrap()
}

/// What the test is to do here, and the directory that it may work in, if it has a process of its
/// own.
fn alone() -> Option<(PathBuf, String)> {
    let directory = std::env::var_os(INSIDE)?;
    Some((directory.into(), std::env::var(WHAT).unwrap()))
}

/// Confined as a bus is whose file and socket are in `own` of this directory.
fn confine_to_own(directory: &Path) -> Confinement {
    let own = directory.join("own");
    fs::create_dir(&own).unwrap();
    fs::create_dir(directory.join("other")).unwrap();
    fs::write(own.join("bus.toml"), "[listen]\n").unwrap();
    fs::write(own.join("old.sock"), "").unwrap();
    fs::write(directory.join("other/secret"), "s").unwrap();
    let listen = [ListenAddress::Unix(own.join("bus.sock"))];
    let needs = Needs {
        configuration: Some(&own.join("bus.toml")),
        listen: &listen,
    };
    confine(Mode::BestEffort, needs).unwrap()
}

#[track_caller]
fn assert_refused<T>(result: io::Result<T>, error: i32) {
    let refused = result.err().map(|error| error.raw_os_error());
    assert_eq!(refused, Some(Some(error)));
}

#[test]
fn what_a_bus_has_no_use_for_is_refused_and_what_it_needs_is_not() {
    let Some((directory, _)) = alone() else {
        let test = "confined::what_a_bus_has_no_use_for_is_refused_and_what_it_needs_is_not";
        let output = run_alone(test, "");
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(said.contains("1 passed"), "{output:?}");
        eprint!("{}", String::from_utf8_lossy(&output.stderr));
        return;
    };
    let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let early = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    let subscriber = UnixDatagram::bind(directory.join("subscriber")).unwrap();
    let confinement = confine_to_own(&directory);

    refuses_calls(&directory);
    refuses_fast_open(&early, server.local_addr().unwrap());
    refuses_priorities_of_others();
    let [_, _, (_, landlock)] = confinement.holds().collect::<Vec<_>>()[..] else {
        panic!("there are three fences")
    };
    match landlock {
        Hold::Missing(_) => eprintln!("skipped: {landlock}"),
        _ => refuses_files(&directory),
    }
    if *landlock == Hold::Enforced {
        let to = server.local_addr().unwrap();
        assert_refused(early.connect(&to.into()), libc::EACCES);
    }
    allows(&directory, &subscriber);
}

/// By the filter of calls.
fn refuses_calls(directory: &Path) {
    const UNKNOWN: i32 = libc::ENOSYS;
    assert_refused(Command::new("true").spawn(), UNKNOWN);
    for (domain, kind, protocol) in [
        (Domain::IPV4, Type::STREAM, None),
        (Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4)),
        // A ping without rights is a datagram, too.
        (Domain::IPV4, Type::DGRAM, Some(Protocol::ICMPV4)),
        (Domain::PACKET, Type::DGRAM, None),
        (Domain::from(libc::AF_NETLINK), Type::DGRAM, None),
        (Domain::from(libc::AF_ALG), Type::DGRAM, None),
        (Domain::UNIX, Type::STREAM, None),
    ] {
        assert_refused(Socket::new(domain, kind, protocol), UNKNOWN);
    }
    assert_refused(UnixStream::pair(), UNKNOWN);
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    assert_refused(socket.set_broadcast(true), UNKNOWN);
    let own = directory.join("own");
    assert_refused(File::create(own.join("new")), UNKNOWN);
    let write = OpenOptions::new().write(true).open(own.join("bus.toml"));
    assert_refused(write, UNKNOWN);
    assert_refused(fs::rename(own.join("bus.toml"), own.join("b")), UNKNOWN);
    assert_refused(fs::create_dir(own.join("new")), UNKNOWN);
    let signal = rustix::process::kill_process(rustix::process::getpid(), Signal::CHILD);
    assert_eq!(signal, Err(Errno::NOSYS));
}

/// A connection that begins with its first data, by each call that sends.
fn refuses_fast_open(socket: &Socket, to: SocketAddr) {
    let data = [io::IoSlice::new(b"x")];
    let (mut none, any) = (SendAncillaryBuffer::default(), to.as_any());
    let mut messages = [MMsgHdr::new_with_addr(&any, &data, &mut none)];
    let flags = SendFlags::from_bits_retain(libc::MSG_FASTOPEN.cast_unsigned());
    assert_eq!(sendmmsg(socket, &mut messages, flags), Err(Errno::NOSYS));
    let to = to.into();
    let sent = socket.send_to_with_flags(b"x", &to, libc::MSG_FASTOPEN);
    assert_refused(sent, libc::ENOSYS);
    let message = socket2::MsgHdr::new().with_addr(&to).with_buffers(&data);
    assert_refused(socket.sendmsg(&message, libc::MSG_FASTOPEN), libc::ENOSYS);
}

/// Of a process by its number, though it be this one, of a group and of a user. That of the calling
/// thread is its own.
fn refuses_priorities_of_others() {
    let before = getpriority_process(None).unwrap();
    let own = Some(rustix::process::getpid());
    let user = rustix::process::Uid::ROOT;
    for set in [
        setpriority_process(own, before),
        setpriority_pgrp(None, before),
        setpriority_user(user, before),
    ] {
        assert_eq!(set, Err(Errno::NOSYS));
    }
    for asked in [
        getpriority_process(own),
        getpriority_pgrp(None),
        getpriority_user(user),
    ] {
        assert_eq!(asked, Err(Errno::NOSYS));
    }
    // No lower than that goes for one that has given way wholly.
    let lower = (before + 1).min(19);
    setpriority_process(None, lower).unwrap();
    assert_eq!(getpriority_process(None), Ok(lower));
}

/// By Landlock.
fn refuses_files(directory: &Path) {
    let other = directory.join("other");
    assert_refused(File::open(other.join("secret")), libc::EACCES);
    assert_refused(File::open("/etc/passwd"), libc::EACCES);
    assert_refused(fs::remove_file(other.join("secret")), libc::EACCES);
    assert_refused(UnixDatagram::bind(other.join("new.sock")), libc::EACCES);
}

fn allows(directory: &Path, subscriber: &UnixDatagram) {
    let own = directory.join("own");
    assert_eq!(
        fs::read_to_string(own.join("bus.toml")).unwrap(),
        "[listen]\n"
    );
    fs::remove_file(own.join("old.sock")).unwrap();
    let socket = UnixDatagram::bind(own.join("new.sock")).unwrap();
    socket
        .send_to(b"event", directory.join("subscriber"))
        .unwrap();
    assert_eq!(subscriber.recv(&mut [0; 9]).unwrap(), 5);
    for any in ["127.0.0.1:0", "[::1]:0"] {
        // A host may have no IPv6, which is for others to mind.
        if let Ok(socket) = UdpSocket::bind(any.parse::<SocketAddr>().unwrap()) {
            let own = socket.local_addr().unwrap();
            socket.send_to(b"event", own).unwrap();
            assert_eq!(socket.recv(&mut [0; 9]).unwrap(), 5);
        }
    }
    let thread = std::thread::Builder::new().name("other".to_owned());
    thread.spawn(|| ()).unwrap().join().unwrap();
}

#[test]
fn a_call_that_no_bus_makes_ends_it() {
    let Some((directory, call)) = alone() else {
        for call in ["execve", "chroot"] {
            let output = run_alone("confined::a_call_that_no_bus_makes_ends_it", call);
            assert_eq!(
                output.status.signal(),
                Some(libc::SIGSYS),
                "{call}: {output:?}"
            );
        }
        return;
    };
    confine_to_own(&directory);
    match call.as_str() {
        "execve" => panic!("{}", Command::new("true").exec()),
        _ => panic!("{:?}", std::os::unix::fs::chroot(&directory)),
    }
}

/// On a host whose kernel has no Landlock, to all that this starts.
fn without_landlock<T: Send>(start: impl FnOnce() -> T + Send) -> T {
    let calls = [(libc::SYS_landlock_create_ruleset, Vec::new())].into();
    let unknown = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
    let processor = TargetArch::try_from(std::env::consts::ARCH).unwrap();
    let filter = SeccompFilter::new(calls, SeccompAction::Allow, unknown, processor).unwrap();
    let filter: BpfProgram = filter.try_into().unwrap();
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // Of this thread alone, and of the processes that it starts.
            seccompiler::apply_filter(&filter).unwrap();
            start()
        });
        thread.join().unwrap()
    })
}

#[test]
fn a_kernel_without_landlock_confines_by_the_rest() {
    let bus = without_landlock(|| Serving::start(&[], &[]));
    let told = status(&bus);
    assert_eq!(told["landlock"], "missing");
    assert_eq!(told["seccomp"], "enforced");
    assert_eq!(
        value(&bus.get("/metrics"), "confined{fence=\"landlock\"}"),
        0
    );
    let (status, _) = bus.stop();
    assert_eq!(status, 0);
}

#[test]
fn a_bus_that_insists_does_not_start_where_the_kernel_lacks_a_fence() {
    let mut command = hailmary();
    command.args(["serve", "--admin", "off", "--listen", "127.0.0.1:0"]);
    command.env("HAILMARY_CONFINE", "required");
    let output = without_landlock(|| command.output().unwrap());
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    let why = "cannot confine itself, and confine.mode is required: landlock: ";
    assert!(said.contains(why), "{said}");
}

/// Has a bus reload, and gives the error.
fn reload_error(bus: &Serving) -> String {
    let failed = "reloads_total{outcome=\"failed\"}";
    let before = value(&bus.get("/metrics"), failed);
    bus.signal("HUP");
    bus.wait_for_metric(failed, before + 1);
    json(bus)["reload"]["error"].as_str().unwrap().to_owned()
}

#[test]
fn what_was_given_up_takes_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let (own, other) = (directory.path().join("own"), directory.path().join("other"));
    fs::create_dir(&own).unwrap();
    fs::create_dir(&other).unwrap();
    let file = own.join("bus.toml");
    let text = |socket: &Path, more: &str| {
        format!(
            "[listen]\nunix = [{:?}, {socket:?}]\n{more}",
            own.join("bus.sock")
        )
    };
    fs::write(&file, text(&own.join("a.sock"), "")).unwrap();
    let bus = Serving::start_configured(file.to_str().unwrap());

    fs::write(&file, text(&own.join("b.sock"), "")).unwrap();
    bus.signal("HUP");
    bus.wait_for_metric("reloads_total{outcome=\"ok\"}", 1);
    assert!(own.join("b.sock").exists() && !own.join("a.sock").exists());

    if status(&bus)["landlock"] != "missing" {
        fs::write(&file, text(&other.join("a.sock"), "")).unwrap();
        let error = reload_error(&bus);
        assert!(
            error.contains("in a directory that this bus gave up"),
            "{error}"
        );
        assert!(!other.join("a.sock").exists());
    }
    fs::write(
        &file,
        text(&own.join("b.sock"), "[confine]\nmode = \"off\"\n"),
    )
    .unwrap();
    let error = reload_error(&bus);
    assert!(
        error.contains("confine.mode is best-effort and would be off"),
        "{error}"
    );
}

#[test]
fn a_reload_from_another_directory_of_the_same_name_says_that_it_takes_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let own = directory.path().join("own");
    fs::create_dir(&own).unwrap();
    let file = own.join("bus.toml");
    let text = "[listen]\nudp = [\"127.0.0.1:0\"]\n";
    fs::write(&file, text).unwrap();
    let bus = Serving::start_configured(file.to_str().unwrap());
    if status(&bus)["landlock"] == "missing" {
        eprintln!("skipped: there is no Landlock");
        return;
    }
    fs::rename(&own, directory.path().join("old")).unwrap();
    fs::create_dir(&own).unwrap();
    fs::write(&file, text).unwrap();
    let error = reload_error(&bus);
    assert!(error.contains("that takes a restart"), "{error}");
}

#[test]
fn a_canary_of_root_starts_beside_a_socket_in_the_directory_of_another() {
    let directory = tempfile::tempdir().unwrap();
    if std::os::unix::fs::chown(directory.path(), Some(1), Some(1)).is_err() {
        eprintln!("skipped: this is not root");
        return;
    }
    let unix = directory.path().join("bus.sock");
    let bus = Configured::start(&format!(
        "[listen]\nunix = [{unix:?}]\n[canary]\ninterval_ms = 10\n"
    ));
    assert_eq!(status(&bus)["capabilities"], "enforced");
}

#[test]
fn a_reload_that_wants_larger_buffers_makes_none_smaller() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("bus.toml");
    let write = |bytes: u32| {
        let text =
            format!("[listen]\nudp = [\"127.0.0.1:0\"]\n[loop]\nreceive_buffer_bytes = {bytes}\n");
        fs::write(&file, text).unwrap();
    };
    write(1 << 20);
    let bus = Serving::start_configured(file.to_str().unwrap());
    let granted = || {
        json(&bus)["listeners"][0]["granted_buffer_bytes"]
            .as_u64()
            .unwrap()
    };
    let before = granted();
    write(1 << 30);
    bus.signal("HUP");
    bus.wait_for_metric("reloads_total{outcome=\"ok\"}", 1);
    assert!(granted() >= before, "{} after {before}", granted());
}
