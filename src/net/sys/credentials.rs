//! Whom the sender of a datagram over a Unix socket runs as: the kernel's word, which comes beside
//! the datagram as a control message (unix(7), cmsg(3)).
//!
//! There is room for that one message and not a byte more. A sender may attach open files as well,
//! and the kernel would open here as many as there is room for; without any it lets go of them.
//! Credentials come first, so on a socket that tells them nothing else ever has room.

use std::mem;

use crate::bus::address::Credentials;

use super::empty_control;

/// The control message, as cmsg(3) lays it out.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Told {
    header: libc::cmsghdr,
    credentials: libc::ucred,
}

/// Room for the message, in bytes.
pub(super) const ROOM_BYTES: usize = mem::size_of::<Told>();

/// The message's own length, in bytes: without what fills it up.
const LENGTH: usize = mem::offset_of!(Told, credentials) + mem::size_of::<libc::ucred>();

#[expect(clippy::cast_possible_truncation, reason = "12 bytes")]
// SAFETY: it is arithmetic on a small length, and reads no memory.
const SPACE: u32 = unsafe { libc::CMSG_SPACE(mem::size_of::<libc::ucred>() as u32) };
const _: () = assert!(ROOM_BYTES == SPACE as usize);

/// What stands for a user or group that has no number here (user_namespaces(7)), unless the host
/// has been told to take another (`kernel.overflowuid`): then what was sent before the kernel was
/// asked seems to be of that user.
const NOBODY: u32 = 65_534;

/// Whether one of the kernel's lengths, whose type differs from one C library to another, is this.
pub(super) fn is_length(length: impl TryInto<usize>, bytes: usize) -> bool {
    length.try_into().is_ok_and(|length| length == bytes)
}

impl Told {
    /// Nothing told.
    pub(super) fn nothing() -> Self {
        Self {
            header: empty_control(),
            credentials: libc::ucred {
                pid: 0,
                uid: 0,
                gid: 0,
            },
        }
    }

    /// What it tells. Only of a message that fills all of the room.
    pub(super) fn read(&self) -> Option<Credentials> {
        let is_whole = is_length(self.header.cmsg_len, LENGTH);
        let kind = (self.header.cmsg_level, self.header.cmsg_type);
        if !is_whole || kind != (libc::SOL_SOCKET, libc::SCM_CREDENTIALS) {
            return None;
        }
        let libc::ucred { pid, uid, gid } = self.credentials;
        // What was sent before the kernel was asked comes like this, from whomever.
        let is_nobody = (pid, uid, gid) == (0, NOBODY, NOBODY);
        (!is_nobody).then_some(Credentials { uid, gid })
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::fd::AsFd;
    use std::os::unix::net::{UnixDatagram, UnixStream};
    use std::path::Path;

    use rustix::io::Errno;
    use rustix::net::{
        SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, UCred, sendmsg_addr,
    };
    use rustix::process::{getgid, getpid, getuid};

    use super::super::{
        Answer, Ask, RECEIVE_BATCH_MAX, ReceiveRing, ask_for, begin, script, unused,
    };
    use super::*;
    use crate::bus::address::{Peer, Source};

    /// Whom this test runs as.
    fn own() -> Credentials {
        Credentials {
            uid: getuid().as_raw(),
            gid: getgid().as_raw(),
        }
    }

    struct World {
        directory: tempfile::TempDir,
        receiver: UnixDatagram,
        sender: UnixDatagram,
        ring: ReceiveRing,
    }

    impl World {
        fn new() -> Self {
            begin();
            let directory = tempfile::tempdir().unwrap();
            let receiver = UnixDatagram::bind(directory.path().join("receiver")).unwrap();
            Self {
                receiver,
                sender: UnixDatagram::unbound().unwrap(),
                ring: ReceiveRing::new(),
                directory,
            }
        }

        fn path(&self) -> std::path::PathBuf {
            self.directory.path().join("receiver")
        }

        fn ask(&self, ask: Ask) {
            ask_for(ask, self.receiver.as_fd()).unwrap();
        }

        fn send(&self, bytes: &[u8]) {
            self.sender.send_to(bytes, self.path()).unwrap();
        }

        /// All that there is: what was said, and by whom.
        fn receive(&mut self, ask: Ask) -> Vec<(Vec<u8>, Option<Credentials>)> {
            let receiver = self.receiver.as_fd();
            self.ring.receive(receiver, RECEIVE_BATCH_MAX, ask).unwrap();
            let own = self.ring.datagrams().map(|datagram| {
                let Source::Unix { credentials, .. } = datagram.source else {
                    panic!("{datagram:?}");
                };
                (datagram.bytes.to_vec(), credentials)
            });
            own.collect()
        }
    }

    fn send_with(
        socket: &UnixDatagram,
        to: &Path,
        bytes: &[u8],
        beside: SendAncillaryMessage<'_, '_>,
    ) -> Result<usize, Errno> {
        let mut space = [mem::MaybeUninit::uninit(); 64];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(beside));
        let slices = [std::io::IoSlice::new(bytes)];
        let to = SocketAddrUnix::new(to).unwrap();
        sendmsg_addr(socket, &to, &slices, &mut control, SendFlags::empty())
    }

