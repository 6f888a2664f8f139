//! The tables: medians, with the lowest and the highest of all rounds.

use serde::Serialize;

use crate::facts::{Facts, load_average};
use crate::load::{Latency, Load, Outcome};
use crate::system::System;

/// All that was measured.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    facts: Facts,
    rounds: u32,
    /// Every run that came to its end.
    pub outcomes: Vec<Outcome>,
    /// What was said of the others.
    pub failures: Vec<String>,
}

/// A column of a table: its head, how its figures are written, and where they are.
struct Column {
    head: &'static str,
    form: Form,
    of: fn(&Outcome) -> Option<f64>,
}

#[derive(Clone, Copy)]
enum Form {
    /// Thousands or millions.
    Rate,
    /// Of a whole.
    Percent,
    /// ns or µs, to three digits or so.
    Plain,
    /// Bytes, as MiB.
    Mebibytes,
}

const DELIVERED: Column = Column {
    head: "delivered/s",
    form: Form::Rate,
    of: |outcome| Some(outcome.delivered_per_second),
};
const SENT: Column = Column {
    head: "sent/s",
    form: Form::Rate,
    of: |outcome| Some(outcome.sent_per_second),
};
const LOST: Column = Column {
    head: "lost, %",
    form: Form::Percent,
    of: |outcome| Some(outcome.lost),
};
const BROKER: Column = Column {
    head: "broker, ns a copy",
    form: Form::Plain,
    of: |outcome| Some(outcome.broker_cpu_nano),
};
const PUBLISHER: Column = Column {
    head: "publisher, ns an event",
    form: Form::Plain,
    of: |outcome| Some(outcome.publisher_cpu_nano),
};
const SUBSCRIBER: Column = Column {
    head: "subscriber, ns a copy",
    form: Form::Plain,
    of: |outcome| Some(outcome.subscriber_cpu_nano),
};
const MEMORY: Column = Column {
    head: "peak memory, MiB",
    form: Form::Mebibytes,
    of: |outcome| Some(mebibytes(outcome.peak_bytes)),
};
const P50: Column = Column {
    head: "p50, µs",
    form: Form::Plain,
    of: |outcome| latency(outcome, |latency| latency.p50_micros),
};
const P99: Column = Column {
    head: "p99, µs",
    form: Form::Plain,
    of: |outcome| latency(outcome, |latency| latency.p99_micros),
};
const P999: Column = Column {
    head: "p99.9, µs",
    form: Form::Plain,
    of: |outcome| latency(outcome, |latency| latency.p999_micros),
};

/// What is told of a load at full speed.
const FULL_SPEED: [Column; 7] = [DELIVERED, SENT, LOST, BROKER, PUBLISHER, SUBSCRIBER, MEMORY];

/// What is told of a load at a rate.
const PACED: [Column; 7] = [P50, P99, P999, LOST, BROKER, PUBLISHER, SUBSCRIBER];

fn latency(outcome: &Outcome, of: fn(&Latency) -> f64) -> Option<f64> {
    outcome.latency.as_ref().map(of)
}

#[expect(
    clippy::cast_precision_loss,
    reason = "bytes of memory, far below 2^53"
)]
fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

impl Report {
    /// Of nothing so far.
    pub fn new(facts: Facts, rounds: u32) -> Self {
        Self {
            facts,
            rounds,
            outcomes: Vec::new(),
            failures: Vec::new(),
        }
    }

    /// Notes what the machine is like behind the last run.
    pub fn end(&mut self) {
        self.facts.load_average_after = load_average();
    }

    /// All of it, for people.
    pub fn markdown(&self, loads: &[Load], systems: &[System]) -> String {
        let mut text = self.preface(loads);
        for load in loads {
            let columns = match load.rate {
                0 => FULL_SPEED.as_slice(),
                _ => PACED.as_slice(),
            };
            text += &format!("\n### {load}\n\n");
            text += &self.table(load, systems, columns);
        }
        text + &self.remarks(loads, systems)
    }

    fn preface(&self, loads: &[Load]) -> String {
        let facts = &self.facts;
        let seconds = loads.first().map_or(0.0, |load| load.seconds);
        let versions: String = facts
            .versions
            .iter()
            .map(|(system, version)| format!("- {}: {version}\n", system.title()))
            .collect();
        format!(
            "{}, commit {}, {}, {} CPUs ({}), `net.core.rmem_max` {}, load average {} before the \
             first run and {} behind the last. Median of {} rounds of {seconds} s each (lowest to \
             highest).\n\n{versions}",
            facts.date,
            facts.commit,
            facts.kernel,
            facts.cpus,
            facts.processor,
            facts.receive_buffer_bytes_max,
            facts.load_average_before,
            facts.load_average_after,
            self.rounds
        )
    }

