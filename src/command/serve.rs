//! `hailmary serve`: a bus, from its configuration to its last word.

use std::io::{self, Write};
use std::iter;
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, RwLock};
use std::thread;
use std::time::Duration;

use anyhow::{Context, bail};
use signal_hook::consts::{SIGINT, SIGTERM};
use toml::Spanned;
use tracing::{Level, info, warn};

use crate::admin::Admin;
use crate::bus::access::Access;
use crate::bus::{self, Registrar};
use crate::canary::Canary;
use crate::config::{Config, ConfigError, Plan};
use crate::ledger::Totals;
use crate::logging::{self, Format};
use crate::net::account::Account;
use crate::net::egress::Egress;
use crate::net::event_loop::{self, EventLoop, Parts, Shared};
use crate::net::listener::Listener;
use crate::net::sys::{self, Ask};
use crate::state::{ListenerInfo, Phase, State};

/// Runs a bus: with no flags at all, a useful one on loopback.
#[derive(Debug, clap::Args)]
pub struct Serve {
    /// Configuration, in TOML.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Listen here and not where the configuration says: HOST:PORT, udp://HOST:PORT or
    /// unix:///PATH.
    #[arg(long, value_name = "ADDR")]
    listen: Vec<String>,
    /// Serve metrics and health here: HOST:PORT, or off.
    #[arg(long, value_name = "ADDR|off")]
    admin: Option<String>,
    /// Print the effective configuration and do nothing.
    #[arg(long)]
    print_config: bool,
    /// How log lines look.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    log_format: Format,
    /// What is logged: error, warn, info, debug or trace.
    #[arg(long, default_value_t = Level::INFO)]
    log_level: Level,
}

impl Serve {
    /// Runs till SIGTERM or SIGINT.
    ///
    /// # Errors
    ///
    /// A [`ConfigError`] where the configuration is at fault, else what the system refused.
    pub fn run(&self) -> anyhow::Result<()> {
        let (config, plan) = self.configure()?;
        if self.print_config {
            io::stdout().write_all(toml::to_string(&config)?.as_bytes())?;
            return Ok(());
        }
        logging::start(self.log_format, self.log_level);
        serve(plan)
    }

    fn configure(&self) -> Result<(Config, Plan), ConfigError> {
        let mut config = match &self.config {
            Some(file) => Config::load(file)?.0,
            None => Config::default(),
        };
        if !self.listen.is_empty() {
            (config.listen.udp, config.listen.unix) = (Vec::new(), Vec::new());
        }
        for address in &self.listen {
            match address.strip_prefix("unix://") {
                Some(path) => config.listen.unix.push(Spanned::new(0..0, path.into())),
                None => config.listen.udp.push(Spanned::new(0..0, numeric(address))),
            }
        }
        if let Some(admin) = &self.admin {
            config.listen.admin = Spanned::new(0..0, numeric(admin));
        }
        // Lines mean nothing any more where flags were put in: the file itself was checked above.
        let plan = config.check("command line", "")?;
        Ok((config, plan))
    }
}

/// HOST:PORT with the name resolved; what is no such thing is left for the check to refuse.
fn numeric(address: &str) -> String {
    let address = address.strip_prefix("udp://").unwrap_or(address);
    let resolved = address
        .to_socket_addrs()
        .ok()
        .and_then(|mut all| all.next());
    resolved.map_or(address.to_owned(), |ip: SocketAddr| ip.to_string())
}

