//! The other end of a client's socket, played by a test: it reads frames and
//! answers them as it is told.
#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test program uses a part of it"
)]

use std::net::{SocketAddr, UdpSocket};
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::time::Duration;

use hailmary_client::Address;
use hailmary_proto::v1;
use hailmary_proto::v1::frame::Control;
use prost::Message;

/// How long to wait for what must come: long, as a busy machine is slow.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A UDP socket in the place of a bus.
pub struct StandIn {
    socket: UdpSocket,
}

impl StandIn {
    pub fn open() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { socket }
    }

    pub fn address(&self) -> Address {
        self.socket
            .local_addr()
            .unwrap()
            .to_string()
            .parse()
            .unwrap()
    }

    pub fn receive_bytes(&self) -> Vec<u8> {
        let mut buffer = vec![0; 65_536];
        let bytes = self.socket.recv(&mut buffer).unwrap();
        buffer.truncate(bytes);
        buffer
    }

    pub fn receive(&self) -> (v1::Frame, SocketAddr) {
        let mut buffer = vec![0; 65_536];
        let (bytes, from) = self.socket.recv_from(&mut buffer).unwrap();
        (v1::Frame::decode(&buffer[..bytes]).unwrap(), from)
    }

    /// Whether nothing waits to be read.
    pub fn is_empty(&self) -> bool {
        self.socket.set_nonblocking(true).unwrap();
        let is_empty = self.socket.peek(&mut [0]).is_err();
        self.socket.set_nonblocking(false).unwrap();
        is_empty
    }

    pub fn receive_subscribe(&self) -> (v1::Subscribe, SocketAddr) {
        match self.receive() {
            (
                v1::Frame {
                    control: Some(Control::Subscribe(request)),
                    ..
                },
                from,
            ) => (request, from),
            other => panic!("{other:?}"),
        }
    }

    /// The next request with a cookie. Before a lease is granted a slow machine may have
    /// asked again without.
    pub fn receive_renewal(&self) -> v1::Subscribe {
        loop {
            let (request, _) = self.receive_subscribe();
            if !request.cookie.is_empty() {
                return request;
            }
        }
    }

    pub fn send(&self, frame: &v1::Frame, to: SocketAddr) {
        self.socket.send_to(&frame.encode_to_vec(), to).unwrap();
    }

    pub fn answer(&self, control: Control, to: SocketAddr) {
        self.send(&control_frame(control), to);
    }

    pub fn grant(&self, nonce: u64, to: SocketAddr) {
        self.answer(lease(nonce), to);
    }
}

pub const BUS: u64 = 77;

pub fn control_frame(control: Control) -> v1::Frame {
    v1::Frame {
        control: Some(control),
        ..v1::Frame::default()
    }
}

pub fn lease(nonce: u64) -> Control {
    let cookie = b"lease".to_vec();
    Control::Lease(v1::Lease {
        bus: BUS,
        lease_ms: 30_000,
        cookie,
        nonce,
    })
}

/// A frame of the stand-in's with events of these payloads.
pub fn events(sequence: u64, payloads: &[&str]) -> v1::Frame {
    let event = |payload: &&str| v1::Event {
        topic: "a.b".to_owned(),
        payload: payload.as_bytes().to_vec(),
        key: b"k".to_vec(),
        time_unix_nano: 5,
        attributes: [("n".to_owned(), "v".to_owned())].into(),
    };
    v1::Frame {
        events: payloads.iter().map(event).collect(),
        stamp: Some(v1::Stamp {
            sender: BUS,
            sequence,
            ..v1::Stamp::default()
        }),
        ..v1::Frame::default()
    }
}

/// A path for a Unix socket in a directory that goes with this value.
pub struct SocketPath {
    directory: PathBuf,
}

impl SocketPath {
    pub fn new(test: &str) -> Self {
        let name = format!("hailmary-test-{}-{test}", std::process::id());
        let directory = std::env::temp_dir().join(name);
        std::fs::create_dir(&directory).unwrap();
        Self { directory }
    }

    pub fn path(&self) -> PathBuf {
        self.directory.join("bus.sock")
    }

    pub fn address(&self) -> Address {
        Address::Unix(self.path())
    }

    pub fn bind(&self) -> UnixDatagram {
        let socket = UnixDatagram::bind(self.path()).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket
    }
}

impl Drop for SocketPath {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

pub fn receive_unix(socket: &UnixDatagram) -> v1::Frame {
    let mut buffer = vec![0; 65_536];
    let bytes = socket.recv(&mut buffer).unwrap();
    v1::Frame::decode(&buffer[..bytes]).unwrap()
}
