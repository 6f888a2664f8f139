//! Sockets that a configuration wants, opened before it is put in use.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use anyhow::Context;
use tracing::warn;

use crate::bus::access::Access;
use crate::bus::address::Address;
use crate::canary::Stream;
use crate::config::Plan;
use crate::net::listener::{Buffer, ListenAddress, Listener};
use crate::net::sys::Ask;

/// A listener that is bound, for all data threads.
#[derive(Debug)]
pub struct Opened {
    /// What the configuration calls it.
    pub wanted: ListenAddress,
    /// Its address with the real port.
    pub address: Address,
    /// The label of its metrics.
    pub name: String,
    /// The smallest receive buffer of its sockets.
    pub buffer: Buffer,
    /// Second handles of its sockets, for their account.
    pub handles: Vec<OwnedFd>,
    /// By data thread. A Unix socket cannot be shared: the first one has it.
    pub sockets: Vec<Option<Listener>>,
}

impl Opened {
    /// Binds a listener.
    ///
    /// # Errors
    ///
    /// What the system refuses.
    pub fn open(wanted: &ListenAddress, plan: &Plan) -> anyhow::Result<Self> {
        let mut first = Listener::bind(wanted, plan.receive_buffer_bytes)?;
        let asked = first.set_ask(ask(&plan.settings.access));
        asked.context("cannot have the system tell who sends over a Unix socket")?;
        let others = (1..plan.workers).map(|_| first.share());
        let others = others.collect::<Result<Vec<_>, _>>()?;
        let (name, address) = (first.name().to_owned(), first.address()?);
        let sockets: Vec<_> = [Some(first)].into_iter().chain(others).collect();
        let bound = || sockets.iter().flatten();
        let handles = bound().map(|listener| listener.as_fd().try_clone_to_owned());
        let buffers = bound().map(Listener::buffer);
        let buffer = buffers.min_by_key(|buffer| buffer.granted);
        let opened = Self {
            wanted: wanted.clone(),
            buffer: buffer.context("there is at least one worker")?,
            handles: handles.collect::<io::Result<_>>()?,
            name,
            address,
            sockets,
        };
        warn_if_small(&opened.name, opened.buffer);
        Ok(opened)
    }
}

/// Tells of a receive buffer that the system did not grant.
pub fn warn_if_small(address: &str, buffer: Buffer) {
    if buffer.granted < buffer.wanted {
        warn!(
            address,
            wanted = buffer.wanted,
            granted = buffer.granted,
            "the receive buffer is smaller than wanted: raise net.core.rmem_max, \
             or start this program anew with CAP_NET_ADMIN"
        );
    }
}

/// What the rules of access want to know of each datagram.
pub fn ask(access: &Access) -> Ask {
    match access.names_users() {
        true => Ask::Credentials,
        false => Ask::Source,
    }
}

/// Opens a canary's streams to the listeners in these places.
///
/// # Errors
///
/// What the system refuses.
pub fn open_streams<'a>(
    listeners: impl Iterator<Item = (usize, &'a Address)>,
) -> anyhow::Result<Vec<Stream>> {
    let open = |(place, address): (usize, &Address)| {
        let mut id = [0; 8];
        getrandom::fill(&mut id)?;
        Stream::open(place, address, u64::from_le_bytes(id).max(1))
    };
    let streams = listeners.map(open).collect::<anyhow::Result<_>>();
    streams.context("cannot open a canary")
}
