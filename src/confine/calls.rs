//! The kernel's calls that a bus makes, and what becomes of others (seccomp(2)).
//!
//! Two filters. The first ends the process where it makes a call that no bus makes for whatever
//! reason, so that only somebody who has taken it over would: the kernel's audit log tells of it.
//! The second lets the calls of a bus pass, by their arguments where those matter, and has the
//! kernel answer all others as one does that does not know them (`ENOSYS`): a C library that tries
//! a newer call falls back to the older one then, which it does for no other error.
//!
//! The lists are what a trace of the whole test suite shows, what musl makes of the same, and what
//! older and newer versions of glibc do in their place. Of a call that passes with any arguments
//! the kernel remembers that it does (Linux 5.11): receiving takes some 25 ns more, a call whose
//! arguments are looked at, as sending, some 110 ns: once for all datagrams of a batch.

use std::collections::BTreeMap;

use libc::{c_int, c_long};
use seccompiler::{
    BackendError, BpfProgram, Error, SeccompAction, SeccompCmpArgLen, SeccompCmpOp,
    SeccompCondition, SeccompFilter, SeccompRule, TargetArch, apply_filter_all_threads,
};

/// By the call's number: passes where one of the rules holds, or there is none.
type Calls = BTreeMap<i64, Vec<SeccompRule>>;

/// Calls that pass with any arguments: those that only use what the process has, or tell.
const PASSING: &[c_long] = &[
    // Datagrams and connections.
    libc::SYS_recvmmsg,
    libc::SYS_recvmsg,
    libc::SYS_recvfrom,
    libc::SYS_accept4,
    libc::SYS_bind,
    libc::SYS_connect,
    libc::SYS_shutdown,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_getsockopt,
    // Waiting.
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_eventfd2,
    libc::SYS_ppoll,
    libc::SYS_futex,
    libc::SYS_nanosleep,
    libc::SYS_clock_nanosleep,
    libc::SYS_restart_syscall,
    libc::SYS_sched_yield,
    // Descriptors and files.
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_close,
    libc::SYS_lseek,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_readlinkat,
    libc::SYS_getcwd,
    libc::SYS_unlinkat,
    // Memory.
    libc::SYS_brk,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    // Threads, signals and the end.
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_sched_getaffinity,
    libc::SYS_sigaltstack,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_exit,
    libc::SYS_exit_group,
    // Time and randomness.
    libc::SYS_clock_gettime,
    libc::SYS_gettimeofday,
    libc::SYS_getrandom,
    // What newer processors have no number for.
    #[cfg(target_arch = "x86_64")]
    libc::SYS_epoll_wait,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_stat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_lstat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_readlink,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_unlink,
    // How musl raises a signal: by the thread's number alone, so that any thread passes here.
    #[cfg(target_env = "musl")]
    libc::SYS_tkill,
];

/// Calls that end the process: to run a program, to reach into another, to change the kernel.
const DEADLY: &[c_long] = &[
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_mount,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_setns,
    libc::SYS_unshare,
    libc::SYS_bpf,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_kexec_load,
];

/// Families of sockets: all that datagrams come by and go to.
const FAMILIES: [c_int; 3] = [libc::AF_INET, libc::AF_INET6, libc::AF_UNIX];

/// The bits of a socket's type that are not flags: `SOCK_TYPE_MASK` of linux/net.h.
const SOCKET_TYPE_BITS: c_int = 0xf;

/// The options that sockets are given.
const SOCKET_OPTIONS: [(c_int, c_int); 9] = [
    (libc::SOL_SOCKET, libc::SO_RCVBUF),
    (libc::SOL_SOCKET, libc::SO_RCVBUFFORCE),
    (libc::SOL_SOCKET, libc::SO_SNDBUF),
    (libc::SOL_SOCKET, libc::SO_SNDBUFFORCE),
    (libc::SOL_SOCKET, libc::SO_REUSEPORT),
    (libc::SOL_SOCKET, libc::SO_PASSCRED),
    (libc::SOL_IP, libc::IP_RECVERR),
    (libc::SOL_IPV6, libc::IPV6_RECVERR),
    (libc::SOL_IPV6, libc::IPV6_V6ONLY),
];

/// Makes a socket wait for nothing: `FIONBIO` of asm-generic/ioctls.h, which C libraries have in
/// types of their own.
const FIONBIO: u32 = 0x5421;

/// What is done to descriptors.
const DESCRIPTOR_COMMANDS: [c_int; 5] = [
    libc::F_GETFD,
    libc::F_SETFD,
    libc::F_GETFL,
    libc::F_SETFL,
    libc::F_DUPFD_CLOEXEC,
];

/// What would make a new thread something else, or put it elsewhere.
const NAMESPACE_FLAGS: c_int = libc::CLONE_NEWNS
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWCGROUP;

/// What a file is not opened for.
const WRITING_FLAGS: c_int = libc::O_ACCMODE | libc::O_CREAT | libc::O_TRUNC;

