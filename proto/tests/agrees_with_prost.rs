//! The view of a frame against prost: the same verdict on every byte string (but for padded keys and
//! lengths, which prost alone reads), the same values.

#[cfg(test)]
mod support;

use hailmary_proto::decode::{Decoder, Malformed};
use proptest::collection::vec;
use proptest::prelude::*;
use std::collections::BTreeSet;
use support::check_against_prost;
use support::datagrams::{Faults, datagram};

/// A change to a datagram.
#[derive(Clone, Debug)]
enum Mutation {
    Replace(usize, u8),
    Flip(usize, u8),
    Insert(usize, u8),
    Remove(usize),
    Cut(usize),
    Double(usize, usize),
}

#[cfg(test)]
impl Mutation {
    fn apply(&self, bytes: &mut Vec<u8>) {
        let place = |at: usize| at % bytes.len().max(1);
        match *self {
            _ if bytes.is_empty() => {}
            Mutation::Replace(at, byte) => {
                let at = place(at);
                bytes[at] = byte;
            }
            Mutation::Flip(at, bit) => {
                let at = place(at);
                bytes[at] ^= 1 << (bit % 8);
            }
            Mutation::Insert(at, byte) => bytes.insert(place(at), byte),
            Mutation::Remove(at) => drop(bytes.remove(place(at))),
            Mutation::Cut(at) => bytes.truncate(place(at)),
            Mutation::Double(from, to) => {
                let (from, to) = (place(from), place(to));
                bytes.extend_from_within(from.min(to)..from.max(to));
            }
        }
    }
}

fn mutation() -> impl Strategy<Value = Mutation> {
    prop_oneof![
        any::<(usize, u8)>().prop_map(|(at, byte)| Mutation::Replace(at, byte)),
        any::<(usize, u8)>().prop_map(|(at, bit)| Mutation::Flip(at, bit)),
        any::<(usize, u8)>().prop_map(|(at, byte)| Mutation::Insert(at, byte)),
        any::<usize>().prop_map(Mutation::Remove),
        any::<usize>().prop_map(Mutation::Cut),
        any::<(usize, usize)>().prop_map(|(from, to)| Mutation::Double(from, to)),
    ]
}

fn tape() -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), 0..600)
}

proptest! {
    #[test]
    fn on_frames_of_every_shape(tape in tape()) {
        let datagram = datagram(&tape, Faults::None);
        prop_assert_eq!(check_against_prost(&mut Decoder::new(), &datagram), Ok(()));
    }

    #[test]
    fn on_what_is_nearly_a_frame(tape in tape()) {
        let _ = check_against_prost(&mut Decoder::new(), &datagram(&tape, Faults::Some));
    }

    #[test]
    fn on_mutated_frames(tape in tape(), mutations in vec(mutation(), 1..4)) {
        let mut datagram = datagram(&tape, Faults::None);
        mutations.iter().for_each(|mutation| mutation.apply(&mut datagram));
        let _ = check_against_prost(&mut Decoder::new(), &datagram);
    }

    #[test]
    fn on_arbitrary_bytes(datagram in vec(any::<u8>(), 0..200)) {
        let _ = check_against_prost(&mut Decoder::new(), &datagram);
    }

    #[test]
    fn whatever_the_decoder_has_read_before(tapes in vec(tape(), 2..6)) {
        let mut decoder = Decoder::new();
        for tape in tapes {
            let _ = check_against_prost(&mut decoder, &datagram(&tape, Faults::Some));
        }
    }
}

#[test]
fn on_a_topic_with_one_bad_byte_anywhere() {
    let mut decoder = Decoder::new();
    for length in 1..=100_u8 {
        for place in 0..usize::from(length) {
            let mut topic = vec![b'a'; usize::from(length)];
            topic[place] = 0xFF;
            let datagram = [&[0x0A, length + 2, 0x0A, length], topic.as_slice()].concat();
            let verdict = check_against_prost(&mut decoder, &datagram);
            assert_eq!(verdict, Err(Malformed::Utf8), "{place} of {length}");
        }
    }
}

/// Guards the properties above: they say little if the datagrams are all alike.
#[test]
#[cfg_attr(miri, ignore = "thousands of datagrams, and about the generator alone")]
fn the_generator_reaches_every_verdict() {
    let mut random = 0x9E37_79B9_7F4A_7C15_u64;
    let mut verdicts = BTreeSet::new();
    let mut frames = 0;
    for _ in 0..5_000 {
        let tape: Vec<u8> = std::iter::repeat_with(|| {
            // xorshift64: any sequence without pattern will do.
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random.to_be_bytes()[0]
        })
        .take(400)
        .collect();
        match check_against_prost(&mut Decoder::new(), &datagram(&tape, Faults::Some)) {
            Ok(()) => frames += 1,
            Err(malformed) => drop(verdicts.insert(format!("{malformed:?}"))),
        }
    }
    let malformed = [
        Malformed::Truncated,
        Malformed::Varint,
        Malformed::Padded,
        Malformed::Key,
        Malformed::WireType,
        Malformed::Group,
        Malformed::Utf8,
        Malformed::Control,
    ];
    assert_eq!(
        verdicts,
        malformed
            .iter()
            .map(|reason| format!("{reason:?}"))
            .collect()
    );
    assert!(
        (1_000..4_000).contains(&frames),
        "{frames} of 5,000 are frames"
    );
}