/// Runs a bus till SIGTERM or SIGINT.
pub(super) fn serve(mut plan: Plan) -> anyhow::Result<()> {
    let stops = (0..plan.workers).map(|_| stop_signals());
    let stops: io::Result<Vec<_>> = stops.collect();
    let stops = stops.context("cannot listen for signals")?;
    if let Err(error) = sys::raise_descriptor_limit() {
        // It works with the old one, for fewer subscribers over Unix sockets.
        warn!(%error, "cannot raise the limit of open files");
    }
    let listeners = bind(&plan)?;
    // Fails once, here, on a system without randomness, so that it never does later.
    random().context("the system has no randomness")?;
    let source = Box::new(|| random().unwrap_or_else(|_| std::process::abort()));
    let canary = canary(&mut plan, listeners.first().map_or(&[], Vec::as_slice))?;
    let workers = listeners.len();
    let bus::Parts {
        directory,
        registrar,
        workers: forwarders,
    } = bus::open(&plan.settings, workers, Duration::ZERO, source);
    let (forwarders, publishers): (Vec<_>, Vec<_>) = forwarders.into_iter().unzip();
    let infos = listener_infos(&listeners)?;
    let mut state = State::new(registrar.bus(), infos, workers);
    state.canary = canary.as_ref().map(Canary::board);
    let state = Arc::new(state);
    event_loop::show_all(&state, &directory);
    let mut parts = Vec::new();
    let each = listeners.into_iter().zip(forwarders).zip(stops);
    for (worker, ((listeners, forwarder), stop)) in each.enumerate() {
        parts.push(Parts {
            worker,
            forwarder,
            listeners,
            egress: Egress::open(plan.send_buffer_bytes)
                .context("cannot open a socket to send by")?,
            stop,
            linger: plan.linger,
            state: Arc::clone(&state),
        });
    }
    let admin = plan
        .admin
        .map(|address| Admin::start(address, Arc::clone(&state)))
        .transpose()?;

    for listener in &state.listeners {
        info!(address = listener.name, "listening");
    }
    if let Some(admin) = &admin {
        info!(address = %format_args!("http://{}", admin.address()), "admin listening");
    }
    state.set_phase(Phase::Ready);
    let canary = canary.map(Canary::start).transpose()?;
    let shared = Shared {
        directory: RwLock::new(directory),
        publishers: publishers.into_iter().map(Mutex::new).collect(),
    };
    run(parts, registrar, &shared)?;
    drop(canary);
    say_totals(&state, admin.map(Admin::stop));
    Ok(())
}

/// Runs all data threads, the first one in this very thread, till they stop.
fn run(parts: Vec<Parts>, registrar: Registrar, shared: &Shared) -> anyhow::Result<()> {
    let mut parts = parts.into_iter();
    let first = parts.next().context("there is at least one worker")?;
    let first = EventLoop::with_registrar(first, registrar)?;
    let others = parts
        .map(|parts| first.beside(parts))
        .collect::<io::Result<Vec<_>>>()?;
    let work = |event_loop: EventLoop| move || Ok(event_loop.run(shared)?);
    run_together(work(first), others.into_iter().map(work))
}

/// Runs the first here and the others in threads of their own. The end of one is the end of all.
fn run_together<W>(first: W, others: impl Iterator<Item = W>) -> anyhow::Result<()>
where
    W: FnOnce() -> anyhow::Result<()> + Send,
{
    thread::scope(|scope| {
        let all = StopAll;
        let mut threads = Vec::new();
        for (work, number) in others.zip(1..) {
            let thread = thread::Builder::new().name(format!("worker-{number}"));
            let work = || {
                let _all = StopAll;
                work()
            };
            threads.push(thread.spawn_scoped(scope, work)?);
        }
        let mut result = first();
        drop(all);
        for thread in threads {
            let ended = thread.join();
            result = result.and(ended.unwrap_or_else(|_| bail!("a worker panicked")));
        }
        result.context("a worker failed")
    })
}

/// Stops all data threads when it goes, in whatever way its own one ends: the kernel would go on
/// dealing datagrams out to a socket that nobody reads.
struct StopAll;

impl Drop for StopAll {
    fn drop(&mut self) {
        // It cannot fail for a signal that exists.
        let _ = signal_hook::low_level::raise(SIGTERM);
    }
}

/// A canary for these listeners, if the plan has one, made known to the core.
fn canary(plan: &mut Plan, listeners: &[Listener]) -> anyhow::Result<Option<Canary>> {
    let Some(interval) = plan.canary_interval else {
        return Ok(None);
    };
    let canary = Canary::open(listeners, interval, || {
        let [a, b, c, d, e, f, g, h, ..] = random()?;
        Ok(u64::from_le_bytes([a, b, c, d, e, f, g, h]).max(1))
    });
    let canary = canary.context("cannot open a canary")?;
    plan.settings.own_sources = canary.sources();
    plan.settings.subscribers.push(canary.subscriber());
    Ok(Some(canary))
}

fn random() -> Result<[u8; 16], getrandom::Error> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes)?;
    Ok(bytes)
}

