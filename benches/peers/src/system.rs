//! What is compared, by name.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// One of the buses and brokers.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum System {
    /// Hail Mary, with its defaults.
    #[value(name = "hailmary")]
    HailMary,
    /// Hail Mary, whose loop never waits for a fuller batch.
    #[value(name = "hailmary-prompt")]
    HailMaryPrompt,
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
    pub const ALL: [Self; 6] = [
        Self::HailMary,
        Self::HailMaryPrompt,
        Self::Nats,
        Self::Redis,
        Self::Mosquitto,
        Self::ZeroMq,
    ];

    /// As it is written in a table.
    pub fn title(self) -> &'static str {
        match self {
            Self::HailMary => "Hail Mary",
            Self::HailMaryPrompt => "Hail Mary, `linger_us = 0`",
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
            Self::HailMaryPrompt => "hailmary-prompt",
            Self::Nats => "nats",
            Self::Redis => "redis",
            Self::Mosquitto => "mosquitto",
            Self::ZeroMq => "zeromq",
        }
    }
}
