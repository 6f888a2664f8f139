//! What is compared, by name.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// One of the buses and brokers.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum System {
    /// Hail Mary itself.
    #[value(name = "hailmary")]
    HailMary,
    /// NATS core, without JetStream.
    Nats,
    /// Redis Pub/Sub.
    Redis,
    /// MQTT at quality of service 0.
    Mosquitto,
    /// XPUB and XSUB with a proxy between them.
    #[value(name = "zeromq")]
    ZeroMq,
}

impl System {
    /// All of them, in the order of the tables.
    pub const ALL: [Self; 5] = [
        Self::HailMary,
        Self::Nats,
        Self::Redis,
        Self::Mosquitto,
        Self::ZeroMq,
    ];

    /// As it is written in a table.
    pub fn title(self) -> &'static str {
        match self {
            Self::HailMary => "Hail Mary",
            Self::Nats => "NATS",
            Self::Redis => "Redis Pub/Sub",
            Self::Mosquitto => "Mosquitto, QoS 0",
            Self::ZeroMq => "ZeroMQ proxy",
        }
    }

    /// As it is written on the command line.
    pub fn argument(self) -> &'static str {
        match self {
            Self::HailMary => "hailmary",
            Self::Nats => "nats",
            Self::Redis => "redis",
            Self::Mosquitto => "mosquitto",
            Self::ZeroMq => "zeromq",
        }
    }
}
