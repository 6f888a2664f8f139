//! A frame's fields, one after the other, without a look inside: enough to count events.
//!
//! What is not as a bus makes it is left to the decoder, which knows every case.

/// The key of `Frame.events` on the wire: field 1, with a length.
const EVENT: u8 = 0x0A;

/// The key of `Frame.stamp` on the wire: field 2, with a length.
const STAMP: u8 = 0x12;

/// The most bytes of a length that is within a datagram.
const LENGTH_BYTES_MAX: usize = 3;

/// Splits off the stamp that a frame begins with: its content, and the fields after it.
#[inline]
pub fn split_stamp(frame: &[u8]) -> Option<(&[u8], &[u8])> {
    let (head, body) = header(frame, STAMP)?;
    let (field, rest) = frame.split_at_checked(head + body)?;
    Some((field.get(head..)?, rest))
}

/// Counts the events and shows each, its key and length included. Nothing where there is
/// anything else among them.
#[inline]
pub fn count_events(mut fields: &[u8], mut show: impl FnMut(&[u8])) -> Option<u64> {
    let mut count = 0;
    while !fields.is_empty() {
        let (head, body) = header(fields, EVENT)?;
        let (event, rest) = fields.split_at_checked(head + body)?;
        show(event);
        count += 1;
        fields = rest;
    }
    Some(count)
}

/// How long a field's key and length are, and what follows them, if it has this key.
#[inline]
fn header(fields: &[u8], key: u8) -> Option<(usize, usize)> {
    let (&first, rest) = fields.split_first()?;
    if first != key {
        return None;
    }
    let mut length = 0;
    for (index, &byte) in rest.iter().take(LENGTH_BYTES_MAX).enumerate() {
        length |= usize::from(byte & 0x7F) << (7 * index);
        if byte < 0x80 {
            return Some((index + 2, length));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use hailmary_proto::decode::Decoder;
    use hailmary_proto::v1;
    use hailmary_proto::write::{EventParts, StampBytes, write_event};
    use proptest::prelude::*;

    fn frame(payloads: &[usize]) -> Vec<u8> {
        let stamp = StampBytes::new(&v1::Stamp {
            sender: 5,
            sequence: 1 << 40,
            ..v1::Stamp::default()
        });
        let mut frame = stamp.as_slice().to_vec();
        for bytes in payloads {
            let payload = vec![0xFF; *bytes];
            let parts = EventParts {
                topic: "a.b",
                payload: &payload,
                ..EventParts::default()
            };
            write_event(&mut frame, &parts);
        }
        frame
    }

    fn walk(frame: &[u8]) -> Option<(Vec<u8>, Vec<Vec<u8>>)> {
        let (stamp, fields) = split_stamp(frame)?;
        let mut events = Vec::new();
        let count = count_events(fields, |event| events.push(event.to_vec()))?;
        assert_eq!(count, events.len() as u64);
        Some((stamp.to_vec(), events))
    }

    proptest! {
        #[test]
        fn sees_what_the_decoder_sees(payloads in prop::collection::vec(0_usize..30_000, 0..6)) {
            let frame = frame(&payloads);
            let (stamp, events) = walk(&frame).unwrap();
            let mut decoder = Decoder::new();
            let view = decoder.decode(&frame).unwrap();
            prop_assert_eq!(<v1::Stamp as prost::Message>::decode(&stamp[..]).ok(), view.stamp());
            let slices: Vec<_> = view.events().map(|event| event.slice().to_vec()).collect();
            prop_assert_eq!(events, slices);
        }

        #[test]
        fn what_is_cut_or_else_is_left_to_the_decoder(
            payloads in prop::collection::vec(0_usize..300, 1..4), cut in 1_usize..300,
        ) {
            let mut frame = frame(&payloads);
            let whole = walk(&frame).unwrap().1.len();
            let mut padded = frame.clone();
            padded.extend([0x7A, 1, 0]);
            prop_assert_eq!(walk(&padded), None);
            frame.truncate(frame.len().saturating_sub(cut));
            prop_assert!(walk(&frame).is_none_or(|(_, events)| events.len() < whole));
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = walk(&bytes);
            let _ = walk(&[&[0x12, 0, 0x0A][..], &bytes].concat());
        }
    }
}
