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
//! - [`net`]: the event loop around it, sockets, and all system calls that need `unsafe`.
//! - [`canary`]: the probes that the bus sends itself, on a thread of its own.
//! - [`ledger`]: what was counted, and how the data threads hand it over.
//! - [`topics_seen`]: the topics of the events, handed over likewise.
//! - [`state`]: what else the data threads show of themselves.
//! - [`admin`]: the HTTP listener, on a thread of its own: metrics, health, API, page.
//! - [`confine`]: what a bus gives up once its sockets are bound.
//! - [`config`]: the configuration file and what is made of it.
//! - [`reload`]: another configuration without a restart.
//! - [`command`]: what the program can be told to do.
//! - [`logging`]: how the log is written, and what holds it back.
//! - [`printable`](mod@printable): text of others, so that it steers no terminal.

pub mod admin;
pub mod bus;
pub mod canary;
pub mod command;
pub mod config;
pub mod confine;
pub mod ledger;
pub mod logging;
pub mod net;
pub mod printable;
pub mod reload;
pub mod state;
pub mod topics_seen;
