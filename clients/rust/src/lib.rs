//! Client of a Hail Mary bus.
#![expect(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "those lists are for the daemon's core; a client opens sockets and reads the clock"
)]

mod address;
pub mod flow;

pub use address::{Address, AddressError, BUS_PORT, BUS_VARIABLE};
