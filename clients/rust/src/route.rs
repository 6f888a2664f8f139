//! Where a publisher's datagrams go: to a bus's socket, to nobody, or to a test.
//!
//! Owns what is done where no socket can be had. A route is never changed: another
//! one takes its place.

use std::io;
use std::sync::Arc;

use crate::account::Account;
use crate::address::Target;
use crate::counters::PublishError;
use crate::link::{Link, failure};
use crate::spy::Recording;

#[derive(Debug)]
pub(crate) enum Route {
    Link(Link),
    /// No socket was to be had; one is asked for again for each event.
    Unopened(Target, io::ErrorKind),
    /// The bus's name has no address, as far as was known when it was looked up.
    Unknown,
    /// Events go nowhere, by the application's wish.
    Nowhere,
    Spy(Arc<Recording>),
}

impl Route {
    /// A route that is mended later where it cannot be opened now.
    pub(crate) fn to(target: Target) -> Self {
        match Link::open(target.clone()) {
            Ok(link) => Self::Link(link),
            Err(error) => Self::Unopened(target, error.kind()),
        }
    }

    /// Where it leads to, if to a bus whose address is known.
    pub(crate) fn target(&self) -> Option<&Target> {
        match self {
            Self::Link(link) => Some(link.target()),
            Self::Unopened(target, _) => Some(target),
            Self::Unknown | Self::Nowhere | Self::Spy(_) => None,
        }
    }

    /// The same route in a child of this process, with a socket of its own. Nobody
    /// could ask a spy there, and its lock may be held by a thread that is not.
    pub(crate) fn of_child(&self) -> Self {
        match self {
            Self::Unknown => Self::Unknown,
            _ => self.target().cloned().map_or(Self::Nowhere, Self::to),
        }
    }

    #[inline]
    pub(crate) fn send(&self, datagram: &[u8], account: &Account) -> io::Result<()> {
        match self {
            Self::Link(link) => link.send(datagram, account),
            Self::Unopened(_, kind) => Err((*kind).into()),
            Self::Unknown => Err(io::ErrorKind::HostUnreachable.into()),
            Self::Nowhere => Ok(()),
            Self::Spy(recording) => recording.record(datagram),
        }
    }

    /// What an error of a send means for the events in the datagram.
    pub(crate) fn failure(&self, error: &io::Error) -> PublishError {
        match self {
            Self::Link(link) => link.failure(error),
            _ => failure(error),
        }
    }

    /// Whether another socket is to be opened, for the next event.
    pub(crate) fn is_to_be_replaced(&self, error: &io::Error, account: &Account) -> bool {
        match self {
            Self::Link(link) => link.is_to_be_replaced(error, account),
            Self::Unopened(..) | Self::Unknown | Self::Nowhere | Self::Spy(_) => false,
        }
    }
}
