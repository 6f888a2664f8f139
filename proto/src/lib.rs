//! The wire of Hail Mary, version 1: what a datagram is, in one place for bus and clients.
//!
//! One datagram carries one [`v1::Frame`]. This crate owns
//!
//! - [`v1`]: the messages of `hailmary/v1/bus.proto`, as prost generates them,
//! - [`decode`]: a borrowed view of a frame, for whoever handles many,
//! - [`mod@write`]: the encoding of events and stamps without messages in between,
//! - [`topic`]: what topics and patterns may be,
//! - [`flow`]: what a flow's stamps tell of what was lost on its way.
//!
//! It does no I/O, reads no clock and keeps no state beyond buffers that are used again and the counts of a flow.
//!
//! ```
//! use hailmary_proto::decode::Decoder;
//! use hailmary_proto::topic::check_topic;
//! use hailmary_proto::write::{EventParts, write_event};
//!
//! let mut datagram = Vec::new();
//! let event = EventParts { topic: "search.index", payload: b"42", ..EventParts::default() };
//! write_event(&mut datagram, &event);
//!
//! let mut decoder = Decoder::new();
//! let frame = decoder.decode(&datagram)?;
//! for event in frame.events() {
//!     assert_eq!(check_topic(event.topic_bytes()), Ok(()));
//!     assert_eq!(event.payload(), b"42");
//! }
//! # Ok::<(), hailmary_proto::decode::Malformed>(())
//! ```

// It reads what strangers send: no module may take back that this is all checked.
#![forbid(unsafe_code)]

pub mod decode;
pub mod flow;
mod key;
pub mod topic;
pub mod write;

#[expect(
    missing_docs,
    clippy::all,
    reason = "generated; documented in bus.proto"
)]
pub mod v1 {
    include!(concat!(env!("OUT_DIR"), "/hailmary.v1.rs"));
}
