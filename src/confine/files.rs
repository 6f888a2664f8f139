//! The files that a bus still needs, and none else (landlock(7)).
//!
//! A rule holds for a directory with all that is below it, and for the directory itself and not
//! its name: a file that is put in another's place, as editors do, is still reached.

use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, PathBeneath, PathFd, RestrictionStatus, Ruleset,
    RulesetAttr, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope, make_bitflags,
};

use super::{Hold, Needs};
use crate::net::listener::ListenAddress;

/// What is denied is what this version of Landlock knows of (Linux 6.12); older kernels deny less.
/// Newer ones would deny more, such as the way to Unix sockets, which subscribers have anywhere.
const VERSION: ABI = ABI::V6;

/// Read after the start: how long Unix sockets' queues are, by new listeners; and how the system
/// lends memory, by the allocator of glibc when a thread's is trimmed.
const KERNEL_PARAMETERS: [&str; 2] = [
    "/proc/sys/net/unix/max_dgram_qlen",
    "/proc/sys/vm/overcommit_memory",
];

/// Where packages have a bus put its socket, also by a later reload, if it is there at the start.
const USUAL_DIRECTORY: &str = "/run/hailmary";

/// Puts all files out of reach but those needed, and says where sockets may be put from now on.
///
/// # Errors
///
/// What the system says.
pub fn keep(needs: Needs<'_>) -> Result<(Hold, Option<Vec<PathBuf>>), String> {
    let directories = socket_directories(needs.listen);
    let status = restrict(needs.configuration, &directories);
    let status = status.map_err(|error| error.to_string())?;
    Ok(match status.ruleset {
        RulesetStatus::FullyEnforced => (Hold::Enforced, Some(directories)),
        RulesetStatus::PartiallyEnforced => {
            let why = "this kernel's Landlock is older than version 6 (Linux 6.12)";
            (Hold::Partly(why.to_owned()), Some(directories))
        }
        RulesetStatus::NotEnforced => {
            let why = "this kernel has no Landlock (Linux 5.13), or it is off, or forbidden here";
            (Hold::Missing(why.to_owned()), None)
        }
    })
}

fn restrict(
    configuration: Option<&Path>,
    sockets: &[PathBuf],
) -> Result<RestrictionStatus, RulesetError> {
    let read: BitFlags<AccessFs> = AccessFs::ReadFile.into();
    let put = make_bitflags!(AccessFs::{MakeSock | RemoveFile});
    let configuration = configuration.map(configuration_directories);
    let configuration = configuration.into_iter().flatten();
    let parameters = KERNEL_PARAMETERS.iter().map(PathBuf::from);
    let read = configuration.chain(parameters).map(|path| (path, read));
    let put = sockets.iter().map(|path| (path.clone(), put));
    let rules = read.chain(put).filter_map(|(path, access)| {
        // What is not there needs no rule.
        let path = PathFd::new(path).ok()?;
        Some(Ok::<_, RulesetError>(PathBeneath::new(path, access)))
    });
    Ruleset::default()
        .handle_access(AccessFs::from_all(VERSION))?
        .handle_access(AccessNet::from_all(VERSION))?
        .scope(Scope::Signal)?
        .create()?
        .add_rules(rules)?
        .restrict_self()
}

/// Where a reload finds the file: by its name, and where that leads now, if it is a link. What is
/// no regular file is not read again.
fn configuration_directories(file: &Path) -> Vec<PathBuf> {
    if !file.is_file() {
        return Vec::new();
    }
    let real = file.canonicalize();
    let named = file.parent().map(|parent| match parent {
        parent if parent.as_os_str().is_empty() => Path::new("."),
        parent => parent,
    });
    let named = named.map(Path::to_path_buf);
    let real = real
        .ok()
        .and_then(|real| Some(real.parent()?.to_path_buf()));
    named.into_iter().chain(real).collect()
}

fn socket_directories(listen: &[ListenAddress]) -> Vec<PathBuf> {
    let unix = listen.iter().filter_map(|address| match address {
        ListenAddress::Unix(path) => path.parent(),
        ListenAddress::Udp(_) => None,
    });
    let all = unix.chain([Path::new(USUAL_DIRECTORY)]);
    all.filter_map(|path| path.canonicalize().ok()).collect()
}
