//! A way between one client and a bus that can lose, double and reorder frames.

use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use hailmary_proto::v1::Frame;
use prost::Message;

/// How long one wait for a datagram lasts before it is looked whether all is over.
const LOOK: Duration = Duration::from_millis(10);

/// One direction of a way, and what became of the events on it.
#[derive(Default)]
pub struct Lane {
    is_rough: AtomicBool,
    taken: AtomicU64,
    lost: AtomicU64,
    doubled: AtomicU64,
}

impl Lane {
    /// From now on frames of events get lost, doubled and out of order, or no longer.
    pub fn set_rough(&self, is_rough: bool) {
        self.is_rough.store(is_rough, Ordering::Relaxed);
    }

    /// Events that came to it.
    pub fn taken(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }

    /// Those of them that it lost.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// Those of them that it passed on twice.
    pub fn doubled(&self) -> u64 {
        self.doubled.load(Ordering::Relaxed)
    }
}

/// Both directions, and the threads that pass datagrams on.
pub struct Way {
    /// Where the client finds the bus.
    pub near: SocketAddr,
    /// From the client to the bus.
    pub there: Arc<Lane>,
    /// From the bus to the client.
    pub back: Arc<Lane>,
    is_over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Way {
    /// A smooth one, for the client that speaks last.
    pub fn to(bus: SocketAddr) -> Self {
        let open = || {
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            socket.set_read_timeout(Some(LOOK)).unwrap();
            Arc::new(socket)
        };
        let (near, far) = (open(), open());
        let client = Arc::new(Mutex::new(None));
        let is_over = Arc::new(AtomicBool::new(false));
        let (there, back) = (Arc::new(Lane::default()), Arc::new(Lane::default()));
        let address = near.local_addr().unwrap();
        let pass_there = {
            let (near, far, client) = (near.clone(), far.clone(), client.clone());
            let note = move |from| *client.lock().unwrap() = Some(from);
            let send = move |datagram: &[u8]| far.send_to(datagram, bus).map(drop);
            passing(near, &there, &is_over, note, send)
        };
        let pass_back = {
            let send = move |datagram: &[u8]| {
                let to = client.lock().unwrap().unwrap();
                near.send_to(datagram, to).map(drop)
            };
            passing(far, &back, &is_over, |_| (), send)
        };
        Self {
            near: address,
            there,
            back,
            is_over,
            threads: vec![pass_there, pass_back],
        }
    }
}

impl Drop for Way {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let ended = thread.join();
            assert!(ended.is_ok() || std::thread::panicking());
        }
    }
}

/// Passes datagrams on, each after `note` was told its source.
fn passing(
    from: Arc<UdpSocket>,
    lane: &Arc<Lane>,
    is_over: &Arc<AtomicBool>,
    note: impl Fn(SocketAddr) + Send + 'static,
    send: impl Fn(&[u8]) -> std::io::Result<()> + Send + 'static,
) -> JoinHandle<()> {
    let (lane, is_over) = (lane.clone(), is_over.clone());
    std::thread::spawn(move || {
        let mut buffer = vec![0; 65_536];
        let mut fates = Fates::default();
        while !is_over.load(Ordering::Relaxed) {
            let passed = match from.recv_from(&mut buffer) {
                Ok((length, source)) => {
                    note(source);
                    fates.take(&buffer[..length], &lane)
                }
                Err(_) => fates.rest(),
            };
            for datagram in passed {
                // Where nobody is it is refused, now or the next time, and lost.
                let _ = send(&datagram);
            }
        }
    })
}

#[derive(Default)]
struct Fates {
    frames: usize,
    held: Vec<Vec<u8>>,
}

impl Fates {
    /// What arrives now that this was sent: every eighth frame is lost, another one doubled, and
    /// some come later than the next ones.
    fn take(&mut self, datagram: &[u8], lane: &Lane) -> Vec<Vec<u8>> {
        let events = Frame::decode(datagram).unwrap().events.len() as u64;
        let own = || datagram.to_vec();
        let passed = self.pass(own, events, lane);
        // Last, so that whoever sees it taken sees what became of it.
        lane.taken.fetch_add(events, Ordering::Release);
        passed
    }

    fn pass(&mut self, own: impl Fn() -> Vec<u8>, events: u64, lane: &Lane) -> Vec<Vec<u8>> {
        if !lane.is_rough.load(Ordering::Relaxed) {
            let mut all = self.rest();
            all.push(own());
            return all;
        }
        if events == 0 {
            return vec![own()];
        }
        self.frames += 1;
        match self.frames % 8 {
            1 => {
                lane.lost.fetch_add(events, Ordering::Relaxed);
                Vec::new()
            }
            2 => {
                lane.doubled.fetch_add(events, Ordering::Relaxed);
                self.held.push(own());
                vec![own()]
            }
            3 | 4 => {
                self.held.push(own());
                Vec::new()
            }
            5 => vec![own()],
            _ => {
                let late = self.rest().into_iter().rev();
                [own()].into_iter().chain(late).collect()
            }
        }
    }

    /// What is still to come late.
    fn rest(&mut self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.held)
    }
}
