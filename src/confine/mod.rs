//! Least privilege: what a bus gives up for good once its sockets are bound.
//!
//! Three fences, each of which holds where the others are not to be had:
//!
//! - **Capabilities**: it keeps none, whatever it was started with, and cannot gain any.
//! - **seccomp**: of the kernel's calls it may make those that a bus makes, and no others.
//! - **Landlock**: of the host's files it may read its configuration and put its Unix sockets where
//!   they are; it may begin no TCP connection, and signal no other process.
//!
//! A thread's fences are those of the thread that started it. So this is done by the one thread
//! that there is, after all that takes rights and before any other thread. Nothing is given back:
//! what a reload wants of it takes a restart.
//!
//! It opens no socket, and decides nothing of traffic. The user that the bus runs as is chosen by
//! whoever starts it: without capabilities root still owns root's files.

#[cfg(all(
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64")
))]
mod calls;
#[cfg(target_os = "linux")]
mod capabilities;
#[cfg(target_os = "linux")]
mod files;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use crate::net::listener::ListenAddress;

/// How much a bus insists on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// The fences that the system has.
    #[default]
    BestEffort,
    /// All three, or it does not start. One that an older kernel holds in part is there, and
    /// warned of.
    Required,
    /// None.
    Off,
}

impl Mode {
    /// As the configuration has it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Mode::BestEffort => "best-effort",
            Mode::Required => "required",
            Mode::Off => "off",
        }
    }
}

/// What a bus gives up by. Its [`label`](Fence::label) is the metric's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fence {
    /// Capabilities are dropped.
    Capabilities,
    /// The kernel's calls are filtered.
    Seccomp,
    /// Files, TCP and signals are out of reach.
    Landlock,
}

impl Fence {
    /// All, in the order of [`Confinement::holds`].
    pub const ALL: [Fence; 3] = [Fence::Capabilities, Fence::Seccomp, Fence::Landlock];

    /// The fence as a label.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Fence::Capabilities => "capabilities",
            Fence::Seccomp => "seccomp",
            Fence::Landlock => "landlock",
        }
    }
}

/// How far a fence holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Hold {
    /// Wholly.
    Enforced,
    /// As far as the kernel knows of it, and what that leaves out.
    Partly(String),
    /// Not at all, and why.
    Missing(String),
    /// Not at all, as is wanted.
    #[default]
    Off,
}

impl Hold {
    /// In one word.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Hold::Enforced => "enforced",
            Hold::Partly(_) => "partly",
            Hold::Missing(_) => "missing",
            Hold::Off => "off",
        }
    }
}

impl fmt::Display for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Hold::Partly(why) | Hold::Missing(why) => write!(f, "{}: {why}", self.name()),
            Hold::Enforced | Hold::Off => f.write_str(self.name()),
        }
    }
}

/// A fence that is required is not to be had.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot confine itself, and confine.mode is required: {}: {why}",
    fence.label()
)]
pub struct ConfineError {
    fence: Fence,
    why: String,
}

/// What a bus still needs of the host's files.
#[derive(Clone, Copy, Debug)]
pub struct Needs<'a> {
    /// The file that a reload reads.
    pub configuration: Option<&'a Path>,
    /// Where it listens: beside its Unix sockets it may put others.
    pub listen: &'a [ListenAddress],
}

/// What holds a bus.
#[derive(Clone, Debug, Default)]
pub struct Confinement {
    mode: Mode,
    holds: [Hold; Fence::ALL.len()],
    dropped: Vec<String>,
    /// Where sockets may be put. None: wherever the user may.
    directories: Option<Vec<PathBuf>>,
}

impl Confinement {
    /// What was wanted.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// The fences, and how far each holds.
    pub fn holds(&self) -> impl Iterator<Item = (Fence, &Hold)> {
        Fence::ALL.into_iter().zip(&self.holds)
    }

    /// The capabilities that the bus had, by their names in capabilities(7).
    #[must_use]
    pub fn dropped(&self) -> &[String] {
        &self.dropped
    }

    /// Whether a Unix socket may be put there. A directory that is not there is for the attempt
    /// to find out.
    #[must_use]
    pub fn reaches(&self, socket: &Path) -> bool {
        let Some(directories) = &self.directories else {
            return true;
        };
        let directory = socket.parent().map(Path::canonicalize);
        let Some(Ok(directory)) = directory else {
            return true;
        };
        directories.iter().any(|kept| directory.starts_with(kept))
    }

    /// Whether this may be of a file or directory that the bus gave up: the kernel says the same of
    /// what the user has no right to.
    #[must_use]
    pub fn may_deny(&self, error: &io::Error) -> bool {
        self.directories.is_some() && error.kind() == io::ErrorKind::PermissionDenied
    }

