//! The bus of the fault cases: what it says, and the sockets that it says it at.
//!
//! Its ids, cookies and payloads are told and not random, so that a case can name a
//! byte of a datagram. The other clients' runners have the same one.

use std::fs;
use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::symlink;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixDatagram};
use std::path::PathBuf;

use hailmary_client::Address;
use hailmary_proto::v1;
use hailmary_proto::v1::frame::Control;
use hailmary_proto::v1::refusal::Reason;
use prost::Message;
use serde::Deserialize;
use socket2::SockRef;

use crate::common::{SocketPath, control_frame};

/// The first run of a bus; each later one has the next number.
pub(crate) const FIRST_ID: u64 = 7277;

pub(crate) const LEASE_MS: u32 = 30_000;

/// What becomes of a datagram on its way.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "snake_case", untagged)]
pub(crate) enum Way {
    #[default]
    Straight,
    Named(Fate),
    Cut {
        keep: usize,
    },
    Changed {
        xor: u8,
        /// From the end, if negative.
        at: isize,
    },
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Fate {
    Lost,
    Doubled,
    Held,
}

impl Way {
    /// The datagrams that arrive of one.
    pub(crate) fn take(&self, mut datagram: Vec<u8>) -> Vec<Vec<u8>> {
        match *self {
            Self::Named(Fate::Lost | Fate::Held) => return vec![],
            Self::Named(Fate::Doubled) => return vec![datagram.clone(), datagram],
            Self::Straight => {}
            Self::Cut { keep } => datagram.truncate(keep),
            Self::Changed { xor, at } => {
                let from_end = datagram.len().wrapping_add_signed(at);
                let place = usize::try_from(at).unwrap_or(from_end);
                datagram[place] ^= xor;
            }
        }
        vec![datagram]
    }
}

/// What one run of a bus answers and sends. It opens no socket.
#[derive(Debug)]
pub(crate) struct Script {
    pub(crate) id: u64,
    pub(crate) lease_ms: u32,
    pub(crate) refusal: Option<Reason>,
    pub(crate) reports: Vec<v1::Report>,
    pub(crate) has_granted: bool,
    sequence: u64,
    dropped: u64,
    leases: u64,
}

impl Script {
    pub(crate) fn new(id: u64) -> Self {
        Self {
            id,
            lease_ms: LEASE_MS,
            refusal: None,
            reports: vec![],
            has_granted: false,
            sequence: 0,
            dropped: 0,
            leases: 0,
        }
    }

    /// A challenge, a lease, a refusal; nothing to who leaves.
    pub(crate) fn answer(&mut self, request: &v1::Frame) -> Option<Vec<u8>> {
        let Some(Control::Subscribe(asked)) = &request.control else {
            return None;
        };
        self.reports.extend(asked.report);
        let nonce = asked.nonce;
        let mut stamp = None;
        let control = if let Some(reason) = self.refusal {
            let reason = reason.into();
            Control::Refusal(v1::Refusal { reason, nonce })
        } else if [self.cookie("lease"), self.cookie("prove")].contains(&asked.cookie) {
            self.has_granted = true;
            stamp = Some(self.stamp());
            Control::Lease(v1::Lease {
                bus: self.id,
                lease_ms: self.lease_ms,
                cookie: self.cookie("lease"),
                nonce,
            })
        } else {
            let cookie = self.cookie("prove");
            Control::Challenge(v1::Challenge { cookie, nonce })
        };
        let answer = v1::Frame {
            stamp,
            ..control_frame(control)
        };
        Some(answer.encode_to_vec())
    }

    /// A frame of so many events.
    pub(crate) fn events(&mut self, count: u64) -> Vec<u8> {
        let event = |at: u64| v1::Event {
            topic: "a.b".to_owned(),
            payload: ((self.sequence + at) % 10).to_string().into_bytes(),
            ..v1::Event::default()
        };
        let frame = v1::Frame {
            events: (0..count).map(event).collect(),
            stamp: Some(self.stamp()),
            ..v1::Frame::default()
        };
        self.sequence += count;
        frame.encode_to_vec()
    }