    /// Sends as another user, which root alone may do.
    fn send_as(socket: &UnixDatagram, to: &Path, bytes: &[u8], who: Credentials) {
        let claim = SendAncillaryMessage::ScmCredentials(UCred {
            pid: getpid(),
            uid: rustix::process::Uid::from_raw(who.uid),
            gid: rustix::process::Gid::from_raw(who.gid),
        });
        send_with(socket, to, bytes, claim).unwrap();
    }

    #[test]
    fn a_sender_is_told_where_that_is_asked_and_nowhere_else() {
        let mut world = World::new();
        // In each place, after each other, so that each has held what the other leaves there.
        for _ in 0..2 {
            world.ask(Ask::Source);
            world.send(b"not asked");
            world.send(b"early");
            assert_eq!(
                world.receive(Ask::Source),
                [(b"not asked".to_vec(), None), (b"early".to_vec(), None)]
            );
            world.send(b"early");
            world.ask(Ask::Credentials);
            world.send(b"told");
            world.send(b"");
            assert_eq!(
                world.receive(Ask::Credentials),
                [
                    (b"early".to_vec(), None),
                    (b"told".to_vec(), Some(own())),
                    (b"".to_vec(), Some(own())),
                ]
            );
        }
        world.send(b"told");
        assert_eq!(world.receive(Ask::Source), [(b"told".to_vec(), None)]);
    }

    #[test]
    fn a_named_sender_is_told_with_its_name() {
        let mut world = World::new();
        world.ask(Ask::Credentials);
        let path = world.directory.path().join("sender");
        let named = UnixDatagram::bind(&path).unwrap();
        named.send_to(b"x", world.path()).unwrap();
        let receiver = world.receiver.as_fd();
        assert_eq!(
            world.ring.receive(receiver, 1, Ask::Credentials).unwrap(),
            1
        );
        let source = world.ring.datagrams().next().unwrap().source;
        let expected = Source::Unix {
            path: path.to_str().unwrap().as_bytes(),
            credentials: Some(own()),
        };
        assert_eq!(source, expected);
    }

    #[test]
    fn batches_of_any_size_lend_each_place_its_room() {
        let mut world = World::new();
        world.ask(Ask::Credentials);
        for count in [1, 3, 2, 5, 1, 4] {
            for _ in 0..count {
                world.send(b"x");
            }
            let receiver = world.receiver.as_fd();
            let taken = world.ring.receive(receiver, count, Ask::Credentials);
            assert_eq!(taken.unwrap(), count);
            for datagram in world.ring.datagrams() {
                assert_eq!(datagram.source.peer(), Peer::Unix(Some(own())));
            }
            // Between them the ring serves a socket that is asked for nothing.
            let (other, sender) = UnixDatagram::pair().unwrap();
            sender.send(b"x").unwrap();
            world.ring.receive(other.as_fd(), 1, Ask::Source).unwrap();
            let sources = world
                .ring
                .datagrams()
                .map(|datagram| datagram.source.peer());
            assert_eq!(sources.collect::<Vec<_>>(), [Peer::Unix(None)]);
        }
    }