/// A stream that becomes readable when the process is to stop.
fn stop_signals() -> io::Result<UnixStream> {
    let (reader, writer) = UnixStream::pair()?;
    for signal in [SIGTERM, SIGINT] {
        signal_hook::low_level::pipe::register(signal, writer.try_clone()?)?;
    }
    Ok(reader)
}

/// What the rules of access want to know of each datagram.
fn ask(access: &Access) -> Ask {
    match access.names_users() {
        true => Ask::Credentials,
        false => Ask::Source,
    }
}

/// The sockets of each worker: the first has all, the others their own ones on its UDP ports. If
/// there are no such ports there is one worker.
fn bind(plan: &Plan) -> anyhow::Result<Vec<Vec<Listener>>> {
    let mut listeners = Vec::new();
    for address in &plan.listen {
        let mut listener = Listener::bind(address, plan.receive_buffer_bytes)?;
        let ask = listener.set_ask(ask(&plan.settings.access));
        ask.context("cannot have the system tell who sends over a Unix socket")?;
        let buffer = listener.buffer();
        if buffer.granted < buffer.wanted {
            warn!(
                address = listener.name(),
                wanted = buffer.wanted,
                granted = buffer.granted,
                "the receive buffer is smaller than wanted: raise net.core.rmem_max, \
                 or give this program CAP_NET_ADMIN"
            );
        }
        listeners.push(listener);
    }
    let mut others = Vec::new();
    for _ in 1..plan.workers {
        let shared = listeners.iter().filter_map(|l| l.share().transpose());
        let shared = shared.collect::<Result<Vec<_>, _>>()?;
        if !shared.is_empty() {
            others.push(shared);
        }
    }
    Ok(iter::once(listeners).chain(others).collect())
}

fn listener_infos(workers: &[Vec<Listener>]) -> io::Result<Vec<ListenerInfo>> {
    let info = |(index, listener): (usize, &Listener)| {
        let shared = || workers.iter().filter_map(|listeners| listeners.get(index));
        let handles = shared().map(|listener| listener.as_fd().try_clone_to_owned());
        let handles: Vec<_> = handles.collect::<io::Result<_>>()?;
        let buffers = shared().map(Listener::buffer);
        Ok(ListenerInfo {
            name: listener.name().to_owned(),
            buffer: buffers
                .min_by_key(|buffer| buffer.granted)
                .unwrap_or(listener.buffer()),
            account: Account::open(handles),
        })
    };
    let all = workers.iter().take(1).flatten();
    all.enumerate().map(info).collect()
}

/// The last word: what came, what went, what was lost.
fn say_totals(state: &State, taken: Option<Totals>) {
    let mut totals = taken.unwrap_or_else(|| Totals::new(state.listeners.len()));
    state.mailbox.take_into(&mut totals);
    let counts = &totals.counts;
    info!(
        frames = counts
            .listeners
            .iter()
            .map(|listener| listener.frames)
            .sum::<u64>(),
        dropped_frames = counts.dropped_frames.iter().sum::<u64>(),
        dropped_by_kernel = state
            .accounts()
            .flatten()
            .map(|account| account.drops)
            .sum::<u64>(),
        lost_before_the_bus = counts.events.lost,
        events = counts.events.events,
        unmatched = counts.events.unmatched,
        copies = counts.events.copies,
        sent = counts
            .series
            .iter()
            .map(|series| series.events)
            .sum::<u64>(),
        dropped = counts
            .series
            .iter()
            .flat_map(|series| series.dropped)
            .sum::<u64>(),
        "stopped"
    );
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn till_stopped(mut stop: UnixStream) -> anyhow::Result<()> {
        stop.read_exact(&mut [0])?;
        Ok(())
    }

    #[test]
    fn a_worker_that_panics_stops_the_others() {
        for panicking in 0..3 {
            let stops: Vec<_> = (0..3).map(|_| stop_signals().unwrap()).collect();
            let work = |(number, stop)| {
                move || match number == panicking {
                    true => panic!("on purpose"),
                    false => till_stopped(stop),
                }
            };
            let mut all = stops.into_iter().enumerate().map(work);
            let first = all.next().unwrap();
            let result =
                std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run_together(first, all)));
            assert!(!matches!(result, Ok(Ok(()))), "it is told as a failure");
        }
    }
}