/// Filters the calls of all threads from here on.
///
/// # Errors
///
/// Where the kernel has no filters, or they are forbidden.
pub fn filter() -> Result<(), Error> {
    let deadly = DEADLY.iter().map(|call| (*call, Vec::new())).collect();
    let kill = program(deadly, SeccompAction::Allow, SeccompAction::KillProcess)?;
    let unknown = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
    let pass = program(passing()?, unknown, SeccompAction::Allow)?;
    // In this order: the second one lets no further filter pass.
    apply_filter_all_threads(&kill)?;
    apply_filter_all_threads(&pass)
}

/// The calls of these rules are answered so, and all others otherwise.
fn program(
    calls: Calls,
    others: SeccompAction,
    these: SeccompAction,
) -> Result<BpfProgram, BackendError> {
    let processor = TargetArch::try_from(std::env::consts::ARCH)?;
    SeccompFilter::new(calls, others, these, processor)?.try_into()
}

/// The calls of a bus.
fn passing() -> Result<Calls, BackendError> {
    let mut calls: Calls = PASSING.iter().map(|call| (*call, Vec::new())).collect();
    calls.extend([
        (libc::SYS_socket, sockets()?),
        (libc::SYS_setsockopt, socket_options()?),
        (libc::SYS_fcntl, descriptor_commands()?),
        (libc::SYS_ioctl, rules([[is(1, FIONBIO)]])?),
        (
            libc::SYS_openat,
            rules([[has(2, WRITING_FLAGS, libc::O_RDONLY)]])?,
        ),
        // No memory becomes code.
        (libc::SYS_mmap, rules([[has(2, libc::PROT_EXEC, 0)]])?),
        (libc::SYS_mprotect, rules([[has(2, libc::PROT_EXEC, 0)]])?),
        // Threads and no processes. What clone3 is asked for no filter can see, and glibc does
        // with clone where it is told that there is no clone3.
        (
            libc::SYS_clone,
            rules([[has(
                0,
                libc::CLONE_THREAD | NAMESPACE_FLAGS,
                libc::CLONE_THREAD,
            )]])?,
        ),
        (libc::SYS_prctl, rules([[is(0, libc::PR_SET_NAME)]])?),
        // No TCP connection: with this flag a datagram's call begins one, of a listening socket
        // that was disconnected before.
        (libc::SYS_sendto, rules([[has(3, libc::MSG_FASTOPEN, 0)]])?),
        (libc::SYS_sendmsg, rules([[has(2, libc::MSG_FASTOPEN, 0)]])?),
        (
            libc::SYS_sendmmsg,
            rules([[has(3, libc::MSG_FASTOPEN, 0)]])?,
        ),
        // The calling thread's own priority.
        (
            libc::SYS_getpriority,
            rules([[is(0, libc::PRIO_PROCESS), is(1, 0)]])?,
        ),
        (
            libc::SYS_setpriority,
            rules([[is(0, libc::PRIO_PROCESS), is(1, 0)]])?,
        ),
        // Signals for itself alone.
        (libc::SYS_tgkill, rules([[is(0, std::process::id())]])?),
    ]);
    #[cfg(target_arch = "x86_64")]
    calls.insert(
        libc::SYS_open,
        rules([[has(1, WRITING_FLAGS, libc::O_RDONLY)]])?,
    );
    Ok(calls)
}

/// Datagram sockets of the default protocol: no TCP, nothing raw, no netlink.
fn sockets() -> Result<Vec<SeccompRule>, BackendError> {
    rules(FAMILIES.map(|family| {
        [
            is(0, family),
            has(1, SOCKET_TYPE_BITS, libc::SOCK_DGRAM),
            is(2, 0),
        ]
    }))
}

fn socket_options() -> Result<Vec<SeccompRule>, BackendError> {
    rules(SOCKET_OPTIONS.map(|(level, option)| [is(1, level), is(2, option)]))
}

fn descriptor_commands() -> Result<Vec<SeccompRule>, BackendError> {
    rules(DESCRIPTOR_COMMANDS.map(|command| [is(1, command)]))
}

/// What one argument must be.
type Condition = Result<SeccompCondition, BackendError>;

/// That the argument in this place, from 0, is this.
fn is(place: u8, value: impl Into<i64>) -> Condition {
    condition(place, SeccompCmpOp::Eq, value.into())
}

/// That of the bits of the mask those of the value are set, and no others.
fn has(place: u8, mask: c_int, value: c_int) -> Condition {
    let mask = u64::from(mask.cast_unsigned());
    condition(place, SeccompCmpOp::MaskedEq(mask), value.into())
}

/// All arguments looked at are of 32 bits to the kernel, whatever stands before them in their
/// registers.
fn condition(place: u8, is: SeccompCmpOp, value: i64) -> Condition {
    SeccompCondition::new(place, SeccompCmpArgLen::Dword, is, value.cast_unsigned())
}

/// A call passes where all conditions of one of these hold.
fn rules<const COUNT: usize>(
    any: impl IntoIterator<Item = [Condition; COUNT]>,
) -> Result<Vec<SeccompRule>, BackendError> {
    let rule = |all: [Condition; COUNT]| {
        let all = all.into_iter().collect::<Result<_, _>>();
        SeccompRule::new(all?)
    };
    any.into_iter().map(rule).collect()
}