    /// Whether less holds than was asked for.
    fn is_short(&self) -> bool {
        self.holds.iter().any(|hold| match hold {
            Hold::Missing(_) => true,
            Hold::Partly(_) => self.mode == Mode::Required,
            Hold::Enforced | Hold::Off => false,
        })
    }

    fn tell(&self) {
        let [capabilities, seccomp, landlock] = &self.holds;
        match self.is_short() {
            true => warn!(%capabilities, %seccomp, %landlock, "not wholly confined"),
            false => info!(%capabilities, %seccomp, %landlock, "confined"),
        }
    }
}

/// Gives up all that a bus does not need from here on, for good: of this thread and of those that
/// it starts, and as far as calls are concerned of all.
///
/// # Errors
///
/// A fence that is required and not to be had. Others may stand then.
pub fn confine(mode: Mode, needs: Needs<'_>) -> Result<Confinement, ConfineError> {
    if mode == Mode::Off {
        info!("not confined: confine.mode is off");
        return Ok(Confinement {
            mode,
            ..Confinement::default()
        });
    }
    let confinement = Confinement {
        mode,
        ..fence_in(needs)
    };
    for (fence, hold) in confinement.holds() {
        if let Hold::Missing(why) = hold
            && mode == Mode::Required
        {
            let why = why.clone();
            return Err(ConfineError { fence, why });
        }
    }
    confinement.tell();
    Ok(confinement)
}

/// Each fence takes what the next one denies: files are opened to name them, then there is no
/// right to open those of others, then there is no call to do so.
#[cfg(target_os = "linux")]
fn fence_in(needs: Needs<'_>) -> Confinement {
    let missing = |why: String| Hold::Missing(why);
    // Without it the kernel lets none but the mighty fence themselves in, and a program that is
    // run might gain what was given up.
    if let Err(error) = rustix::thread::set_no_new_privs(true) {
        let why = || missing(format!("cannot renounce new privileges: {error}"));
        return Confinement {
            holds: [why(), why(), why()],
            ..Confinement::default()
        };
    }
    let (landlock, directories) = files::keep(needs).unwrap_or_else(|why| (missing(why), None));
    let (capabilities, dropped) = match capabilities::drop_all() {
        Ok(dropped) => (Hold::Enforced, dropped),
        Err(why) => (missing(why), Vec::new()),
    };
    let seccomp = filter_calls().map_or_else(missing, |()| Hold::Enforced);
    Confinement {
        mode: Mode::default(),
        holds: [capabilities, seccomp, landlock],
        dropped,
        directories,
    }
}

#[cfg(all(
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64")
))]
fn filter_calls() -> Result<(), String> {
    calls::filter().map_err(|error| error.to_string())
}

#[cfg(all(
    target_os = "linux",
    not(any(target_arch = "x86_64", target_arch = "aarch64"))
))]
fn filter_calls() -> Result<(), String> {
    Err("there is no list of calls for this processor".to_owned())
}

/// This system has other ways, which whoever starts a bus there may use.
#[cfg(not(target_os = "linux"))]
fn fence_in(_needs: Needs<'_>) -> Confinement {
    let missing = || Hold::Missing("this is not Linux".to_owned());
    Confinement {
        holds: [missing(), missing(), missing()],
        ..Confinement::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_holds_in_part_is_short_of_what_is_required() {
        let partly = |mode| Confinement {
            mode,
            holds: [Hold::Enforced, Hold::Enforced, Hold::Partly(String::new())],
            ..Confinement::default()
        };
        assert!(partly(Mode::Required).is_short());
        assert!(!partly(Mode::BestEffort).is_short());
    }

    #[test]
    fn sockets_may_be_put_beside_those_that_are_there() {
        let directory = tempfile::tempdir().unwrap();
        let kept = directory.path().canonicalize().unwrap();
        std::fs::create_dir_all(kept.join("kept/below")).unwrap();
        std::fs::create_dir(kept.join("kept-not")).unwrap();
        std::os::unix::fs::symlink(kept.join("kept-not"), kept.join("kept/away")).unwrap();
        let confinement = Confinement {
            directories: Some(vec![kept.join("kept")]),
            ..Confinement::default()
        };
        for (path, is_reached) in [
            ("kept/a.sock", true),
            ("kept/below/a.sock", true),
            ("kept-not/a.sock", false),
            ("kept/../kept-not/a.sock", false),
            ("kept/away/a.sock", false),
            ("a.sock", false),
            // The attempt says more than this could.
            ("nowhere/a.sock", true),
        ] {
            assert_eq!(confinement.reaches(&kept.join(path)), is_reached, "{path}");
        }
        assert!(Confinement::default().reaches(&kept.join("a.sock")));
    }
}
