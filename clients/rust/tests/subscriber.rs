//! A subscriber against a bus that a test plays, step by step.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "what helps tests may panic as they do"
)]

mod common;

use std::net::{SocketAddr, UdpSocket};
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use common::{PATIENCE, SocketPath, StandIn, control_frame, events, lease};
use hailmary_client::{
    Address, RecvError, Refusal, SubscribeError, Subscriber, SubscriberBuilder, TopicError,
};
use hailmary_proto::v1;
use hailmary_proto::v1::frame::Control;
use prost::Message;

const NO_TIME: Duration = Duration::ZERO;

fn builder(address: &Address) -> SubscriberBuilder {
    Subscriber::builder(address).pattern("a.>")
}

/// A subscriber that holds a lease, and where it is.
fn subscribed(bus: &StandIn) -> (Subscriber, SocketAddr) {
    let mut subscriber = builder(&bus.address()).open().unwrap();
    let (request, from) = bus.receive_subscribe();
    bus.grant(request.nonce, from);
    assert_eq!(subscriber.recv_timeout(NO_TIME).unwrap(), None);
    assert!(subscriber.is_subscribed());
    (subscriber, from)
}

#[test]
fn connects_by_the_handshake_and_receives_from_another_socket() {
    let bus = StandIn::open();
    let asking = builder(&bus.address())
        .pattern("b")
        .name("indexer")
        .group("g")
        .sample(0.5)
        .rate(9)
        .lease(Duration::from_micros(1_500))
        .max_frame_bytes(1_400);
    std::thread::scope(|scope| {
        let connecting = scope.spawn(|| asking.connect(PATIENCE));
        let (first, _) = bus.receive_subscribe();
        assert!(first.cookie.is_empty());
        assert_eq!(first.topics, ["a.>", "b"]);
        assert_eq!(
            (first.name.as_str(), first.group.as_str()),
            ("indexer", "g")
        );
        assert_eq!((first.sample, first.events_per_second), (0.5, 9));
        assert_eq!((first.lease_ms, first.max_frame_bytes), (2, 1_400));
        let (second, from) = loop {
            let (request, from) = bus.receive_subscribe();
            let challenge = v1::Challenge {
                cookie: b"c".to_vec(),
                nonce: first.nonce,
            };
            bus.answer(Control::Challenge(challenge), from);
            if !request.cookie.is_empty() {
                break (request, from);
            }
        };
        assert_eq!(
            (second.cookie.as_slice(), second.nonce),
            (&b"c"[..], first.nonce)
        );
        bus.grant(first.nonce, from);
        let mut subscriber = connecting.join().unwrap().unwrap();

        let egress = UdpSocket::bind("127.0.0.1:0").unwrap();
        egress
            .send_to(&events(3, &["x", "y"]).encode_to_vec(), from)
            .unwrap();
        let event = subscriber.recv().unwrap();
        assert_eq!(
            (event.topic.as_str(), event.payload.as_slice()),
            ("a.b", &b"x"[..])
        );
        assert_eq!((event.key.as_slice(), event.time_unix_nano), (&b"k"[..], 5));
        assert_eq!(event.attributes, [("n".to_owned(), "v".to_owned())]);
        assert_eq!(event.weight, 1.0);
        assert_eq!(subscriber.next().unwrap().payload, b"y");
        assert_eq!(subscriber.recv_timeout(NO_TIME).unwrap(), None);
        let stats = subscriber.close();
        assert_eq!((stats.received, stats.lost), (2, 3));
    });
}

#[test]
fn hands_frames_out_without_copying() {
    let bus = StandIn::open();
    let (mut subscriber, from) = subscribed(&bus);
    let mut frame = events(0, &["x", "yz"]);
    frame.stamp.as_mut().unwrap().weight = 4.0;
    bus.send(&frame, from);
    let seen = subscriber
        .recv_frame(PATIENCE, |frame| {
            let bytes: usize = frame.events().map(|event| event.payload().len()).sum();
            (bytes, frame.weight())
        })
        .unwrap();
    assert_eq!(seen, Some((3, 4.0)));
    assert_eq!(subscriber.recv_frame(NO_TIME, |_| ()).unwrap(), None);
}

#[test]
fn strangers_and_garbage_are_ignored_and_do_not_hold_the_caller() {
    let bus = StandIn::open();
    let (mut subscriber, from) = subscribed(&bus);
    let stranger = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut foreign = events(0, &["x"]);
    foreign.stamp.as_mut().unwrap().sender += 1;
    for datagram in [&b"\xff\xff"[..], b"", &foreign.encode_to_vec()] {
        stranger.send_to(datagram, from).unwrap();
    }
    bus.send(&events(0, &["ours"]), from);
    assert_eq!(subscriber.recv().unwrap().payload, b"ours");
    assert_eq!(subscriber.stats().ignored_frames, 3);

    for _ in 0..100 {
        stranger.send_to(b"\xff", from).unwrap();
    }
    assert_eq!(subscriber.recv_timeout(NO_TIME).unwrap(), None);
    assert_eq!(subscriber.stats().ignored_frames, 3 + 64);
}

#[test]
fn a_final_refusal_is_told_and_ends_the_iteration() {
    let bus = StandIn::open();
    let mut subscriber = builder(&bus.address()).open().unwrap();
    let (request, from) = bus.receive_subscribe();
    let reason = v1::refusal::Reason::NotAllowed.into();
    let nonce = request.nonce;
    bus.answer(Control::Refusal(v1::Refusal { reason, nonce }), from);
    assert!(subscriber.next().is_none());
    let error = subscriber.recv().unwrap_err();
    assert!(matches!(error, RecvError::Refused(Refusal::NotAllowed)));
}

