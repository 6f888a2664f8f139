//! Hail Mary: a best-effort event bus.
//!
//! A datagram's way through this crate:
//!
//! ```text
//! socket -> receive batch -> frame view -> route -> frames per subscriber set -> send batch -> sockets
//! net       net::sys         (the wire)    bus      bus                         net::sys      net
//! ```
//!
//! - [`bus`]: the core. Decides what becomes of each datagram; does no I/O.

// Clocks, sockets and logs are for everything but the core, which denies these again.
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    clippy::disallowed_macros
)]

pub mod admin;
pub mod bus;
pub mod command;
pub mod config;
pub mod ledger;
pub mod logging;
pub mod net;
pub mod state;
