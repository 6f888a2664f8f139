//! The async subscriber against a bus that a test plays: nothing is lost by a future
//! that is dropped, and nobody is kept waiting.
#![cfg(feature = "tokio")]
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "what helps tests may panic as they do"
)]

mod common;

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::Poll;
use std::time::Duration;

use common::{PATIENCE, SocketPath, StandIn, control_frame, events, lease};
use hailmary_client::{AsyncSubscriber, Item, RecvError, Refusal, SubscribeError};
use hailmary_proto::v1;
use hailmary_proto::v1::frame::Control;
use prost::Message;
use tokio::runtime::{Builder, Runtime};

/// It may be used from any thread, and awaited in any task.
const _: () = {
    const fn movable<T: Send + Sync>() {}
    movable::<AsyncSubscriber>();
};

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

/// Polls a future once, and drops it if that did not complete it.
async fn poll_once<F: Future>(future: F) -> Option<F::Output> {
    let mut future = Box::pin(future);
    std::future::poll_fn(|context| match future.as_mut().poll(context) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending => Poll::Ready(None),
    })
    .await
}

/// A subscriber that holds a lease, the nonce of its request, and where it is.
async fn subscribed(bus: &StandIn) -> (AsyncSubscriber, u64, SocketAddr) {
    let builder = AsyncSubscriber::builder(&bus.address()).pattern("a.>");
    let mut subscriber = builder.open_async().await.unwrap();
    let (request, from) = bus.receive_subscribe();
    bus.grant(request.nonce, from);
    while !subscriber.is_subscribed() {
        assert!(poll_once(subscriber.recv()).await.is_none());
        tokio::task::yield_now().await;
    }
    (subscriber, request.nonce, from)
}

#[test]
fn connects_by_the_handshake_and_tells_the_bus_when_it_is_dropped() {
    let bus = StandIn::open();
    let builder = AsyncSubscriber::builder(&bus.address()).pattern("a.>");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (first, from) = bus.receive_subscribe();
            let challenge = v1::Challenge {
                cookie: b"c".to_vec(),
                nonce: first.nonce,
            };
            bus.answer(Control::Challenge(challenge), from);
            assert_eq!(bus.receive_renewal().cookie, b"c");
            bus.send(&events(0, &["early"]), from);
            bus.grant(first.nonce, from);
            bus.send(&events(0, &["x", "y"]), from);
        });
        runtime().block_on(async {
            let mut subscriber = builder.connect_async(PATIENCE).await.unwrap();
            assert!(subscriber.is_subscribed());
            assert_eq!(subscriber.recv().await.unwrap().payload, b"x");
            assert_eq!(subscriber.recv().await.unwrap().payload, b"y");
            assert_eq!(subscriber.stats().received, 2);
            assert!(subscriber.receive_buffer_bytes().unwrap() > 0);
            drop(subscriber);
        });
    });
    let control = bus.receive().0.control;
    assert!(matches!(control, Some(Control::Unsubscribe(_))));
}

/// Of every poll that does not complete, the future is dropped.
#[test]
fn a_future_that_is_dropped_at_any_await_takes_nothing_with_it() {
    const FRAMES: u32 = 400;
    let bus = StandIn::open();
    runtime().block_on(async {
        let (mut subscriber, _, from) = subscribed(&bus).await;
        let (mut payloads, mut losses, mut dropped) = (Vec::new(), 0, 0);
        for frame in 0..FRAMES {
            // Every tenth frame tells of an event that the bus dropped before it.
            let told = u64::from(frame / 10);
            let sequence = u64::from(frame * 3) + told;
            let mut next = events(sequence, &["a", "b", "c"]);
            next.stamp.as_mut().unwrap().dropped = told;
            bus.send(&next, from);
            let expected = usize::try_from(frame + 1).unwrap() * 3;
            while payloads.len() < expected {
                let owned = |item| match item {
                    Item::Event(event) => Some(event.payload),
                    _ => None,
                };
                match frame % 3 {
                    0 => match poll_once(subscriber.recv()).await {
                        Some(event) => payloads.push(event.unwrap().payload),
                        None => dropped += 1,
                    },
                    1 => match poll_once(subscriber.recv_item()).await {
                        Some(Ok(Item::Loss(loss))) => losses += loss.dropped_by_bus,
                        Some(item) => payloads.extend(owned(item.unwrap())),
                        None => dropped += 1,
                    },
                    _ => {
                        let take = |frame: hailmary_client::ReceivedFrame<'_>| {
                            let own =
                                |event: hailmary_client::EventView<'_>| event.payload().to_vec();
                            frame.events().map(own).collect::<Vec<_>>()
                        };
                        match poll_once(subscriber.recv_frame(take)).await {
                            Some(taken) => payloads.extend(taken.unwrap()),
                            None => dropped += 1,
                        }
                    }
                }
                tokio::task::yield_now().await;
            }
        }
        assert!(dropped > 0, "no future was dropped");
        assert_eq!(payloads.concat(), b"abc".repeat(FRAMES.try_into().unwrap()));
        losses += subscriber.take_loss().map_or(0, |loss| loss.dropped_by_bus);
        let stats = subscriber.close();
        assert_eq!((stats.received, stats.lost), (u64::from(3 * FRAMES), 0));
        assert_eq!(losses, u64::from((FRAMES - 1) / 10));
    });
}

