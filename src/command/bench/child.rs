//! What a process of the bench is told and what it tells: JSON, a line each.
//!
//! Its task is the first line of its standard input, orders follow. When that input ends, the
//! bench is gone, and so is the process: none outlives it, however it ended.

use std::io::{self, BufRead, Write};
use std::sync::mpsc::{self, Receiver, Sender};

use anyhow::Context;
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::publisher::{self, Publish, Published};
use super::subscriber::{self, Received, Subscribe};
use crate::command::serve;
use crate::config::Config;
use crate::confine::Mode;
use crate::logging;
use crate::reload::{Requests, Source};

/// What to be.
#[derive(Debug, Serialize, Deserialize)]
pub enum Task {
    /// A bus with this configuration, which logs in JSON and knows no orders.
    Serve(String),
    /// A publisher.
    Publish(Publish),
    /// A subscriber.
    Subscribe(Subscribe),
}

/// What to do next.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub enum Order {
    /// Publish, from this moment in ns of Unix time.
    Start(u64),
    /// Take what is still on its way, and tell.
    Finish,
}

/// What is told.
#[derive(Debug, Serialize, Deserialize)]
pub enum Message {
    /// It waits for orders: the subscriber's lease stands, the bus knows the publisher's flow.
    Ready,
    /// A bus listens here.
    Listening(String),
    /// A bus's admin listens here.
    Admin(String),
    /// A publisher's result.
    Published(Published),
    /// A subscriber's result.
    Received(Received),
    /// It could not do what it was to, and ends.
    Failed(String),
    /// It ended without a result. The last it said, if anything.
    Ended(String),
}

/// A process of `hailmary bench`: not for use by hand.
#[derive(Debug, clap::Args)]
pub struct BenchChild {}

impl BenchChild {
    /// Does what standard input says.
    ///
    /// # Errors
    ///
    /// Where there is no task, or the bus could not be run; what publishers and subscribers meet
    /// is told to the bench.
    pub fn run(&self) -> anyhow::Result<()> {
        let mut line = String::new();
        io::stdin().lock().read_line(&mut line)?;
        let task = serde_json::from_str(&line).context("no task on standard input")?;
        match task {
            Task::Serve(config) => serve_bus(&config),
            Task::Publish(task) => {
                tell_result(publisher::run(&task, &hear_orders()), Message::Published)
            }
            Task::Subscribe(task) => {
                tell_result(subscriber::run(&task, &hear_orders()), Message::Received)
            }
        }
    }
}

/// Takes orders from here on, by a thread of its own.
fn hear_orders() -> Receiver<Order> {
    let (sender, orders) = mpsc::channel();
    std::thread::spawn(move || take_orders(&sender));
    orders
}

/// Passes orders on till there will be none.
fn take_orders(sender: &Sender<Order>) {
    for line in io::stdin().lines().map_while(Result::ok) {
        if let Ok(order) = serde_json::from_str(&line) {
            // The process is about to end where nobody takes orders.
            let _ = sender.send(order);
        }
    }
    std::process::exit(1);
}

fn serve_bus(config: &str) -> anyhow::Result<()> {
    let (_, mut plan) = Config::parse("bench", config)?;
    plan.confine = wanted_confinement()?.unwrap_or(plan.confine);
    logging::start(logging::Format::Json, tracing::Level::INFO);
    let reloads = Requests::listen()?;
    let bus = serve::Bound::open(plan, Source::default())?;
    // A thread that was there before would not be confined, nor its like. It ends the process.
    let _orders = hear_orders();
    bus.run(reloads)
}

/// As the environment of the bench says, which is that of its bus.
fn wanted_confinement() -> anyhow::Result<Option<Mode>> {
    let Some(wanted) = std::env::var_os(serve::CONFINE) else {
        return Ok(None);
    };
    let mode = Mode::from_str(&wanted.to_string_lossy(), false).map_err(anyhow::Error::msg);
    mode.context(serve::CONFINE).map(Some)
}

fn tell_result<T>(result: anyhow::Result<T>, message: fn(T) -> Message) -> anyhow::Result<()> {
    tell(&result.map_or_else(|error| Message::Failed(format!("{error:#}")), message))
}

/// Tells the bench.
///
/// # Errors
///
/// Where it is gone.
pub(super) fn tell(message: &Message) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    serde_json::to_writer(&mut out, message)?;
    out.write_all(b"\n")?;
    out.flush()?;
    Ok(())
}

/// The next order, waited for.
///
/// # Errors
///
/// Where there will be none.
pub(super) fn await_order(orders: &Receiver<Order>) -> anyhow::Result<Order> {
    orders.recv().context("the bench is gone")
}
