//! The borrowed view of a frame against prost: the same verdict, the same values. What the view
//! says of runs and slices agrees with itself, and reading an event's frame allocates nothing.

use hailmary_proto::decode::{Decoder, FrameView};
use hailmary_proto::write::{EventParts, event_bytes, write_event};

use crate::tape::Tape;
use crate::wire::{check_against_prost, check_event};
use hailmary_proto::v1;
use prost::Message;

/// Bytes that a decoder keeps for each byte of a datagram: the table of events, of which the
/// shortest has two bytes, may have grown to twice what it needs, beside what it grew from; prost
/// makes a message of a few.
const BYTES_PER_BYTE: u64 = 256;

/// Bytes that it may keep whatever the datagram.
const BYTES_BESIDE: u64 = 4_096;

/// How long what is repeated becomes, in bytes: tables grow many times over till then, and a
/// processor that is busy has read it in a fraction of a second all the same.
const REPEATED_BYTES_MAX: usize = 1 << 14;

/// Events of a frame that are written anew: of more, some from all over the frame.
const EVENTS_WRITTEN_MAX: usize = 256;

/// See the module. The first byte says whether the rest is a datagram, a tape for some, or what is
/// repeated till a datagram is long, as the tables of what is in it grow.
pub fn run(data: &[u8]) {
    let Some((first, rest)) = data.split_first() else {
        return;
    };
    let mut decoder = Decoder::new();
    if first % 2 == 0 {
        return check(&mut decoder, rest);
    }
    if first % 4 == 3 {
        let times = REPEATED_BYTES_MAX / rest.len().max(1);
        return check(&mut decoder, &rest.repeat(times));
    }
    let mut tape = Tape::new(rest);
    for _ in 0..4 {
        check(&mut decoder, &tape.datagram());
    }
}

fn check(decoder: &mut Decoder, datagram: &[u8]) {
    let bytes_max = BYTES_BESIDE + BYTES_PER_BYTE * datagram.len() as u64;
    let counted = allocation_counter::measure(|| _ = Decoder::new().decode(datagram));
    assert!(counted.bytes_max <= bytes_max, "{counted:?}");
    let is_frame = check_against_prost(decoder, datagram).is_ok();
    let mut is_event = false;
    let counted = allocation_counter::measure(|| {
        let frame = decoder.decode(datagram);
        is_event = frame.is_ok_and(|frame| frame.control().is_none() && frame.seal().is_none());
    });
    assert!(!is_event || counted.count_total == 0, "{counted:?}");
    if is_frame {
        check_view(&decoder.decode(datagram).expect("it was a frame"));
    }
}

fn check_view(frame: &FrameView<'_>) {
    check_runs(frame);
    let stride = frame.events().len().div_ceil(EVENTS_WRITTEN_MAX).max(1);
    for event in frame.events().step_by(stride) {
        let attributes: Vec<_> = event.attributes().collect();
        let parts = EventParts {
            topic: event.topic(),
            payload: event.payload(),
            key: event.key(),
            time_unix_nano: event.time_unix_nano(),
            attributes: &attributes,
        };
        let mut written = Vec::new();
        write_event(&mut written, &parts);
        assert_eq!(written.len(), event_bytes(&parts));
        let decoded = v1::Frame::decode(&*written).expect("what is written is a frame");
        assert_eq!(decoded.events.len(), 1);
        check_event(&event, &decoded.events[0]);
    }
}

/// Runs are the events in their order, of one topic each.
fn check_runs(frame: &FrameView<'_>) {
    let mut events = frame.events();
    for run in frame.runs() {
        assert!(!run.is_empty());
        let mut slices = Vec::new();
        for single in run.singles() {
            let event = events.next().expect("no more runs than events");
            assert_eq!(event.topic_bytes(), run.topic_bytes());
            assert_eq!(single.bytes(), event.slice());
            slices.extend_from_slice(event.slice());
        }
        assert_eq!(run.bytes(), slices);
        for bytes_max in [0, run.bytes().len() / 2, run.bytes().len()] {
            let (head, tail) = run.split_at_bytes(bytes_max);
            assert_eq!(head.len() + tail.len(), run.len());
            assert_eq!([head.bytes(), tail.bytes()].concat(), slices);
        }
    }
    assert!(events.next().is_none(), "no fewer runs than events");
}
