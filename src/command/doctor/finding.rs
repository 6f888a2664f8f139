//! What was found: plain text, told in three parts.

use std::fmt;

use serde::Serialize;

/// How grave it is, the gravest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Severity {
    /// Events are lost by it, or have been since the bus started.
    #[serde(rename = "loses")]
    Loses,
    /// Events will be lost by it once the load or the network is worse.
    #[serde(rename = "may lose")]
    MayLose,
    /// It could not be found out.
    #[serde(rename = "unknown")]
    Unknown,
    /// It loses nothing.
    #[serde(rename = "fine")]
    Fine,
}

/// One thing that was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Which check found it.
    pub check: &'static str,
    /// How grave it is.
    pub severity: Severity,
    /// What was found, with its number and unit.
    pub finding: String,
    /// Why it matters, where it does.
    pub why: Option<String>,
    /// What mends it: lines for a shell, where `#` begins what is for people alone. Made of
    /// numbers and addresses, never of a name that somebody else chose.
    pub mend: Option<String>,
}

impl Finding {
    /// Events are lost by it.
    pub fn loses(
        check: &'static str,
        finding: impl Into<String>,
        why: impl Into<String>,
        mend: impl Into<String>,
    ) -> Self {
        Self {
            check,
            severity: Severity::Loses,
            finding: finding.into(),
            why: Some(why.into()),
            mend: Some(mend.into()),
        }
    }

    /// Events will be lost by it once things are worse.
    pub fn may_lose(
        check: &'static str,
        finding: impl Into<String>,
        why: impl Into<String>,
        mend: impl Into<String>,
    ) -> Self {
        Self {
            severity: Severity::MayLose,
            ..Self::loses(check, finding, why, mend)
        }
    }

    /// It loses nothing.
    pub fn fine(check: &'static str, finding: impl Into<String>) -> Self {
        Self {
            check,
            severity: Severity::Fine,
            finding: finding.into(),
            why: None,
            mend: None,
        }
    }

    /// It could not be found out.
    pub fn unknown(check: &'static str, what: &str, reason: &NotKnown) -> Self {
        Self {
            severity: Severity::Unknown,
            ..Self::fine(check, format!("{what} is not known: {reason}"))
        }
    }

    /// The same, with what would help.
    #[must_use]
    pub fn with_mend(self, mend: impl Into<String>) -> Self {
        Self {
            mend: Some(mend.into()),
            ..self
        }
    }
}

/// Why something could not be found out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotKnown(pub String);

impl fmt::Display for NotKnown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What could be found out.
pub type Known<T> = Result<T, NotKnown>;

/// Findings of one check that are told one by one: more than a person reads.
const FINDINGS_PER_CHECK_MAX: usize = 16;

/// The first of many findings of one check, and how many are left out.
pub fn first_of(mut findings: Vec<Finding>) -> Vec<Finding> {
    let left_out = findings.len().saturating_sub(FINDINGS_PER_CHECK_MAX);
    if let Some(next) = findings.get(FINDINGS_PER_CHECK_MAX) {
        let rest = Finding {
            finding: format!("{left_out} more findings of this kind"),
            ..next.clone()
        };
        findings.truncate(FINDINGS_PER_CHECK_MAX);
        findings.push(rest);
    }
    findings
}
