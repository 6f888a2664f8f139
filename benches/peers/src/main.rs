//! Compares Hail Mary with what its users would otherwise run, on the same loads, with clients
//! that differ in nothing but the protocol. `README.md` says what is compared and how fair it is.
//!
//! In the order of a comparison: [`compare`] puts every [`load`] on every [`server`] by
//! [`publisher`] and [`subscriber`], which are this program in processes of their own and speak
//! the protocols of [`wire`]; [`report`] makes tables of it.

mod clock;
mod compare;
mod event;
mod facts;
mod load;
mod publisher;
mod report;
mod resources;
mod server;
mod subscriber;
mod system;
mod wire;

use clap::{Parser, Subcommand};

/// Compares Hail Mary with NATS, Redis Pub/Sub, Mosquitto and ZeroMQ.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the comparison and print its tables.
    Compare(compare::Compare),
    /// Be a publisher of it.
    #[command(hide = true)]
    Publish(publisher::Publish),
    /// Be a subscriber of it.
    #[command(hide = true)]
    Subscribe(subscriber::Subscribe),
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().command {
        Command::Compare(compare) => compare.run(),
        Command::Publish(publish) => publish.run(),
        Command::Subscribe(subscribe) => subscribe.run(),
    }
}
