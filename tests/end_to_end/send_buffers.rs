//! The send buffers that copies wait in: as large as is wanted where the bus may pass the system's
//! maximum, and as large as that elsewhere.

use std::fs;
use std::io;
use std::os::fd::AsFd;

use hailmary::net::sys::force_send_buffer;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use socket2::{Domain, Socket, Type};

use crate::support::hosts::{ip, is_inside};
use crate::support::{Configured, Serving};

/// Past the maximum of most systems, which is some 200 KiB.
const WANTED_BYTES: usize = 5 << 20;

/// Sockets of one address family: what stays on this host, and 16 lanes of others.
const SOCKETS: usize = 17;

/// What the kernel grants to a socket that asks for a buffer in this way, if it does.
fn granted(ask: impl FnOnce(&Socket) -> io::Result<()>) -> Option<usize> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, None).unwrap();
    ask(&socket).ok()?;
    Some(socket.send_buffer_size().unwrap())
}

/// What it grants past its maximum.
fn forced() -> Option<usize> {
    granted(|socket| force_send_buffer(socket.as_fd(), WANTED_BYTES))
}

/// What it grants to whoever asks.
fn plain() -> usize {
    granted(|socket| socket.set_send_buffer_size(WANTED_BYTES)).unwrap()
}

/// The send buffers of a bus's sockets that send over UDP and are bound nowhere.
fn send_buffers(bus: &Serving) -> Result<Vec<usize>, Errno> {
    let id = Pid::from_raw(bus.id().try_into().unwrap()).unwrap();
    let process = pidfd_open(id, PidfdFlags::empty())?;
    let mut buffers = Vec::new();
    for file in fs::read_dir(format!("/proc/{}/fd", bus.id())).unwrap() {
        let file = file.unwrap();
        let is_socket = fs::read_link(file.path()).is_ok_and(|to| {
            let to = to.to_string_lossy();
            to.starts_with("socket:")
        });
        if !is_socket {
            continue;
        }
        let number = file.file_name().to_str().unwrap().parse().unwrap();
        let socket = Socket::from(pidfd_getfd(&process, number, PidfdGetfdFlags::empty())?);
        let is_udp = socket.r#type().unwrap() == Type::DGRAM;
        let address = socket.local_addr().unwrap().as_socket();
        if is_udp && address.is_some_and(|address| address.port() == 0) {
            buffers.push(socket.send_buffer_size().unwrap());
        }
    }
    Ok(buffers)
}

/// Asserts that each of a bus's sockets was granted so much.
fn assert_granted(expected: usize) {
    let bus = Configured::start(&format!("[loop]\nsend_buffer_bytes = {WANTED_BYTES}\n"));
    let buffers = match send_buffers(&bus) {
        Ok(buffers) => buffers,
        Err(error) => return eprintln!("skipped: another's sockets cannot be seen: {error}"),
    };
    // None has sent anything, and so has got an address. A host may have no IPv6.
    assert!(
        [SOCKETS, 2 * SOCKETS].contains(&buffers.len()),
        "{buffers:?}"
    );
    assert!(
        buffers.iter().all(|bytes| *bytes == expected),
        "{expected}: {buffers:?}"
    );
}

#[test]
fn every_socket_to_send_by_has_what_is_wanted_where_the_bus_may_have_it() {
    let Some(forced) = forced() else {
        return eprintln!("skipped: this is without CAP_NET_ADMIN");
    };
    // The kernel makes twice as much of it.
    assert_eq!(forced, 2 * WANTED_BYTES);
    assert_granted(forced);
}

#[test]
#[ignore = "needs network namespaces"]
fn a_bus_that_may_not_have_it_starts_with_what_anybody_may_have() {
    if !is_inside("send_buffers::a_bus_that_may_not_have_it_starts_with_what_anybody_may_have") {
        return;
    }
    ip("link set lo up");
    // Root of its own namespace is nobody to the system's limits.
    assert_eq!(forced(), None);
    assert_granted(plain());
}
