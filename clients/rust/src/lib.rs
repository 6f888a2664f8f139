#![doc = include_str!("../README.md")]

mod account;
mod address;
#[cfg(feature = "tokio")]
mod asynchronous;
mod builder;
mod counters;
mod descriptor;
mod endpoint;
mod event;
pub mod flow;
mod fork;
pub mod lease;
mod link;
mod log;
mod ping;
mod publisher;
mod random;
mod received;
mod route;
mod search;
mod session;
mod spy;
mod subscriber;
mod trace_context;

pub use address::{Address, AddressError, BUS_PORT, BUS_VARIABLE, DISABLE_VARIABLE};
#[cfg(feature = "tokio")]
pub use asynchronous::AsyncSubscriber;
pub use builder::{RECEIVE_BUFFER_BYTES, SubscriberBuilder};
pub use counters::{PublishError, PublisherStats};
pub use event::Event;
pub use hailmary_proto::decode::EventView;
pub use hailmary_proto::topic::TopicError;
pub use lease::Refusal;
pub use ping::{Pong, ping};
pub use publisher::{BATCH_BYTES_HOST, BATCH_BYTES_NETWORK, Batch, Publisher};
pub use received::{
    Item, Loss, ReceivedEvent, ReceivedFrame, RecvError, SubscribeError, SubscriberStats,
};
pub use spy::{SPY_EVENTS_MAX, Spy};
pub use subscriber::Subscriber;
#[cfg(feature = "opentelemetry")]
pub use trace_context::remote_context;
