//! What several tests of the wire need: a comparison of the view with prost, and a generator of
//! datagrams that are frames, nearly frames, or far from it.

#![allow(dead_code, reason = "each test uses a part")]

pub(crate) mod datagrams;

use hailmary_proto::decode::{Decoder, EventView, FrameView, Malformed};
use hailmary_proto::v1;
use prost::Message;
use std::collections::BTreeMap;

/// Decodes `datagram` both ways and panics where they differ, in the verdict or in a value.
pub(crate) fn check_against_prost(decoder: &mut Decoder, datagram: &[u8]) -> Result<(), Malformed> {
    let expected = v1::Frame::decode(datagram);
    let frame = match (decoder.decode(datagram), &expected) {
        (Ok(frame), Ok(expected)) => {
            check_frame(&frame, expected);
            frame
        }
        (Err(malformed), Err(_)) => return Err(malformed),
        // Refused on purpose, because other libraries than prost refuse it.
        (Err(Malformed::Padded), Ok(_)) => return Err(Malformed::Padded),
        (Ok(_), Err(error)) => panic!("prost refuses ({error}) what the view takes"),
        (Err(malformed), Ok(_)) => panic!("the view refuses ({malformed}) what prost takes"),
    };
    check_slices(&frame);
    Ok(())
}

fn check_frame(frame: &FrameView<'_>, expected: &v1::Frame) {
    assert_eq!(frame.events().len(), expected.events.len());
    for (event, expected) in frame.events().zip(&expected.events) {
        check_event(&event, expected);
    }
    assert_eq!(
        stamp_bits(frame.stamp().copied()),
        stamp_bits(expected.stamp)
    );
    // Compared as bytes, because a number in them may be a NaN, which equals nothing.
    assert_eq!(
        rare_bytes(frame.control(), frame.seal()),
        rare_bytes(expected.control.as_ref(), expected.seal.as_ref())
    );
}

pub(crate) fn check_event(event: &EventView<'_>, expected: &v1::Event) {
    assert_eq!(event.topic(), expected.topic);
    assert_eq!(event.topic_bytes(), expected.topic.as_bytes());
    assert_eq!(event.payload(), expected.payload);
    assert_eq!(event.key(), expected.key);
    assert_eq!(event.time_unix_nano(), expected.time_unix_nano);
    let attributes: BTreeMap<_, _> = event.attributes().collect();
    let expected: BTreeMap<_, _> = expected
        .attributes
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    assert_eq!(attributes, expected);
}

fn stamp_bits(stamp: Option<v1::Stamp>) -> Option<(u64, u64, u64, u32, u64)> {
    stamp.map(|s| (s.sender, s.sequence, s.dropped, s.hops, s.weight.to_bits()))
}

fn rare_bytes(control: Option<&v1::frame::Control>, seal: Option<&v1::Seal>) -> Vec<u8> {
    let control = control.cloned();
    let seal = seal.cloned();
    v1::Frame {
        control,
        seal,
        ..v1::Frame::default()
    }
    .encode_to_vec()
}

/// Each slice is a frame with this one event, and all of them with a stamp are a frame with all.
fn check_slices(frame: &FrameView<'_>) {
    let stamp = v1::Stamp {
        sequence: 5,
        ..v1::Stamp::default()
    };
    let mut joined = v1::Frame {
        stamp: Some(stamp),
        ..v1::Frame::default()
    }
    .encode_to_vec();
    let mut decoder = Decoder::new();
    for event in frame.events() {
        joined.extend_from_slice(event.slice());
        let alone = decoder
            .decode(event.slice())
            .expect("an event's slice is a frame");
        assert_eq!(alone.events().len(), 1);
        assert!(alone.stamp().is_none() && alone.control().is_none() && alone.seal().is_none());
        check_same_event(&alone.events().next().expect("one"), &event);
    }
    let joined = decoder.decode(&joined).expect("slices joined are a frame");
    assert_eq!(stamp_bits(joined.stamp().copied()), stamp_bits(Some(stamp)));
    assert_eq!(joined.events().len(), frame.events().len());
    for (left, right) in joined.events().zip(frame.events()) {
        check_same_event(&left, &right);
    }
}

fn check_same_event(left: &EventView<'_>, right: &EventView<'_>) {
    assert_eq!(left.slice(), right.slice());
    assert_eq!(left.topic(), right.topic());
    assert_eq!(left.payload(), right.payload());
    assert_eq!(left.key(), right.key());
    assert_eq!(left.time_unix_nano(), right.time_unix_nano());
    assert!(left.attributes().eq(right.attributes()));
}