#[test]
fn connect_says_why_there_is_no_lease() {
    let brief = Duration::from_millis(20);
    let silent = StandIn::open();
    let error = builder(&silent.address()).connect(brief).unwrap_err();
    assert!(matches!(error, SubscribeError::TimedOut { unsent: None }));

    let place = SocketPath::new("missing");
    let error = builder(&place.address()).connect(brief).unwrap_err();
    assert_eq!(
        error.to_string(),
        "no answer from the bus (the request was not sent: entity not found)"
    );

    let full = StandIn::open();
    std::thread::scope(|scope| {
        let connecting = scope.spawn(|| builder(&full.address()).connect(Duration::from_secs(2)));
        let (request, from) = full.receive_subscribe();
        let reason = v1::refusal::Reason::Full.into();
        full.answer(
            Control::Refusal(v1::Refusal {
                reason,
                nonce: request.nonce,
            }),
            from,
        );
        // It asks again, in vain.
        full.receive_subscribe();
        let error = connecting.join().unwrap().unwrap_err();
        assert!(matches!(error, SubscribeError::Refused(Refusal::Full)));
    });
}

#[test]
fn illegal_requests_are_refused_before_they_are_sent() {
    let bus = StandIn::open();
    let ask = || Subscriber::builder(&bus.address());
    let pattern = |builder: SubscriberBuilder| match builder.open().unwrap_err() {
        SubscribeError::BadPattern { error, .. } => error,
        other => panic!("{other:?}"),
    };
    assert_eq!(pattern(ask()), TopicError::Empty);
    assert_eq!(pattern(ask().pattern("a.>.b")), TopicError::TailNotLast);
    let ask = || builder(&bus.address());
    for name in ["", "a b", &"x".repeat(65)] {
        assert!(matches!(
            ask().name(name).open(),
            Err(SubscribeError::BadName)
        ));
    }
    for share in [0.0, -0.1, 1.1, f64::NAN] {
        assert!(matches!(
            ask().sample(share).open(),
            Err(SubscribeError::BadSample)
        ));
    }
    for group in ["a b", "g\n", &"g".repeat(65)] {
        assert!(matches!(
            ask().group(group).open(),
            Err(SubscribeError::BadGroup)
        ));
    }
    let pattern = "a".repeat(255);
    let many = (0..300).fold(ask(), |ask, _| ask.pattern(&pattern));
    assert!(matches!(many.open(), Err(SubscribeError::TooLarge)));
}

#[test]
fn dropping_it_tells_the_bus() {
    let bus = StandIn::open();
    let (subscriber, _) = subscribed(&bus);
    drop(subscriber);
    let (frame, _) = bus.receive();
    assert!(matches!(frame.control, Some(Control::Unsubscribe(gone)) if gone.cookie == b"lease"));
}

/// Grants so short a lease that it is renewed after 100 ms.
fn grant_briefly(bus: &StandIn, nonce: u64, to: SocketAddr) {
    let lease = v1::Lease {
        bus: common::BUS,
        lease_ms: 300,
        cookie: b"brief".to_vec(),
        nonce,
    };
    bus.answer(Control::Lease(lease), to);
}

#[test]
fn renews_while_it_receives() {
    let bus = StandIn::open();
    let mut subscriber = builder(&bus.address()).open().unwrap();
    let (request, from) = bus.receive_subscribe();
    grant_briefly(&bus, request.nonce, from);
    std::thread::scope(|scope| {
        let receiving = scope.spawn(|| subscriber.recv());
        let renewal = bus.receive_renewal();
        assert_eq!(renewal.cookie, b"brief");
        assert_eq!(renewal.report.unwrap().bus, common::BUS);
        bus.grant(request.nonce, from);
        bus.send(&events(0, &["x"]), from);
        assert_eq!(receiving.join().unwrap().unwrap().payload, b"x");
    });
}

#[test]
fn renews_while_it_hands_out_one_large_frame() {
    let bus = StandIn::open();
    let mut subscriber = builder(&bus.address()).open().unwrap();
    let (request, from) = bus.receive_subscribe();
    grant_briefly(&bus, request.nonce, from);
    bus.send(&events(0, &["x"; 1_000]), from);
    for _ in 0..150 {
        subscriber.recv().unwrap();
        // The application's own work.
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(bus.receive_renewal().cookie, b"brief");
    assert_eq!(subscriber.stats().received, 1_000);
}

#[test]
fn subscribes_through_a_unix_socket() {
    let place = SocketPath::new("subscribe");
    let bus = place.bind();
    let mut subscriber = builder(&place.address()).open().unwrap();
    let mut buffer = [0; 512];
    let (bytes, from) = bus.recv_from(&mut buffer).unwrap();
    let request = v1::Frame::decode(&buffer[..bytes]).unwrap();
    let Some(Control::Subscribe(request)) = request.control else {
        panic!("{request:?}");
    };
    let answer = control_frame(lease(request.nonce));
    bus.send_to_addr(&answer.encode_to_vec(), &from).unwrap();
    let egress = UnixDatagram::unbound().unwrap();
    egress
        .send_to_addr(&events(0, &["x"]).encode_to_vec(), &from)
        .unwrap();
    assert_eq!(subscriber.recv().unwrap().payload, b"x");
    assert!(subscriber.receive_buffer_bytes().unwrap() > 0);
}