    fn table(&self, load: &Load, systems: &[System], columns: &[Column]) -> String {
        let heads: Vec<_> = columns.iter().map(|column| column.head).collect();
        let mut text = format!("| | {} |\n|---|", heads.join(" | "));
        text += &"---:|".repeat(columns.len());
        text.push('\n');
        for system in systems {
            let cells: Vec<_> = columns
                .iter()
                .map(|column| self.cell(load, *system, column))
                .collect();
            text += &format!("| {} | {} |\n", system.title(), cells.join(" | "));
        }
        text
    }

    fn cell(&self, load: &Load, system: System, column: &Column) -> String {
        let figures = self.outcomes_of(load, system).filter_map(column.of);
        Spread::of(figures.collect()).map_or_else(|| "-".to_owned(), |it| it.write(column.form))
    }

    /// Every run of a system under a load.
    fn outcomes_of(&self, load: &Load, system: System) -> impl Iterator<Item = &Outcome> {
        let is_one = move |outcome: &&Outcome| outcome.load == *load && outcome.system == system;
        self.outcomes.iter().filter(is_one)
    }

    /// What a median hides.
    fn remarks(&self, loads: &[Load], systems: &[System]) -> String {
        let pairs = loads
            .iter()
            .flat_map(|load| systems.iter().map(move |system| (load, *system)));
        let mut text: String = pairs
            .filter_map(|(load, system)| self.remark(load, system))
            .collect();
        for failure in &self.failures {
            text += &format!("- {failure}\n");
        }
        match text.is_empty() {
            true => text,
            false => format!("\n### Cut off, out of order, failed\n\n{text}"),
        }
    }

    fn remark(&self, load: &Load, system: System) -> Option<String> {
        let sum = |of: fn(&Outcome) -> u64| -> u64 { self.outcomes_of(load, system).map(of).sum() };
        let cut_off = sum(|outcome| outcome.cut_off);
        let disordered = sum(|outcome| outcome.disordered);
        let system = system.title();
        (cut_off + disordered > 0).then(|| {
            format!(
                "- {load}: {system}: {cut_off} subscribers cut off, {disordered} copies out of \
                 order in all rounds\n"
            )
        })
    }
}

/// The median of some figures, the lowest and the highest.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Spread {
    median: f64,
    lowest: f64,
    highest: f64,
}

impl Spread {
    /// Nothing where there are none.
    fn of(mut figures: Vec<f64>) -> Option<Self> {
        figures.sort_by(f64::total_cmp);
        let upper = *figures.get(figures.len() / 2)?;
        let lower = *figures.get((figures.len() - 1) / 2)?;
        Some(Self {
            median: f64::midpoint(lower, upper),
            lowest: *figures.first()?,
            highest: *figures.last()?,
        })
    }

    /// All three in the unit that suits the highest.
    fn write(&self, form: Form) -> String {
        let (scale, digits, unit) = match form {
            Form::Rate if self.highest >= 1e6 => (1e6, 2, " M"),
            Form::Rate => (1e3, 0, " k"),
            Form::Percent => (0.01, 2, ""),
            Form::Plain if self.highest < 10.0 => (1.0, 2, ""),
            Form::Plain => (1.0, 0, ""),
            Form::Mebibytes => (1.0, 1, ""),
        };
        let [median, lowest, highest] =
            [self.median, self.lowest, self.highest].map(|figure| figure / scale);
        let median = format!("{median:.digits$}{unit}");
        match self.highest == 0.0 {
            true => "0".to_owned(),
            false => format!("{median} ({lowest:.digits$} to {highest:.digits$})"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_has_its_median_whatever_the_order() {
        let odd = Spread::of(vec![5.0, 1.0, 2.0]).unwrap();
        assert_eq!((odd.lowest, odd.median, odd.highest), (1.0, 2.0, 5.0));
        let even = Spread::of(vec![4.0, 1.0, 2.0, 9.0]).unwrap();
        assert_eq!(even.median, 3.0);
        assert_eq!(Spread::of(Vec::new()), None);
    }

    #[test]
    fn figures_are_written_in_one_unit() {
        let spread = |lowest, median, highest| Spread {
            median,
            lowest,
            highest,
        };
        let rate = spread(900_000.0, 1_234_567.0, 2_000_000.0).write(Form::Rate);
        assert_eq!(rate, "1.23 M (0.90 to 2.00)");
        assert_eq!(spread(0.0, 0.0, 0.0).write(Form::Percent), "0");
        assert_eq!(
            spread(0.0, 0.01, 0.5).write(Form::Percent),
            "1.00 (0.00 to 50.00)"
        );
    }
}
