//! The kernel's account of a listener's sockets: what waits in their buffers, and what it dropped
//! for want of room.
//!
//! Read by the data threads while traffic flows, at each scrape, and when all is over: a socket
//! with a count of 32 bits must be read before it has gone all the way round.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::sys::{self, SocketMemory};

/// What one reading of several sockets says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// What waiting datagrams are charged, in bytes.
    pub used_bytes: u32,
    /// How far that may go, in bytes.
    pub size_bytes: u32,
    /// Datagrams dropped since the sockets were opened.
    pub drops: u64,
}

/// Second handles of the sockets of one listener, one for each data thread that listens there.
/// When the listener closes they are let go, and what was counted stays.
#[derive(Debug)]
pub struct Account(Mutex<Books>);

#[derive(Debug)]
struct Books {
    sockets: Vec<Socket>,
    /// What closed sockets dropped. None where the system does not tell.
    past_drops: Option<u64>,
}

#[derive(Debug)]
struct Socket {
    handle: OwnedFd,
    drops: Drops,
}

/// The kernel's count, which wraps, made one that does not. Both begin at 0 with the socket.
#[derive(Debug, Default)]
struct Drops {
    last: u32,
    total: u64,
}

impl Drops {
    fn read(&mut self, drops: u32) -> u64 {
        self.total += u64::from(drops.wrapping_sub(self.last));
        self.last = drops;
        self.total
    }
}

impl Socket {
    fn open(handle: OwnedFd) -> Self {
        let drops = Drops::default();
        Self { handle, drops }
    }
}

impl Books {
    fn read(&mut self) -> Option<Reading> {
        let past = Reading {
            drops: self.past_drops?,
            ..Reading::default()
        };
        self.sockets.iter_mut().try_fold(past, |sum, socket| {
            let SocketMemory {
                receive_used_bytes,
                receive_buffer_bytes,
                drops,
            } = sys::socket_memory(socket.handle.as_fd())?;
            Some(Reading {
                used_bytes: sum.used_bytes.saturating_add(receive_used_bytes),
                size_bytes: sum.size_bytes.saturating_add(receive_buffer_bytes),
                drops: sum.drops + socket.drops.read(drops),
            })
        })
    }
}

impl Account {
    /// Of sockets that were bound for this: what they have dropped since then is counted.
    pub fn open(handles: impl IntoIterator<Item = OwnedFd>) -> Self {
        Self(Mutex::new(Books {
            sockets: handles.into_iter().map(Socket::open).collect(),
            past_drops: Some(0),
        }))
    }

    /// Goes on with other sockets.
    pub fn reopen(&self, handles: impl IntoIterator<Item = OwnedFd>) {
        let mut books = self.books();
        books.sockets.extend(handles.into_iter().map(Socket::open));
    }

    /// Reads a last time and lets the sockets go.
    pub fn close(&self) {
        let mut books = self.books();
        books.past_drops = books.read().map(|reading| reading.drops);
        books.sockets.clear();
    }

    /// How many sockets there are.
    #[must_use]
    pub fn sockets(&self) -> usize {
        self.books().sockets.len()
    }

    /// The numbers of the sockets, by which the kernel's lists name them. None that cannot be had.
    #[must_use]
    pub fn inodes(&self) -> Vec<u64> {
        let inode = |socket: &Socket| {
            let socket = File::from(socket.handle.try_clone()?);
            socket.metadata().map(|metadata| metadata.ino())
        };
        let books = self.books();
        let inodes = books.sockets.iter().map(inode);
        inodes.filter_map(io::Result::ok).collect()
    }

    /// All sockets together, where the system keeps such an account.
    pub fn read(&self) -> Option<Reading> {
        self.books().read()
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        // Counts are whole whatever happened to the thread that wrote them.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    #[test]
    fn a_count_that_wraps_goes_on() {
        let mut drops = Drops {
            last: u32::MAX - 1,
            total: 0,
        };
        assert_eq!([u32::MAX, 3, 3].map(|now| drops.read(now)), [1, 5, 5]);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn all_that_a_socket_ever_dropped_is_counted() {
        let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket2::SockRef::from(&receiver)
            .set_recv_buffer_size(1)
            .unwrap();
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        sender.connect(receiver.local_addr().unwrap()).unwrap();
        let dropped = || sys::socket_memory(receiver.as_fd()).unwrap().drops;
        let overflow = || {
            let before = dropped();
            while dropped() == before {
                sender.send(&[0; 512]).unwrap();
            }
        };
        overflow();
        let account = Account::open([receiver.try_clone().unwrap().into()]);
        let before = account.read().unwrap().drops;
        assert_eq!(before, u64::from(dropped()), "also before it was opened");
        overflow();
        let reading = account.read().unwrap();
        assert!(reading.drops > before);
        assert_eq!(reading.drops, u64::from(dropped()));
        assert!(reading.used_bytes > 0 && reading.size_bytes > 0);

        account.close();
        let closed = Reading {
            drops: reading.drops,
            ..Reading::default()
        };
        assert_eq!((account.read(), account.sockets()), (Some(closed), 0));
        let next = UdpSocket::bind("127.0.0.1:0").unwrap();
        account.reopen([next.into()]);
        let all = account.read().unwrap().drops;
        assert_eq!(all, reading.drops, "counts go on");
    }
}
