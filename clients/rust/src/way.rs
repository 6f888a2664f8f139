//! Where a publisher's datagrams go: to a bus's socket, to nobody, or to a test.
//!
//! Owns what is done where no socket can be had. A way is never changed: another
//! one takes its place.

use std::io;
use std::sync::Arc;

use crate::address::Target;
use crate::books::Books;
use crate::link::Link;
use crate::spy::Recording;

#[derive(Debug)]
pub(crate) enum Way {
    Link(Link),
    /// No socket was to be had; one is asked for again after each drop.
    Unopened(Target, io::ErrorKind),
    /// The bus's name has no address, as far as was known when it was looked up.
    Unknown,
    /// Events go nowhere, by the application's wish.
    Nowhere,
    Spy(Arc<Recording>),
}

impl Way {
    /// A way that is mended later where it cannot be opened now.
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

    /// The same way in a child of this process, with a socket of its own. Nobody
    /// could ask a spy there, and its lock may be held by a thread that is not.
    pub(crate) fn of_child(&self) -> Self {
        match self {
            Self::Unknown => Self::Unknown,
            _ => self.target().cloned().map_or(Self::Nowhere, Self::to),
        }
    }

    #[inline]
    pub(crate) fn send(&self, datagram: &[u8], books: &Books) -> io::Result<()> {
        match self {
            Self::Link(link) => link.send(datagram, books),
            Self::Unopened(_, kind) => Err((*kind).into()),
            Self::Unknown => Err(io::ErrorKind::HostUnreachable.into()),
            Self::Nowhere => Ok(()),
            Self::Spy(recording) => recording.record(datagram),
        }
    }
}
