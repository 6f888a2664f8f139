//! A subscription beside its socket: what blocking and async subscribers share.
//!
//! Owns the loop's parts around [`Subscription`](crate::lease::Subscription), which
//! decides what is said and believed: clock, buffer, the events not handed out yet,
//! and the losses not told yet. It sends, which never waits; waiting and receiving are
//! its drivers'.

use std::collections::VecDeque;
use std::io;
use std::time::{Duration, Instant};

use hailmary_proto::decode::Decoder;
use hailmary_proto::write::DATAGRAM_BYTES_MAX;

use crate::address::Target;
use crate::descriptor::is_lost;
use crate::endpoint::{Arrival, BUFFER_BYTES, Endpoint};
use crate::flow::FlowCounts;
use crate::fork;
use crate::lease::{LeaseState, Refusal, Subscription, Verdict};
use crate::log::SubscriberLog;
use crate::received::{
    Item, Loss, ReceivedEvent, ReceivedFrame, RecvError, SubscribeError, SubscriberStats,
};
use crate::search::Search;

/// What one turn of the loop brought.
pub(crate) enum Turn<R> {
    Events(R),
    /// A datagram without events for the application.
    Other,
    Silence,
}

#[derive(Debug)]
pub(crate) struct Session {
    subscription: Subscription,
    search: Search,
    /// What the subscription's times are counted from.
    began: Instant,
    /// The process that subscribed.
    generation: usize,
    receive_buffer_bytes: usize,
    decoder: Decoder,
    buffer: Vec<u8>,
    /// Events of a frame that was received and not handed out wholly.
    queue: VecDeque<ReceivedEvent>,
    /// The losses that notices have told of.
    told: FlowCounts,
    /// Why the newest request was not sent.
    unsent: Option<io::ErrorKind>,
    log: SubscriberLog,
}

impl Session {
    pub(crate) fn new(
        subscription: Subscription,
        search: Search,
        receive_buffer_bytes: usize,
    ) -> Self {
        Self {
            subscription,
            search,
            began: Instant::now(),
            generation: fork::generation(),
            receive_buffer_bytes,
            decoder: Decoder::new(),
            buffer: vec![0; BUFFER_BYTES],
            queue: VecDeque::new(),
            told: FlowCounts::default(),
            unsent: None,
            log: SubscriberLog::new(),
        }
    }

    pub(crate) fn now(&self) -> Duration {
        self.began.elapsed()
    }

    /// What a datagram is to be received into.
    pub(crate) fn buffer(&mut self) -> &mut [u8] {
        &mut self.buffer
    }

    /// A socket towards the bus's new address, once the bus is lost and another one
    /// is known. Where none can be opened, all stays as it is. To be followed by
    /// [`go_to`](Self::go_to).
    pub(crate) fn look_for_bus(&mut self) -> Option<(Target, Endpoint)> {
        let now = self.now();
        let is_lost = self.is_of_this_process() && self.subscription.state() == LeaseState::Asking;
        let silent_since = is_lost.then(|| self.subscription.heard_at());
        let target = self.search.poll(now, silent_since)?;
        let endpoint = Endpoint::open(&target, self.receive_buffer_bytes).ok()?;
        Some((target, endpoint))
    }

    /// The bus is looked for there from now on.
    pub(crate) fn go_to(&mut self, target: Target) {
        self.search.go_to(target);
    }

    /// A socket to go on by, where the error says that something else in the process
    /// closed the present one. To be followed by [`rebind`](Self::rebind).
    pub(crate) fn replacement(&self, error: &io::Error) -> Option<Endpoint> {
        let open = || Endpoint::open(self.search.target(), self.receive_buffer_bytes);
        is_lost(error).then(|| open().ok()).flatten()
    }

    /// Asks at once for a lease for another socket than before.
    pub(crate) fn rebind(&mut self) {
        let now = self.now();
        self.subscription.rebind(now);
    }

    /// Sends what is due, and says how long to wait for a datagram: till the deadline
    /// or the next request, whichever comes first.
    pub(crate) fn begin_turn(
        &mut self,
        endpoint: &Endpoint,
        deadline: Option<Duration>,
    ) -> Result<Duration, RecvError> {
        self.check_process()?;
        self.transmit(endpoint);
        if let LeaseState::Refused(reason) = self.subscription.state() {
            return Err(reason.into());
        }
        let now = self.now();
        let due = self.subscription.poll_timeout();
        let until = [due, deadline].into_iter().flatten().min();
        Ok(until.unwrap_or(now).saturating_sub(now))
    }