    /// Drops so many itself.
    pub(crate) fn drop_events(&mut self, events: u64) {
        self.sequence += events;
        self.dropped += events;
    }

    /// Its side of the lease has ended: it knows no subscriber and no cookie, and the
    /// next lease has a flow of its own.
    pub(crate) fn forget(&mut self) {
        self.leases += 1;
        (self.sequence, self.dropped) = (0, 0);
    }

    fn cookie(&self, kind: &str) -> Vec<u8> {
        format!("{kind} {} {}", self.id, self.leases).into_bytes()
    }

    fn stamp(&self) -> v1::Stamp {
        v1::Stamp {
            sender: self.id,
            sequence: self.sequence,
            dropped: self.dropped,
            ..v1::Stamp::default()
        }
    }
}

/// What a subscriber says by a request: by the cookie that it carries.
pub(crate) fn kind_of(request: &v1::Frame) -> &'static str {
    match &request.control {
        Some(Control::Unsubscribe(_)) => "leave",
        Some(Control::Subscribe(asked)) if asked.cookie.is_empty() => "ask",
        Some(Control::Subscribe(asked)) if asked.cookie.starts_with(b"prove ") => "prove",
        Some(Control::Subscribe(asked)) if asked.cookie.starts_with(b"lease ") => "renew",
        other => panic!("no subscriber says {other:?}"),
    }
}

/// A datagram of somebody who knows neither the bus's id nor the nonce.
pub(crate) fn stranger_says(what: &str, id: u64) -> Vec<u8> {
    let control = match what {
        "events" => return Script::new(id + 1000).events(2),
        "garbage" => return vec![0xff],
        "lease" => Control::Lease(v1::Lease {
            bus: id,
            lease_ms: 1,
            cookie: b"c".to_vec(),
            nonce: 2,
        }),
        "refusal" => Control::Refusal(v1::Refusal {
            reason: Reason::NotAllowed.into(),
            nonce: 2,
        }),
        other => panic!("no stranger sends {other}"),
    };
    control_frame(control).encode_to_vec()
}

#[derive(Debug)]
enum Socket {
    Udp(UdpSocket),
    Unix(UnixDatagram),
}

/// Who sent a datagram.
#[derive(Clone, Debug)]
pub(crate) enum Client {
    Udp(SocketAddr),
    Unix(UnixAddr),
}

impl Socket {
    fn receive(&self, buffer: &mut [u8]) -> std::io::Result<(usize, Client)> {
        match self {
            Self::Udp(socket) => {
                let (bytes, from) = socket.recv_from(buffer)?;
                Ok((bytes, Client::Udp(from)))
            }
            Self::Unix(socket) => {
                let (bytes, from) = socket.recv_from(buffer)?;
                Ok((bytes, Client::Unix(from)))
            }
        }
    }

    fn send(&self, datagram: &[u8], to: &Client) {
        match (self, to) {
            (Self::Udp(socket), Client::Udp(to)) => socket.send_to(datagram, to),
            (Self::Unix(socket), Client::Unix(to)) => socket.send_to_addr(datagram, to),
            _ => panic!("{to:?} is of another family"),
        }
        .unwrap();
    }
}

/// Where a bus is: at a UDP port, or at a path that is a link to its socket. It may be
/// there or not, and clients have one address all the while.
pub(crate) struct Sockets {
    /// Where the link is; none over UDP.
    link: Option<SocketPath>,
    port: u16,
    moves: u32,
    ingress: Option<Socket>,
    egress: Socket,
}

impl Sockets {
    pub(crate) fn new(over: &str) -> Self {
        let (link, egress) = match over {
            "udp" => (None, Socket::Udp(UdpSocket::bind("127.0.0.1:0").unwrap())),
            "unix" => {
                let egress = UnixDatagram::unbound().unwrap();
                egress.set_nonblocking(true).unwrap();
                (Some(SocketPath::new("faults")), Socket::Unix(egress))
            }
            other => panic!("no such transport: {other}"),
        };
        Self {
            link,
            port: free_port(),
            moves: 0,
            ingress: None,
            egress,
        }
    }

