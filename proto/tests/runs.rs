//! Runs of events, which are copied as they lie in their datagram: they have all events, in their
//! order, and nothing else.

use hailmary_proto::decode::{Decoder, EventRun, FrameView};
use hailmary_proto::v1;
use hailmary_proto::v1::frame::Control;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use prost::Message;

/// Few, so that neighbours often have the same, and some alike but for one byte.
const TOPICS: [&str; 6] = [
    "",
    "a",
    "b",
    "search.index.photo",
    "search.index.phota",
    "search_index.photo",
];

/// What a datagram is made of.
#[derive(Clone, Debug)]
enum Field {
    Event(Vec<u8>),
    /// Any other, which belongs into no run.
    Other(Vec<u8>),
}

impl Field {
    fn bytes(&self) -> &[u8] {
        match self {
            Field::Event(bytes) | Field::Other(bytes) => bytes,
        }
    }

    fn is_event(&self) -> bool {
        matches!(self, Field::Event(_))
    }
}

fn event() -> impl Strategy<Value = Field> {
    // Lengths on both sides of where the event's own takes one more byte.
    let payload_bytes = prop_oneof![4 => 0..8_usize, 1 => 90..140_usize];
    (select(&TOPICS[..]), payload_bytes).prop_map(|(topic, payload_bytes)| {
        let event = v1::Event {
            topic: topic.to_owned(),
            payload: vec![b'p'; payload_bytes],
            ..v1::Event::default()
        };
        let frame = v1::Frame {
            events: vec![event],
            ..v1::Frame::default()
        };
        Field::Event(frame.encode_to_vec())
    })
}

fn other() -> impl Strategy<Value = Field> {
    let stamp = v1::Stamp {
        sender: 5,
        ..v1::Stamp::default()
    };
    let fields = [
        v1::Frame {
            stamp: Some(stamp),
            ..v1::Frame::default()
        },
        v1::Frame {
            padding: vec![0; 9],
            ..v1::Frame::default()
        },
        v1::Frame {
            control: Some(Control::Ping(v1::Ping { nonce: 1 })),
            ..v1::Frame::default()
        },
        v1::Frame {
            seal: Some(v1::Seal::default()),
            ..v1::Frame::default()
        },
    ]
    .map(|frame| frame.encode_to_vec());
    // An empty stamp, an unknown number, and an unknown group around what looks like an event.
    let odd = [&b"\x12\x00"[..], b"\x58\x01", b"\x5B\x0A\x03\x0A\x01a\x5C"].map(<[u8]>::to_vec);
    select([fields.to_vec(), odd.to_vec()].concat()).prop_map(Field::Other)
}

/// Mostly all events together, else anything anywhere.
fn fields() -> impl Strategy<Value = Vec<Field>> {
    let together = (vec(other(), 0..3), vec(event(), 0..12), vec(other(), 0..3))
        .prop_map(|(before, events, behind)| [before, events, behind].concat());
    let anywhere = vec(prop_oneof![3 => event(), 1 => other()], 0..12);
    prop_oneof![together, anywhere]
}

/// The events' bytes, one behind the other.
fn joined<'a>(events: impl IntoIterator<Item = &'a Field>) -> Vec<u8> {
    let bytes: Vec<_> = events.into_iter().map(Field::bytes).collect();
    bytes.concat()
}

/// Gives the frame of these fields to a check, and its events among the fields.
#[cfg(test)]
fn with_frame<R>(fields: &[Field], check: impl FnOnce(&FrameView<'_>, &[Field]) -> R) -> R {
    let datagram = joined(fields);
    let events: Vec<_> = fields.iter().filter(|it| it.is_event()).cloned().collect();
    check(&Decoder::new().decode(&datagram).unwrap(), &events)
}

/// Whether nothing lies between two events.
fn are_together(fields: &[Field]) -> bool {
    fields
        .chunk_by(|one, next| one.is_event() == next.is_event())
        .filter(|neighbours| neighbours.iter().any(Field::is_event))
        .count()
        < 2
}

/// Both parts of a run are the run, without a byte between them.
fn check_parts(run: EventRun<'_>, first: EventRun<'_>, others: EventRun<'_>) {
    assert_eq!(first.len() + others.len(), run.len());
    assert_eq!([first.bytes(), others.bytes()].concat(), run.bytes());
}

proptest! {
    #[test]
    fn have_all_events_in_order_and_nothing_else(fields in fields()) {
        with_frame(&fields, |frame, events| {
            let mut copied = Vec::new();
            let mut topics = frame.events().map(|event| event.topic_bytes());
            for run in frame.runs() {
                assert!(!run.is_empty());
                copied.extend_from_slice(run.bytes());
                let of_run: Vec<_> = topics.by_ref().take(run.len()).collect();
                assert_eq!(of_run, vec![run.topic_bytes(); run.len()]);
            }
            assert_eq!(topics.count(), 0);
            assert_eq!(copied, joined(events));
        });
    }

    #[test]
    fn are_as_long_as_nothing_else_lies_between(fields in fields()) {
        with_frame(&fields, |frame, _| {
            assert_eq!(frame.is_dense(), are_together(&fields));
            let runs: Vec<_> = frame.runs().collect();
            if frame.is_dense() {
                let topics: Vec<_> = runs.iter().map(EventRun::topic_bytes).collect();
                assert!(topics.windows(2).all(|pair| pair[0] != pair[1]));
            } else {
                assert!(runs.iter().all(|run| run.len() == 1));
            }
        });
    }

    #[test]
    fn of_any_neighbours_have_just_these(fields in fields(), start in 0..14_usize, count in 0..14_usize) {
        with_frame(&fields, |frame, events| {
            let count = if frame.is_dense() { count } else { count.min(1) };
            let run = frame.run(start..start + count);
            let expected = events.get(start..start + count).unwrap_or_default();
            assert_eq!(run.len(), expected.len());
            assert_eq!(run.is_empty(), expected.is_empty());
            assert_eq!(run.bytes(), joined(expected));
        });
    }

    #[test]
    fn split_where_asked(events in vec(event(), 0..8), count in 0..10_usize) {
        with_frame(&events, |frame, events| {
            let run = frame.run(0..events.len());
            let (first, others) = run.split_at(count);
            check_parts(run, first, others);
            assert_eq!(first.len(), count.min(events.len()));
            assert_eq!(first.bytes(), joined(&events[..first.len()]));
        });
    }

    #[test]
    fn split_where_no_more_events_fit(
        before in vec(prop_oneof![event(), other()], 0..3), events in vec(event(), 0..8), at: prop::sample::Index, step in -1..=1_isize,
    ) {
        // About the end of an event, where one byte decides.
        let end = joined(&events[..at.index(events.len() + 1)]).len();
        let bytes_max = end.saturating_add_signed(step);
        // Wherever in its datagram the run begins.
        let fields = [before, events.clone()].concat();
        with_frame(&fields, |frame, all| {
            let run = match frame.is_dense() {
                true => frame.run(all.len() - events.len()..all.len()),
                false => frame.runs().last().unwrap(),
            };
            let (first, others) = run.split_at_bytes(bytes_max);
            check_parts(run, first, others);
            assert!(first.bytes().len() <= bytes_max);
            let (one_more, _) = run.split_at(first.len() + 1);
            assert!(others.is_empty() || one_more.bytes().len() > bytes_max);
        });
    }
}
