//! The wire of Hail Mary.

#[expect(missing_docs, clippy::all, reason = "generated; documented in bus.proto")]
pub mod v1 {
    include!(concat!(env!("OUT_DIR"), "/hailmary.v1.rs"));
}
