//! What is left to a forked child, and what is not. In a program of its own, for the
//! processes that it makes.
#![expect(unsafe_code, reason = "nothing else forks")]
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "what helps tests may panic as they do"
)]

mod common;

use std::collections::{HashMap, HashSet};
use std::os::unix::net::UnixDatagram;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::{PATIENCE, SocketPath, StandIn, receive_unix};
use hailmary_client::{Event, Publisher, RecvError, Subscriber};
use hailmary_proto::v1;
use prost::Message;

/// A child process, which ends with `run`.
struct Child(libc::pid_t);

impl Child {
    fn fork(run: impl FnOnce()) -> Self {
        // SAFETY: the child has this thread alone. It runs code that takes no lock
        // which the parent's other threads may have held (the allocator sees to its
        // own), and leaves without running the parent's destructors.
        match unsafe { libc::fork() } {
            0 => {
                let failed = catch_unwind(AssertUnwindSafe(run)).is_err();
                // SAFETY: it ends the process, and touches nothing.
                unsafe { libc::_exit(i32::from(failed)) }
            }
            id => {
                assert!(id > 0, "no process to be had");
                Self(id)
            }
        }
    }

    fn wait(self) {
        let (mut status, began) = (0, Instant::now());
        // SAFETY: the child is ours, and `status` outlives the call.
        while unsafe { libc::waitpid(self.0, &raw mut status, libc::WNOHANG) } == 0 {
            if began.elapsed() > PATIENCE {
                // SAFETY: the child is ours, and not waited for yet.
                unsafe { libc::kill(self.0, libc::SIGKILL) };
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(status, 0, "the child failed");
    }
}

/// Says that it is over, also where an assertion fails: else the threads never end.
struct SayOver<'a>(&'a AtomicBool);

impl Drop for SayOver<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Publishes till so many were sent, and checks the books.
fn publish(publisher: &Publisher, topic: &str, count: u64) {
    let before = publisher.stats();
    let (mut sent, mut offered) = (0, 0);
    while sent < count {
        offered += 1;
        match publisher.try_publish(&Event::new(topic, "")) {
            Ok(()) => sent += 1,
            Err(_) => std::thread::yield_now(),
        }
    }
    let stats = publisher.stats();
    assert_eq!(stats.sent - before.sent, sent);
    assert_eq!(stats.offered() - before.offered(), offered);
}

/// The frames' stamps by the topic of their first event, till `is_over` and nothing is left.
fn read_stamps(bus: &UnixDatagram, is_over: &AtomicBool) -> HashMap<String, Vec<v1::Stamp>> {
    let mut stamps: HashMap<String, Vec<v1::Stamp>> = HashMap::new();
    let mut buffer = [0; 256];
    bus.set_nonblocking(true).unwrap();
    loop {
        let was_over = is_over.load(Ordering::SeqCst);
        match bus.recv(&mut buffer) {
            Ok(bytes) => {
                let frame = v1::Frame::decode(&buffer[..bytes]).unwrap();
                let topic = frame.events[0].topic.clone();
                stamps.entry(topic).or_default().push(frame.stamp.unwrap());
            }
            Err(_) if was_over => return stamps,
            Err(_) => std::thread::yield_now(),
        }
    }
}

#[test]
fn each_child_begins_a_flow_of_its_own_while_threads_publish() {
    const CHILDREN: usize = 30;
    const PARENT_THREADS: usize = 3;
    const EVENTS: u64 = 5;
    let place = SocketPath::new("fork");
    let bus = place.bind();
    let publisher = Publisher::connect(&place.address()).unwrap();
    let (is_over, is_read) = (AtomicBool::new(false), AtomicBool::new(false));
    let stamps = std::thread::scope(|scope| {
        let reading = scope.spawn(|| read_stamps(&bus, &is_read));
        let (say_over, say_read) = (SayOver(&is_over), SayOver(&is_read));
        let threads = [(); PARENT_THREADS].map(|()| {
            scope.spawn(|| {
                while !is_over.load(Ordering::SeqCst) {
                    publisher.publish("parent", "");
                }
            })
        });
        for child in 0..CHILDREN {
            let name = format!("child-{child}");
            let (other, clone) = (format!("{name}.forked"), publisher.clone());
            let child = Child::fork(|| {
                // Two threads find the parent's flow at once.
                std::thread::scope(|scope| {
                    scope.spawn(|| publish_some(&clone, &name));
                    scope.spawn(|| publish_some(&clone, &name));
                });
                assert_eq!(publisher.stats().sent, 2 * EVENTS);
                Child::fork(|| publish(&publisher, &other, EVENTS)).wait();
                assert_eq!(publisher.stats().sent, 2 * EVENTS);
            });
            child.wait();
        }
        drop(say_over);
        for thread in threads {
            thread.join().unwrap();
        }
        drop(say_read);
        reading.join().unwrap()
    });

    fn publish_some(publisher: &Publisher, topic: &str) {
        let mut sent = 0;
        while sent < EVENTS {
            match publisher.try_publish(&Event::new(topic, "")) {
                Ok(()) => sent += 1,
                Err(_) => std::thread::yield_now(),
            }
        }
    }

    let mut senders = HashSet::new();
    for (topic, stamps) in &stamps {
        let sender = stamps[0].sender;
        assert!(stamps.iter().all(|stamp| stamp.sender == sender), "{topic}");
        assert!(senders.insert(sender), "{topic} has another's sender id");
        // Each flow begins at zero, with nothing of the parent's in its counts: what
        // went before its first frame was dropped, but for what each other thread has
        // in its hands.
        let first = stamps.iter().min_by_key(|stamp| stamp.sequence).unwrap();
        let untold = first.sequence - first.dropped;
        assert!(untold < PARENT_THREADS as u64, "{topic}: {first:?}");
    }
    assert_eq!(senders.len(), 1 + 2 * CHILDREN);
    let stats = publisher.stats();
    assert_eq!(stats.sent, stamps["parent"].len() as u64);
}

#[test]
fn what_a_batch_holds_at_a_fork_is_the_parents() {
    let place = SocketPath::new("fork-batch");
    let bus = place.bind();
    let publisher = Publisher::connect(&place.address()).unwrap();
    let mut batch = publisher.batch();
    batch.push(&Event::new("a", "1"));
    batch.push(&Event::new("a", "2"));
    Child::fork(|| {
        batch.push(&Event::new("a", "3"));
        assert_eq!(batch.events(), 1);
        drop(batch);
        assert_eq!(publisher.stats().sent, 1);
    })
    .wait();
    let mut batch = publisher.batch();
    batch.push(&Event::new("a", "1"));
    Child::fork(|| drop(batch)).wait();
    // In the parent it went with the closure, and so was sent.
    let payloads = |frame: v1::Frame| -> Vec<Vec<u8>> {
        let events = frame.events.into_iter();
        events.map(|event| event.payload).collect()
    };
    assert_eq!(publisher.stats().sent, 3);
    let frames = [(); 3].map(|()| payloads(receive_unix(&bus)));
    assert!(frames.contains(&vec![b"3".to_vec()]));
    assert!(frames.contains(&vec![b"1".to_vec(), b"2".to_vec()]));
    assert!(frames.contains(&vec![b"1".to_vec()]));
}

#[test]
fn a_subscriber_stays_the_parents() {
    let bus = StandIn::open();
    let mut subscriber = Subscriber::builder(&bus.address())
        .pattern(">")
        .open()
        .unwrap();
    let (request, from) = bus.receive_subscribe();
    bus.grant(request.nonce, from);
    assert_eq!(subscriber.recv_timeout(Duration::ZERO).unwrap(), None);
    let child = Child::fork(|| {
        let error = subscriber.recv().unwrap_err();
        assert!(matches!(error, RecvError::Forked));
        // SAFETY: the value is the child's copy, which nothing uses after this.
        drop(unsafe { std::ptr::read(&raw const subscriber) });
    });
    child.wait();
    // Had the child ended the lease, its word of that would come first.
    bus.send(&common::events(0, &["x"]), from);
    assert_eq!(subscriber.recv().unwrap().payload, b"x");
    drop(subscriber);
    assert!(matches!(
        bus.receive().0.control,
        Some(v1::frame::Control::Unsubscribe(_))
    ));
    assert!(bus.is_empty());
}
