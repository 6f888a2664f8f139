//! What is written without messages, against what prost writes: the same bytes.

#[cfg(test)]
mod support;

use hailmary_proto::decode::Decoder;
use hailmary_proto::v1;
use hailmary_proto::v1::frame::Control;
use hailmary_proto::write::{
    COOKIE_BYTES_MAX, DATAGRAM_BYTES_MAX, EVENT_BYTES_MAX, EventParts, FrameBody, STAMP_BYTES_MAX,
    StampBytes, UNPROVEN_REQUEST_BYTES_MIN, event_bytes, pad, write_event,
};
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use prost::Message;
use support::check_event;

fn with_parts<R>(event: &v1::Event, use_parts: impl FnOnce(&EventParts<'_>) -> R) -> R {
    let attributes: Vec<(&str, &str)> = event
        .attributes
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    use_parts(&EventParts {
        topic: &event.topic,
        payload: &event.payload,
        key: &event.key,
        time_unix_nano: event.time_unix_nano,
        attributes: &attributes,
    })
}

fn written(event: &v1::Event) -> Vec<u8> {
    with_parts(event, |parts| {
        let mut out = Vec::new();
        write_event(&mut out, parts);
        assert_eq!(out.len(), event_bytes(parts));
        out
    })
}

fn frame_of(events: Vec<v1::Event>) -> v1::Frame {
    v1::Frame {
        events,
        ..v1::Frame::default()
    }
}

fn event() -> impl Strategy<Value = v1::Event> {
    // Lengths on both sides of where a length takes one more byte.
    let payload_bytes = prop_oneof![0..300_usize, 16_200..16_500_usize];
    let payload = payload_bytes.prop_map(|bytes| vec![b'p'; bytes]);
    let attributes = btree_map(".{0,5}", ".{0,140}", 0..4);
    (
        ".{0,140}",
        payload,
        vec(any::<u8>(), 0..150),
        any::<u64>(),
        any::<bool>(),
        attributes,
    )
        .prop_map(
            |(topic, payload, key, time, is_timed, attributes)| v1::Event {
                topic,
                payload,
                key,
                time_unix_nano: if is_timed { time } else { 0 },
                attributes,
            },
        )
}

/// Numbers of every length, those at its ends more often.
fn number() -> impl Strategy<Value = u64> {
    (0..=64_u32, any::<u64>(), -1..=1_i64).prop_map(|(bits, noise, step)| match bits {
        0 => 0,
        64 => noise,
        _ => (1_u64 << bits).wrapping_add_signed(step),
    })
}

fn weight() -> impl Strategy<Value = f64> {
    prop_oneof![
        Just(0.0),
        Just(-0.0),
        Just(f64::NAN),
        Just(1.0),
        any::<f64>()
    ]
}

proptest! {
    #[test]
    fn events(event in event()) {
        let bytes = written(&event);
        prop_assert_eq!(&bytes, &frame_of(vec![event.clone()]).encode_to_vec());
        let mut decoder = Decoder::new();
        let frame = decoder.decode(&bytes).unwrap();
        check_event(&frame.events().next().unwrap(), &event);
    }

    #[test]
    fn bodies(events in vec(event(), 0..5)) {
        let mut body = FrameBody::new();
        body.push(b"gone");
        body.clear();
        prop_assert!(body.is_empty());
        for event in &events {
            body.push(&written(event));
        }
        prop_assert_eq!(body.events() as usize, events.len());
        prop_assert_eq!(body.len(), body.bytes().len());
        prop_assert_eq!(body.is_empty(), events.is_empty());
        prop_assert_eq!(body.bytes(), frame_of(events).encode_to_vec());
    }

    #[test]
    fn stamps(
        sender in number(), sequence in number(), dropped in number(), hops: u32, weight in weight(),
    ) {
        let stamp = v1::Stamp { sender, sequence, dropped, hops: hops >> (sender % 32), weight };
        let frame = v1::Frame { stamp: Some(stamp), ..v1::Frame::default() };
        let field = StampBytes::new(&stamp);
        prop_assert_eq!(field.as_slice(), frame.encode_to_vec());
    }

    #[test]
    fn padded_lengths(nonce: u64, already in 0..300_usize, to_bytes in 0..40_000_usize) {
        let mut frame = v1::Frame {
            control: Some(Control::Ping(v1::Ping { nonce })),
            padding: vec![1; already],
            ..v1::Frame::default()
        };
        pad(&mut frame, to_bytes);
        let bytes = frame.encoded_len();
        let bare = v1::Frame { padding: Vec::new(), ..frame.clone() }.encoded_len();
        if bare >= to_bytes {
            prop_assert_eq!(bytes, bare);
        } else {
            prop_assert!((to_bytes..=to_bytes + 2).contains(&bytes), "{} for {}", bytes, to_bytes);
        }
    }
}

const LONGEST_STAMP: v1::Stamp = v1::Stamp {
    sender: u64::MAX,
    sequence: u64::MAX,
    dropped: u64::MAX,
    hops: u32::MAX,
    weight: f64::MAX,
};

#[test]
fn padding_is_exact_where_a_field_can_have_the_length() {
    // From 3 bytes on, all but 130 and 16,387: there the length itself takes one more byte.
    for to_bytes in (3..200).chain(16_300..16_500) {
        let mut frame = v1::Frame::default();
        pad(&mut frame, to_bytes);
        let surplus = usize::from(to_bytes == 130 || to_bytes == 16_387);
        assert_eq!(frame.encoded_len(), to_bytes + surplus);
    }
}

#[test]
fn the_longest_stamp_and_the_largest_event_fill_a_datagram() {
    assert_eq!(
        StampBytes::new(&LONGEST_STAMP).as_slice().len(),
        STAMP_BYTES_MAX
    );
    // The event's own key and length, the topic's and the payload's.
    let payload_bytes = EVENT_BYTES_MAX - (1 + 3) - (1 + 1 + 6) - (1 + 3);
    let payload = vec![b'x'; payload_bytes];
    let largest = v1::Event {
        topic: "clicks".into(),
        payload,
        ..v1::Event::default()
    };
    assert_eq!(written(&largest).len(), EVENT_BYTES_MAX);
    let frame = v1::Frame {
        stamp: Some(LONGEST_STAMP),
        ..frame_of(vec![largest])
    };
    assert_eq!(frame.encoded_len(), DATAGRAM_BYTES_MAX);
}

#[test]
fn no_answer_to_an_unproven_address_is_longer_than_its_request() {
    let cookie = vec![0xFF; COOKIE_BYTES_MAX];
    let challenge = Control::Challenge(v1::Challenge {
        cookie,
        nonce: u64::MAX,
    });
    assert_eq!(encoded_bytes(challenge), UNPROVEN_REQUEST_BYTES_MIN);

    let (nonce, bus) = (u64::MAX, u64::MAX);
    let pong = v1::Pong {
        nonce,
        bus,
        received: u64::MAX,
        lost: u64::MAX,
    };
    assert!(encoded_bytes(Control::Pong(pong)) <= UNPROVEN_REQUEST_BYTES_MIN);

    // An enum's number takes most bytes where it is negative.
    let refusal = v1::Refusal { reason: -1, nonce };
    assert!(encoded_bytes(Control::Refusal(refusal)) <= UNPROVEN_REQUEST_BYTES_MIN);
}

fn encoded_bytes(control: Control) -> usize {
    v1::Frame {
        control: Some(control),
        ..v1::Frame::default()
    }
    .encoded_len()
}
