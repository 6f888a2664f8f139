//! Findings as people and scripts read them.

use std::fmt;

use serde::Serialize;

use crate::printable::printable;

use super::finding::{Finding, Severity};

/// Columns of a line, but for commands, which are never broken.
const COLUMNS: usize = 80;

/// Everything that was found, the gravest first.
#[derive(Debug, Serialize)]
pub struct Report {
    findings: Vec<Finding>,
}

impl Report {
    /// Sorts them by severity; those of one severity stay in their order.
    pub fn new(mut findings: Vec<Finding>) -> Self {
        findings.sort_by_key(|finding| finding.severity);
        Self { findings }
    }

    fn of(&self, severity: Severity) -> impl Iterator<Item = &Finding> {
        let findings = self.findings.iter();
        findings.filter(move |finding| finding.severity == severity)
    }

    /// Says so where events are lost, or may be.
    ///
    /// # Errors
    ///
    /// Then.
    pub fn check(&self) -> anyhow::Result<()> {
        let loses = self.of(Severity::Loses).count();
        let may_lose = self.of(Severity::MayLose).count();
        anyhow::ensure!(
            loses + may_lose == 0,
            "events are lost by {loses} of these findings, and may be by {may_lose}"
        );
        Ok(())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let titles = [
            (Severity::Loses, "LOSES EVENTS"),
            (Severity::MayLose, "MAY LOSE EVENTS"),
            (Severity::Unknown, "NOT KNOWN"),
            (Severity::Fine, "FINE"),
        ];
        let mut is_first = true;
        for (severity, title) in titles {
            if self.of(severity).next().is_none() {
                continue;
            }
            let gap = if is_first { "" } else { "\n" };
            writeln!(f, "{gap}{title}")?;
            is_first = false;
            let findings: Vec<_> = self.of(severity).collect();
            let is_alike = |a: &&Finding, b: &&Finding| (a.check, &a.why) == (b.check, &b.why);
            let mut alike = findings.chunk_by(is_alike);
            alike.try_for_each(|findings| fmt_findings(f, findings))?;
        }
        Ok(())
    }
}

/// Findings of one check that matter for one reason, which is told once, as is each line of what
/// mends them.
fn fmt_findings(f: &mut fmt::Formatter<'_>, findings: &[&Finding]) -> fmt::Result {
    if findings.iter().any(|it| it.severity <= Severity::MayLose) {
        writeln!(f)?;
    }
    for finding in findings {
        let text = format!("{}: {}", finding.check, finding.finding);
        wrap(f, "  ", "    ", &text)?;
    }
    if let Some(why) = findings.iter().find_map(|finding| finding.why.as_ref()) {
        wrap(f, "    ", "    ", why)?;
    }
    let mut told = Vec::new();
    let mends = findings.iter().filter_map(|finding| finding.mend.as_ref());
    for line in mends.flat_map(|mend| mend.lines()) {
        if told.contains(&line) {
            continue;
        }
        told.push(line);
        match line.strip_prefix("# ") {
            Some(remark) => wrap(f, "      # ", "      # ", remark)?,
            None => writeln!(f, "      {}", printable(line))?,
        }
    }
    Ok(())
}

/// Breaks a text between words. A word that is longer than a line stays whole.
fn wrap(f: &mut fmt::Formatter<'_>, first: &str, next: &str, text: &str) -> fmt::Result {
    let mut line = String::from(first);
    let mut is_empty = true;
    // Indentation inside a remark, such as that of a line of configuration, is kept.
    let indent: String = text.chars().take_while(|c| *c == ' ').collect();
    line += &indent;
    for word in text.split_whitespace().map(printable) {
        let columns = line.chars().count() + 1 + word.chars().count();
        if !is_empty && columns > COLUMNS {
            writeln!(f, "{line}")?;
            line = String::from(next);
            is_empty = true;
        }
        if !is_empty {
            line.push(' ');
        }
        line += &word;
        is_empty = false;
    }
    writeln!(f, "{line}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        Report::new(vec![
            Finding::fine("softnet", "nothing"),
            Finding::may_lose(
                "send-buffer",
                "a line that goes on for longer than a terminal is wide, and so must be broken \
                 somewhere",
                "It matters.",
                "sudo sysctl -w net.core.wmem_max=8388608 and so on, a command that is not broken\n\
                 # A remark that is longer than a terminal is wide is broken and each line is one.",
            ),
            Finding::loses("bus", "gone\u{1b}[2J", "Yes.", "#   max_frame_bytes = 1"),
        ])
    }

    #[test]
    fn the_gravest_comes_first_and_commands_stay_whole() {
        assert_eq!(
            report().to_string(),
            "\
LOSES EVENTS

  bus: gone\\u{1b}[2J
    Yes.
      #   max_frame_bytes = 1

MAY LOSE EVENTS

  send-buffer: a line that goes on for longer than a terminal is wide, and so
    must be broken somewhere
    It matters.
      sudo sysctl -w net.core.wmem_max=8388608 and so on, a command that is not broken
      # A remark that is longer than a terminal is wide is broken and each line
      # is one.

FINE
  softnet: nothing
"
        );
    }

    #[test]
    fn what_findings_share_is_told_once() {
        let finding = |n: u32| {
            let mend = format!("# Do this:\nip route get 192.0.2.{n}");
            Finding::may_lose("route", format!("number {n}"), "It matters.", mend)
        };
        let report = Report::new((1..=2).map(finding).collect());
        assert_eq!(
            report.to_string(),
            "\
MAY LOSE EVENTS

  route: number 1
  route: number 2
    It matters.
      # Do this:
      ip route get 192.0.2.1
      ip route get 192.0.2.2
"
        );
    }

    #[test]
    fn the_verdict_counts_what_loses() {
        let told = report().check().unwrap_err().to_string();
        assert_eq!(
            told,
            "events are lost by 1 of these findings, and may be by 1"
        );
        let fine = Report::new(vec![Finding::fine("softnet", "nothing")]);
        assert!(fine.check().is_ok());
    }

    #[test]
    fn json_has_all_five_keys_for_each() {
        let json = serde_json::to_value(report()).unwrap();
        let first = &json["findings"][0];
        assert_eq!(first["severity"], "loses");
        assert_eq!(first["check"], "bus");
        assert_eq!(first["why"], "Yes.");
        assert_eq!(json["findings"][2]["severity"], "fine");
        assert!(json["findings"][2]["mend"].is_null());
    }
}