    #[test]
    #[ignore = "needs root, which may send as anybody"]
    fn senders_of_one_batch_are_told_apart() {
        let mut world = World::new();
        world.ask(Ask::Credentials);
        let path = world.path();
        let all = [
            (1000, 100),
            (0, 0),
            (1001, 100),
            (1000, 4_294_967_294),
            (65_534, 65_534),
        ];
        let all = all.map(|(uid, gid)| Credentials { uid, gid });
        for turn in [all.to_vec(), all.iter().rev().copied().collect()] {
            for who in &turn {
                send_as(&world.sender, &path, b"x", *who);
            }
            let expected: Vec<_> = turn.iter().map(|who| (b"x".to_vec(), Some(*who))).collect();
            assert_eq!(world.receive(Ask::Credentials), expected);
        }
    }

    #[test]
    fn attached_files_are_let_go_of() {
        let mut world = World::new();
        world.ask(Ask::Credentials);
        let path = world.path();
        let (mut kept, attached) = UnixStream::pair().unwrap();
        let files = [attached.as_fd(); 4];
        let rights = SendAncillaryMessage::ScmRights(&files);
        send_with(&world.sender, &path, b"x", rights).unwrap();
        drop(attached);
        assert_eq!(
            world.receive(Ask::Credentials),
            [(b"x".to_vec(), Some(own()))]
        );
        // Its end is told only once nobody has the other side open, this process included.
        kept.set_nonblocking(true).unwrap();
        assert_eq!(kept.read(&mut [0]).unwrap(), 0);
    }

    #[test]
    fn what_is_cut_tells_nothing() {
        let mut world = World::new();
        world.ask(Ask::Credentials);
        for room in 0..LENGTH {
            // A place where the whole message has just stood.
            world.send(b"whole");
            assert_eq!(
                world.receive(Ask::Credentials),
                [(b"whole".to_vec(), Some(own()))]
            );
            world.send(b"cut");
            script([Answer::Cut(room)], []);
            let received = world.receive(Ask::Credentials);
            assert_eq!(unused(), (0, 0));
            assert_eq!(received, [(b"cut".to_vec(), None)], "{room} bytes");
        }
    }

    #[test]
    fn only_credentials_of_somebody_are_read() {
        let told = |level, kind, length: usize, (pid, uid, gid)| {
            let mut told = Told::nothing();
            (told.header.cmsg_level, told.header.cmsg_type) = (level, kind);
            told.header.cmsg_len = length as _;
            told.credentials = libc::ucred { pid, uid, gid };
            told.read()
        };
        let (socket, kind) = (libc::SOL_SOCKET, libc::SCM_CREDENTIALS);
        let somebody = Some(Credentials { uid: 7, gid: 8 });
        assert_eq!(told(socket, kind, LENGTH, (1, 7, 8)), somebody);
        // Of a process that this one cannot see, as in another container.
        assert_eq!(told(socket, kind, LENGTH, (0, 7, 8)), somebody);
        assert!(told(socket, kind, LENGTH, (1, NOBODY, NOBODY)).is_some());
        assert!(told(socket, kind, LENGTH, (0, NOBODY, 8)).is_some());
        assert_eq!(told(socket, kind, LENGTH, (0, NOBODY, NOBODY)), None);
        assert_eq!(told(socket, libc::SCM_RIGHTS, LENGTH, (1, 7, 8)), None);
        assert_eq!(told(libc::IPPROTO_IP, kind, LENGTH, (1, 7, 8)), None);
        for length in [0, LENGTH - 1, LENGTH + 1, ROOM_BYTES + 1, usize::MAX] {
            assert_eq!(told(socket, kind, length, (1, 7, 8)), None, "{length}");
        }
        assert_eq!(Told::nothing().read(), None);
    }
}
