//! The program `hailmary`: see `hailmary --help`.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use hailmary::command::bench::Bench;
use hailmary::command::bench::child::BenchChild;
use hailmary::command::check::Check;
use hailmary::command::doctor::Doctor;
use hailmary::command::publish::Publish;
use hailmary::command::serve::Serve;
use hailmary::command::subscribe::Subscribe;
use hailmary::config::ConfigError;
use hailmary::logging::Finish;

/// The exit status of a configuration that is at fault: EX_CONFIG of sysexits.h.
const BAD_CONFIGURATION: u8 = 78;

/// A best-effort event bus: throw a datagram and hope.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "\
Examples:
  hailmary serve
  hailmary sub 'search.>'
  hailmary pub search.index.photo 'a payload'

Exit status: 0 done, 1 failed, 2 wrong usage, 78 bad configuration."
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Serve(Serve),
    #[command(name = "pub")]
    Publish(Publish),
    #[command(name = "sub")]
    Subscribe(Subscribe),
    Bench(Bench),
    #[command(hide = true)]
    BenchChild(BenchChild),
    Check(Check),
    Doctor(Doctor),
}

fn main() -> ExitCode {
    let _finish = Finish;
    let result = match Arguments::parse().command {
        Command::Serve(serve) => serve.run(),
        Command::Publish(publish) => publish.run(),
        Command::Subscribe(subscribe) => subscribe.run(),
        Command::Bench(bench) => bench.run(),
        Command::BenchChild(child) => child.run(),
        Command::Check(check) => check.run().map_err(anyhow::Error::from),
        Command::Doctor(doctor) => doctor.run(),
    };
    status(result)
}

/// Says what went wrong, and the status to exit with.
fn status(result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if let Some(usage) = error.downcast_ref::<clap::Error>() {
                usage.exit();
            }
            hailmary::logging::say_last(format_args!("hailmary: {error:#}"));
            if error.is::<ConfigError>() {
                BAD_CONFIGURATION.into()
            } else {
                ExitCode::FAILURE
            }
        }
    }
}
