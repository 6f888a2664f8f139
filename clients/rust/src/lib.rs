#![doc = include_str!("../README.md")]

mod address;
mod endpoint;
mod event;
pub mod flow;
pub mod lease;
mod link;
mod ping;
mod publisher;
mod random;
mod subscriber;

pub use address::{Address, AddressError, BUS_PORT, BUS_VARIABLE};
pub use event::Event;
pub use hailmary_proto::decode::EventView;
pub use hailmary_proto::topic::TopicError;
pub use lease::Refusal;
pub use ping::{Pong, ping};
pub use publisher::{
    BATCH_BYTES_HOST, BATCH_BYTES_NETWORK, Batch, PublishError, Publisher, PublisherStats,
};
pub use subscriber::{
    Item, Loss, RECEIVE_BUFFER_BYTES, ReceivedEvent, ReceivedFrame, RecvError, SubscribeError,
    Subscriber, SubscriberBuilder, SubscriberStats,
};