    /// As a client's argument.
    pub(crate) fn address(&self) -> Address {
        match &self.link {
            Some(link) => link.address(),
            None => format!("127.0.0.1:{}", self.port).parse().unwrap(),
        }
    }

    /// The descriptor of the socket that it listens at.
    pub(crate) fn descriptor(&self) -> Option<RawFd> {
        self.ingress.as_ref().map(|socket| match socket {
            Socket::Udp(socket) => socket.as_raw_fd(),
            Socket::Unix(socket) => socket.as_raw_fd(),
        })
    }

    /// Listens at the address.
    pub(crate) fn start(&mut self) {
        self.ingress = Some(match &self.link {
            None => {
                let socket = UdpSocket::bind(("127.0.0.1", self.port)).unwrap();
                socket.set_nonblocking(true).unwrap();
                Socket::Udp(socket)
            }
            Some(link) => {
                let socket = UnixDatagram::bind(self.path()).unwrap();
                socket.set_nonblocking(true).unwrap();
                let new = link.path().with_file_name("new");
                symlink(self.path(), &new).unwrap();
                fs::rename(new, link.path()).unwrap();
                Socket::Unix(socket)
            }
        });
    }

    /// Is gone, and its path is not.
    pub(crate) fn kill(&mut self) {
        self.ingress = None;
    }

    /// Is gone, and its path with it.
    pub(crate) fn stop(&mut self) {
        self.kill();
        if self.link.is_some() {
            fs::remove_file(self.path()).unwrap();
        }
    }

    /// Listens elsewhere. A link leads there; a port tells nobody.
    pub(crate) fn relocate(&mut self) {
        self.stop();
        self.moves += 1;
        if self.link.is_some() {
            self.start();
        }
    }

    /// Its queue takes no more, to the last place.
    pub(crate) fn fill(&self) {
        match (self.ingress.as_ref().unwrap(), &self.egress) {
            (Socket::Udp(ingress), Socket::Udp(egress)) => {
                SockRef::from(ingress).set_recv_buffer_size(1).unwrap();
                for filler in fillers() {
                    for _ in 0..50 {
                        egress.send_to(&filler, ("127.0.0.1", self.port)).unwrap();
                    }
                }
            }
            (_, Socket::Unix(egress)) => {
                while egress.send_to(&fillers()[1], self.path()).is_ok() {}
            }
            other => panic!("{other:?} are of two families"),
        }
    }

    /// The next frame in its queue and who sent it, if there is one.
    pub(crate) fn read(&self) -> Option<(v1::Frame, Client)> {
        let mut buffer = vec![0; 65_536];
        loop {
            match self.ingress.as_ref()?.receive(&mut buffer) {
                Ok((bytes, _)) if fillers().iter().any(|filler| *filler == buffer[..bytes]) => {}
                Ok((bytes, from)) => {
                    return Some((v1::Frame::decode(&buffer[..bytes]).unwrap(), from));
                }
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::WouldBlock);
                    return None;
                }
            }
        }
    }

    /// Sends from the address that it listens at.
    pub(crate) fn answer(&self, datagram: &[u8], to: &Client) {
        self.ingress.as_ref().unwrap().send(datagram, to);
    }

    /// Sends from elsewhere, as a bus does its events.
    pub(crate) fn send(&self, datagram: &[u8], to: &Client) {
        self.egress.send(datagram, to);
    }

    fn path(&self) -> PathBuf {
        let link = self.link.as_ref().unwrap().path();
        link.with_file_name(format!("socket-{}", self.moves))
    }
}

fn free_port() -> u16 {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.local_addr().unwrap().port()
}

/// What fills a bus's queue, and is no publisher's.
fn fillers() -> [Vec<u8>; 2] {
    [1000, 1].map(|bytes| {
        let padding = vec![0; bytes];
        let frame = v1::Frame {
            padding,
            ..v1::Frame::default()
        };
        frame.encode_to_vec()
    })
}