    /// Whether there are events to be handed out. Sends what is due in between: a
    /// frame may hold enough to outlast the lease.
    pub(crate) fn has_queued(&mut self, endpoint: &Endpoint) -> Result<bool, RecvError> {
        self.check_process()?;
        let has_queued = !self.queue.is_empty();
        if has_queued {
            self.transmit(endpoint);
        }
        Ok(has_queued)
    }

    /// Parent and child would read each other's events from the one socket.
    fn check_process(&self) -> Result<(), RecvError> {
        match self.is_of_this_process() {
            true => Ok(()),
            false => Err(RecvError::Forked),
        }
    }

    fn is_of_this_process(&self) -> bool {
        self.generation == fork::generation()
    }

    pub(crate) fn pop_event(&mut self) -> Option<ReceivedEvent> {
        self.queue.pop_front()
    }

    /// A loss that is known goes before the next event.
    pub(crate) fn pop_item(&mut self) -> Option<Item> {
        let loss = self.take_loss().map(Item::Loss);
        loss.or_else(|| self.queue.pop_front().map(Item::Event))
    }

    pub(crate) fn knows_of_loss(&self) -> bool {
        let total = self.subscription.counts().flow;
        (total.lost, total.dropped) != (self.told.lost, self.told.dropped)
    }

    pub(crate) fn take_loss(&mut self) -> Option<Loss> {
        let total = self.subscription.counts().flow;
        let news = total.since(self.told);
        let loss = Loss {
            lost: news.lost,
            dropped_by_bus: news.dropped,
        };
        self.told = total;
        (loss.events() > 0).then_some(loss)
    }

    pub(crate) fn is_subscribed(&self) -> bool {
        self.subscription.state() == LeaseState::Held
    }

    pub(crate) fn refusal(&self) -> Option<Refusal> {
        self.subscription.refusal()
    }

    pub(crate) fn stats(&self) -> SubscriberStats {
        self.subscription.counts().into()
    }

    /// Why there is no lease at the end of the time.
    pub(crate) fn no_lease(&self) -> SubscribeError {
        match self.subscription.refusal() {
            Some(reason) => SubscribeError::Refused(reason),
            None => SubscribeError::TimedOut {
                unsent: self.unsent,
            },
        }
    }

    /// Hands a frame's events to `take`.
    pub(crate) fn handle_arrival<R>(
        &mut self,
        arrival: Arrival,
        take: &mut impl FnMut(ReceivedFrame<'_>) -> R,
    ) -> Turn<R> {
        let datagram = match self.buffer.get(..arrival.bytes) {
            Some(datagram) if arrival.bytes <= DATAGRAM_BYTES_MAX => datagram,
            _ => return self.ignore_datagram(),
        };
        let Ok(view) = self.decoder.decode(datagram) else {
            return self.ignore_datagram();
        };
        let now = self.began.elapsed();
        let verdict = (self.subscription).handle_frame(now, arrival.origin, &view);
        self.log.look(self.subscription.counts());
        match verdict {
            Verdict::Deliver { weight } => Turn::Events(take(ReceivedFrame { view, weight })),
            Verdict::Consumed | Verdict::Ignored => Turn::Other,
        }
    }

    /// Copies a frame's events into the queue.
    pub(crate) fn queue_arrival(&mut self, arrival: Arrival) -> Turn<()> {
        let mut queue = std::mem::take(&mut self.queue);
        let turn = self.handle_arrival(arrival, &mut |frame| {
            let copy = |event| ReceivedEvent::copy(&event, frame.weight);
            queue.extend(frame.events().map(copy));
        });
        self.queue = queue;
        turn
    }

    /// Takes note that no datagram waits.
    pub(crate) fn handle_silence(&mut self) {
        self.subscription.handle_timeout(self.began.elapsed());
    }

    fn ignore_datagram<R>(&mut self) -> Turn<R> {
        self.subscription.ignore_datagram();
        Turn::Other
    }

    /// What cannot be sent is as good as lost, and asked for again by the timer.
    pub(crate) fn transmit(&mut self, endpoint: &Endpoint) {
        let now = self.now();
        while let Some(datagram) = self.subscription.poll_transmit(now) {
            self.unsent = endpoint.send(datagram).err().map(|error| error.kind());
        }
        self.log.look(self.subscription.counts());
    }

    /// For tests: a bus that has moved, at the next look.
    #[cfg(test)]
    pub(crate) fn search(&mut self) -> &mut Search {
        &mut self.search
    }

    /// Tells the bus that it is over. The parent's lease is not the child's to end.
    pub(crate) fn close(&mut self, endpoint: &Endpoint) {
        let is_own = self.is_of_this_process();
        if let Some(datagram) = self.subscription.close().filter(|_| is_own) {
            // If it gets lost, the lease lapses.
            let _ = endpoint.send(datagram);
        }
    }
}