#[test]
fn renews_while_it_is_awaited_and_goes_on_after_it_was_not() {
    let bus = StandIn::open();
    let address = bus.address();
    let playing = std::thread::spawn(move || {
        let (request, from) = bus.receive_subscribe();
        let brief = v1::Lease {
            bus: common::BUS,
            lease_ms: 300,
            cookie: b"brief".to_vec(),
            nonce: request.nonce,
        };
        bus.answer(Control::Lease(brief.clone()), from);
        assert_eq!(bus.receive_renewal().cookie, b"brief");
        bus.answer(Control::Lease(brief), from);
        bus.send(&events(0, &["x"]), from);
        (bus, from)
    });
    runtime().block_on(async {
        let builder = AsyncSubscriber::builder(&address).pattern("a.>");
        let mut subscriber = builder.open_async().await.unwrap();
        assert_eq!(subscriber.recv().await.unwrap().payload, b"x");
        let (bus, from) = playing.join().unwrap();
        let lapses = subscriber.stats().lapses;
        // Nobody polls for longer than the lease.
        std::thread::sleep(Duration::from_millis(350));
        bus.send(&events(1, &["y"]), from);
        assert_eq!(subscriber.recv().await.unwrap().payload, b"y");
        assert_eq!(subscriber.stats().lapses, lapses + 1);
        assert_eq!(bus.receive_renewal().cookie, b"brief");
    });
}

#[test]
fn says_why_there_is_no_lease() {
    let brief = Duration::from_millis(20);
    let silent = StandIn::open();
    let bus = StandIn::open();
    runtime().block_on(async {
        let builder = AsyncSubscriber::builder(&silent.address()).pattern(">");
        let error = builder.connect_async(brief).await.unwrap_err();
        assert!(matches!(error, SubscribeError::TimedOut { unsent: None }));
        let builder = AsyncSubscriber::builder(&silent.address());
        let error = builder.connect_async(brief).await.unwrap_err();
        assert!(matches!(error, SubscribeError::BadPattern { .. }));

        let builder = AsyncSubscriber::builder(&bus.address()).pattern(">");
        let mut subscriber = builder.open_async().await.unwrap();
        let (request, from) = bus.receive_subscribe();
        let refusal = v1::Refusal {
            reason: v1::refusal::Reason::NotAllowed.into(),
            nonce: request.nonce,
        };
        bus.answer(Control::Refusal(refusal), from);
        let error = subscriber.recv_item().await.unwrap_err();
        assert!(matches!(error, RecvError::Refused(Refusal::NotAllowed)));
    });
}

#[test]
fn a_full_queue_does_not_keep_other_tasks_waiting() {
    let bus = StandIn::open();
    runtime().block_on(async {
        let (mut subscriber, _, from) = subscribed(&bus).await;
        bus.send(&events(0, &["x"; 1_000]), from);
        let turns = Arc::new(AtomicU32::new(0));
        let counting = Arc::clone(&turns);
        let other = tokio::spawn(async move {
            loop {
                counting.fetch_add(1, Ordering::Relaxed);
                tokio::task::yield_now().await;
            }
        });
        subscriber.recv().await.unwrap();
        let before = turns.load(Ordering::Relaxed);
        for _ in 1..1_000 {
            subscriber.recv().await.unwrap();
        }
        assert!(turns.load(Ordering::Relaxed) - before >= 5);
        other.abort();
    });
}

#[test]
fn a_task_that_is_aborted_leaves_no_lease() {
    let bus = StandIn::open();
    runtime().block_on(async {
        let (mut subscriber, _, from) = subscribed(&bus).await;
        let task = tokio::spawn(async move {
            let first = subscriber.recv().await.unwrap();
            drop(first);
            subscriber.recv().await
        });
        bus.send(&events(0, &["x"]), from);
        tokio::time::sleep(Duration::from_millis(5)).await;
        task.abort();
        assert!(task.await.unwrap_err().is_cancelled());
    });
    let control = bus.receive().0.control;
    assert!(matches!(control, Some(Control::Unsubscribe(_))));
}

#[test]
fn looks_a_name_up_and_subscribes_through_a_unix_socket() {
    let bus = StandIn::open();
    let port = bus.address().to_string();
    let port = port.rsplit_once(':').unwrap().1;
    let place = SocketPath::new("async");
    let unix = place.bind();
    runtime().block_on(async {
        let named = format!("localhost:{port}").parse().unwrap();
        let builder = AsyncSubscriber::builder(&named).pattern("a.>");
        let _subscriber = builder.open_async().await.unwrap();
        bus.receive_subscribe();

        let builder = AsyncSubscriber::builder(&place.address()).pattern("a.>");
        let mut subscriber = builder.open_async().await.unwrap();
        let mut buffer = [0; 512];
        let (bytes, from) = unix.recv_from(&mut buffer).unwrap();
        let request = v1::Frame::decode(&buffer[..bytes]).unwrap();
        let Some(Control::Subscribe(request)) = request.control else {
            panic!("{request:?}");
        };
        for frame in [control_frame(lease(request.nonce)), events(0, &["x"])] {
            unix.send_to_addr(&frame.encode_to_vec(), &from).unwrap();
        }
        assert_eq!(subscriber.recv().await.unwrap().payload, b"x");
    });
}

/// The first call tells, and the next ones go on by the runtime that they are made in.
#[test]
fn a_subscriber_outlives_its_runtime() {
    let bus = StandIn::open();
    let first = runtime();
    let (mut subscriber, _, from) = first.block_on(subscribed(&bus));
    drop(first);
    let second = runtime();
    let error = second.block_on(subscriber.recv()).unwrap_err();
    assert!(matches!(error, RecvError::Io(_)), "{error}");
    bus.send(&events(0, &["x"]), from);
    let event = second.block_on(subscriber.recv()).unwrap();
    assert_eq!(event.payload, b"x");
}
