//! A subscription as applications have it, at a bus with sockets.

use std::collections::BTreeSet;
use std::os::fd::RawFd;
use std::time::{Duration, Instant};

use hailmary_client::{RecvError, Subscriber, SubscriberStats};

use crate::bus::{Client, Script, Sockets};
use crate::common::PATIENCE;
use crate::process;
use crate::subscriber::{Driver, NamedCounts, counts_of};

/// How long the subscriber may wait before this thread is the bus again.
const TURN: Duration = Duration::from_millis(5);

pub(crate) struct SocketDriver {
    /// What was open before the subscriber was.
    others: BTreeSet<RawFd>,
    sockets: Sockets,
    subscriber: Option<Subscriber>,
    /// Of one that is closed.
    last: SubscriberStats,
    client: Option<Client>,
    /// The runs of the bus that granted a lease.
    runs: BTreeSet<u64>,
}

impl SocketDriver {
    pub(crate) fn new(over: &str) -> Self {
        Self {
            sockets: Sockets::new(over),
            others: process::open_sockets(),
            subscriber: None,
            last: SubscriberStats::default(),
            client: None,
            runs: BTreeSet::new(),
        }
    }

    fn stats(&self) -> SubscriberStats {
        self.subscriber
            .as_ref()
            .map_or(self.last, Subscriber::stats)
    }

    /// Takes what is there, and renews what is due.
    fn receive(&mut self) {
        let subscriber = self.subscriber.as_mut().unwrap();
        while subscriber.recv_timeout(TURN).unwrap().is_some() {}
    }

    fn answer(&mut self, bus: &mut Script) {
        while let Some((request, from)) = self.sockets.read() {
            if let Some(answer) = bus.answer(&request) {
                self.sockets.answer(&answer, &from);
            }
            self.client = Some(from);
        }
    }
}

impl Driver for SocketDriver {
    fn subscribe(&mut self) {
        let address = self.sockets.address();
        let open = || Subscriber::builder(&address).pattern(">").open().unwrap();
        self.subscriber.get_or_insert_with(open);
    }

    fn start(&mut self) {
        self.sockets.start();
    }

    fn stop(&mut self) {
        self.sockets.stop();
    }

    fn relocate(&mut self) {
        self.sockets.relocate();
    }

    fn await_lease(&mut self, bus: &mut Script) {
        self.runs.insert(bus.id);
        let began = Instant::now();
        loop {
            self.answer(bus);
            self.receive();
            let subscriber = self.subscriber.as_ref().unwrap();
            let runs = subscriber.stats().bus_restarts + 1;
            let is_of_this_run = bus.has_granted && runs == self.runs.len() as u64;
            if is_of_this_run && subscriber.is_subscribed() {
                return;
            }
            assert!(began.elapsed() < PATIENCE, "no lease");
        }
    }

    /// Each datagram of a case changes a count.
    fn deliver(&mut self, datagram: &[u8]) {
        let (before, began) = (self.stats(), Instant::now());
        self.sockets.send(datagram, self.client.as_ref().unwrap());
        while self.stats() == before {
            self.receive();
            assert!(began.elapsed() < PATIENCE, "it takes no note of it");
        }
    }

    fn pass_time(&mut self, _ms: u64, _bus: &mut Script) {
        panic!("no test waits by the real clock");
    }

    fn jump(&mut self, _ms: i64) {
        panic!("no test sets the real clock");
    }

    fn close(&mut self) {
        self.last = self.subscriber.take().unwrap().close();
    }

    fn close_descriptor(&mut self) {
        let ours = self.sockets.descriptor();
        let mut opened = process::open_sockets();
        opened.retain(|&one| !self.others.contains(&one) && Some(one) != ours);
        assert_eq!(opened.len(), 1);
        process::close(opened.pop_first().unwrap());
    }

    fn receive_fails(&mut self) {
        let outcome = self.subscriber.as_mut().unwrap().recv_timeout(PATIENCE);
        assert!(matches!(outcome, Err(RecvError::Io(_))), "{outcome:?}");
    }

    fn counts(&self) -> NamedCounts {
        counts_of(&self.stats())
    }

    fn requests(&self) -> Option<&[&'static str]> {
        None
    }
}
