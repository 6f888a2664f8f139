//! The comparison: every load on every system, in turn, several times over.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::bail;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag::register;

use crate::facts::Facts;
use crate::load::{self, Load};
use crate::report::Report;
use crate::server::Programs;
use crate::system::System;

/// The most subscribers of a load: each is a process.
const FAN_OUT_MAX: i64 = 64;

/// The most events in one write: Hail Mary's go into one datagram of 65,507 bytes.
const BATCH_MAX: i64 = 400;

/// What to compare, and how long.
#[derive(Clone, Debug, clap::Args)]
pub struct Compare {
    #[command(flatten)]
    programs: Programs,
    /// Which systems.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = System::ALL)]
    systems: Vec<System>,
    /// How often each load is put on each system; the systems take turns.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// How long the publisher sends in each run.
    #[arg(long, default_value_t = 2.0, value_parser = seconds)]
    seconds: f64,
    /// Events in one write, of the loads at full speed.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 100],
          value_parser = clap::value_parser!(u32).range(1..=BATCH_MAX))]
    batches: Vec<u32>,
    /// Subscribers, of the loads at full speed.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 4, 16],
          value_parser = clap::value_parser!(u32).range(1..=FAN_OUT_MAX))]
    fan_outs: Vec<u32>,
    /// Events a second, of the loads at a rate, with one event in a write.
    #[arg(long, value_delimiter = ',', default_values_t = [1_000, 10_000, 50_000],
          value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    rates: Vec<u64>,
    /// Subscribers, of the loads at a rate.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 4],
          value_parser = clap::value_parser!(u32).range(1..=FAN_OUT_MAX))]
    paced_fan_outs: Vec<u32>,
    /// Write every single run here, as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

fn seconds(text: &str) -> Result<f64, &'static str> {
    let seconds = text.parse().ok();
    seconds
        .filter(|seconds| (0.1..=60.0).contains(seconds))
        .ok_or("a run takes 0.1 to 60 seconds")
}

impl Compare {
    /// Runs it all, says on standard error how far it is, and prints the tables. A signal ends it
    /// behind the run that is under way, with tables of what there is, so that nothing that it
    /// started stays behind.
    ///
    /// # Errors
    ///
    /// There is nothing to compare, nothing came to its end, a signal ended it, or a file could
    /// not be written.
    pub fn run(&self) -> anyhow::Result<()> {
        let systems = self.installed();
        if systems.is_empty() {
            bail!("there is nothing to compare");
        }
        let stopped = stop_flag()?;
        let mut report = Report::new(Facts::find(&systems, &self.programs), self.rounds);
        for (round, load, system) in self.runs(&systems) {
            self.one(&mut report, round, system, load);
            if stopped.load(Ordering::Acquire) {
                break;
            }
        }
        report.end();
        print!("{}", report.markdown(&self.loads(), &systems));
        if let Some(file) = &self.json {
            fs::write(file, serde_json::to_string_pretty(&report)?)?;
        }
        if report.outcomes.is_empty() {
            bail!("no run came to its end");
        }
        if stopped.load(Ordering::Acquire) {
            bail!("stopped by a signal");
        }
        Ok(())
    }

    /// One that fails is told of and left out of the medians.
    fn one(&self, report: &mut Report, round: u32, system: System, load: Load) {
        let told = format!(
            "round {} of {}: {}: {load}",
            round + 1,
            self.rounds,
            system.title()
        );
        match load::run(system, load, &self.programs) {
            Ok(outcome) => {
                let rate = outcome.delivered_per_second;
                eprintln!(
                    "{told}: {rate:.0} delivered/s, {:.2} % lost",
                    outcome.lost * 100.0
                );
                report.outcomes.push(outcome);
            }
            Err(error) => {
                eprintln!("{told}: failed: {error:#}");
                report.failures.push(format!("{told}: {error:#}"));
            }
        }
    }

    /// Every load on every system, as often as there are rounds.
    fn runs(&self, systems: &[System]) -> Vec<(u32, Load, System)> {
        let mut runs = Vec::new();
        for round in 0..self.rounds {
            for load in self.loads() {
                runs.extend(in_turn(systems, round).map(|system| (round, load, system)));
            }
        }
        runs
    }

    fn installed(&self) -> Vec<System> {
        let is_there = |system: &System| match self.programs.find(*system) {
            Ok(_) => true,
            Err(missing) => {
                eprintln!("{} is skipped: {missing}", system.title());
                false
            }
        };
        self.systems.iter().copied().filter(is_there).collect()
    }

    fn loads(&self) -> Vec<Load> {
        let seconds = self.seconds;
        let full = self.batches.iter().flat_map(|batch| {
            self.fan_outs.iter().map(move |fan_out| Load {
                batch: *batch,
                fan_out: *fan_out,
                rate: 0,
                seconds,
            })
        });
        let paced = self.rates.iter().flat_map(|rate| {
            self.paced_fan_outs.iter().map(move |fan_out| Load {
                batch: 1,
                fan_out: *fan_out,
                rate: *rate,
                seconds,
            })
        });
        full.chain(paced).collect()
    }
}

fn stop_flag() -> io::Result<Arc<AtomicBool>> {
    let stopped = Arc::default();
    for signal in [SIGHUP, SIGINT, SIGTERM] {
        register(signal, Arc::clone(&stopped))?;
    }
    Ok(stopped)
}

/// All of them, each round beginning with another, so that none always follows the same one.
fn in_turn(systems: &[System], round: u32) -> impl Iterator<Item = System> + use<> {
    let first = usize::try_from(round).unwrap_or(0) % systems.len().max(1);
    let mut systems = systems.to_vec();
    systems.rotate_left(first);
    systems.into_iter()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_round_begins_with_another_and_has_all() {
        let systems = [System::Nats, System::Redis, System::ZeroMq];
        let firsts: Vec<_> = (0..4)
            .map(|round| in_turn(&systems, round).next().unwrap())
            .collect();
        assert_eq!(
            firsts,
            [System::Nats, System::Redis, System::ZeroMq, System::Nats]
        );
        assert_eq!(in_turn(&systems, 2).count(), 3);
    }

    #[test]
    fn a_run_is_bounded() {
        assert!(seconds("61").is_err());
        assert!(seconds("NaN").is_err());
        assert_eq!(seconds("0.5"), Ok(0.5));
    }
}
