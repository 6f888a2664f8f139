//! Around the core: sockets, batches, readiness, deadlines.

pub mod account;
pub mod address;
pub mod batch_size;
pub mod control_queue;
pub mod egress;
pub mod event_loop;
pub mod linger;
pub mod listener;
pub mod sys;
