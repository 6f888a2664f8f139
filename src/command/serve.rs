//! `hailmary serve`: a bus, from its configuration to its last word.

use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, RwLock};
use std::thread;
use std::time::Duration;

use anyhow::{Context, bail};
use signal_hook::consts::{SIGINT, SIGTERM};
use tracing::{Level, info, warn};

use crate::admin::{self, Admin};
use crate::bus::address::Address;
use crate::bus::{self, Registrar, Settings};
use crate::canary::{Board, Canary, Stream};
use crate::config::Plan;
use crate::confine::{Confinement, Mode, Needs, confine};
use crate::ledger::Totals;
use crate::logging::{self, Format};
use crate::net::account::Account;
use crate::net::egress::Egress;
use crate::net::event_loop::{self, EventLoop, Parts, Shared};
use crate::net::listener::{ListenAddress, Listener};
use crate::net::sys;
use crate::reload::{Bell, Opened, Reloader, Requests, Running, Source, open_streams};
use crate::state::{ListenerInfo, Phase, State};

/// The variable of the environment that says how far a bus is confined.
pub(super) const CONFINE: &str = "HAILMARY_CONFINE";

/// The right to reach files of others.
const OVERRIDE: &str = "CAP_DAC_OVERRIDE";

/// Runs a bus: with no flags at all, a useful one on loopback.
///
/// SIGTERM and SIGINT stop it. SIGHUP has it read its configuration anew: where that is right it
/// is put in use as a whole, without a loss, and where it is not the old one stays in use.
#[derive(Debug, clap::Args)]
pub struct Serve {
    /// Configuration, in TOML. Read again at each SIGHUP.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Listen here and not where the configuration says: HOST:PORT, udp://HOST:PORT or
    /// unix:///PATH.
    #[arg(long, value_name = "ADDR")]
    listen: Vec<String>,
    /// Serve metrics and health here: HOST:PORT, or off.
    #[arg(long, value_name = "ADDR|off")]
    admin: Option<String>,
    /// How much the bus insists on giving up what it does not need once its sockets are bound, in
    /// place of what the configuration says.
    #[arg(long, value_enum, value_name = "MODE", env = CONFINE)]
    confine: Option<Mode>,
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
    /// A [`ConfigError`](crate::config::ConfigError) where the configuration is at fault, else
    /// what the system refused.
    pub fn run(&self) -> anyhow::Result<()> {
        // Before all else: from here on a SIGHUP does not end the process.
        let reloads = Requests::listen().context("cannot listen for signals")?;
        let admin = self.admin.as_deref();
        let source = Source::new(self.config.clone(), &self.listen, admin).confined(self.confine);
        let (config, plan) = source.read()?;
        if self.print_config {
            io::stdout().write_all(toml::to_string(&config)?.as_bytes())?;
            return Ok(());
        }
        logging::start(self.log_format, self.log_level);
        serve(plan, source, reloads)
    }
}

/// Runs a bus till SIGTERM or SIGINT. Its plan was read from the source, and is again when a reload
/// is asked for.
fn serve(plan: Plan, source: Source, reloads: (Arc<Requests>, Bell)) -> anyhow::Result<()> {
    Bound::open(plan, source)?.run(reloads)
}

/// A bus whose sockets are bound, and which has given up what it needs no more. No thread was
/// started for it yet: those that are from here on are as confined as the one that opened it.
pub(super) struct Bound {
    plan: Plan,
    source: Source,
    stops: Vec<UnixStream>,
    opened: Vec<Opened>,
    egress: Vec<Egress>,
    admin: Option<admin::Bound>,
    streams: Option<Vec<Stream>>,
    confinement: Confinement,
}

impl Bound {
    /// Binds all sockets, then confines the process.
    ///
    /// # Errors
    ///
    /// What the system refuses.
    pub(super) fn open(plan: Plan, source: Source) -> anyhow::Result<Self> {
        let stops = (0..plan.workers).map(|_| stop_signals());
        let stops: io::Result<Vec<_>> = stops.collect();
        let stops = stops.context("cannot listen for signals")?;
        raise_descriptor_limit();
        let opened = plan.listen.iter().map(|wanted| Opened::open(wanted, &plan));
        let opened = opened.collect::<anyhow::Result<Vec<_>>>()?;
        let (egress, admin) = open_others(&plan)?;
        let streams = canary_streams(&plan, &opened)?;
        // After all that takes rights, and before any thread is started.
        let confinement = confine(plan.confine, needs(&plan, &source))?;
        warn_of_owners(&plan, &confinement);
        Ok(Self {
            plan,
            source,
            stops,
            opened,
            egress,
            admin,
            streams,
            confinement,
        })
    }

    /// Runs it till it is stopped.
    ///
    /// # Errors
    ///
    /// What the system refuses, and a data thread that fails.
    pub(super) fn run(self, (requests, bell): (Arc<Requests>, Bell)) -> anyhow::Result<()> {
        let Self {
            plan,
            source,
            stops,
            mut opened,
            egress,
            admin,
            streams,
            confinement,
        } = self;
        logging::write().context("cannot start a thread to log by")?;
        // Fails once, here, on a system without randomness, so that it never does later.
        random().context("the system has no randomness")?;
        let board = Arc::default();
        let probes = probes(streams, &board)?;
        let workers = stops.len();
        let bus = open_bus(&plan, probes.as_ref(), workers);
        let (forwarders, publishers): (Vec<_>, Vec<_>) = bus.workers.into_iter().unzip();
        let infos = opened.iter_mut().map(listener_info).collect();
        let mut state = State::new(bus.registrar.bus(), infos, workers);
        state.canary = board;
        state.confinement = confinement;
        let state = Arc::new(state);
        event_loop::show_all(&state, &bus.directory);
        let threads = forwarders.into_iter().zip(stops).zip(egress).enumerate();
        let parts = threads.map(|(worker, ((forwarder, stop), egress))| Parts {
            worker,
            forwarder,
            listeners: take_share(&mut opened, worker),
            egress,
            stop,
            linger: plan.linger,
            state: Arc::clone(&state),
        });
        let loops = event_loops(parts.collect(), bus.registrar);
        let loops = loops.context("cannot make the data threads' loops")?;
        requests.offer(plan.admin_reload);
        let admin = admin
            .map(|bound| Admin::start(bound, Arc::clone(&state), Arc::clone(&requests)))
            .transpose()?;

        say_addresses(&state, admin.as_ref());
        state.set_phase(Phase::Ready);
        let threads = loops.iter().map(EventLoop::orders);
        let threads = threads.collect::<io::Result<_>>()?;
        let listening = opened.iter().map(|one| (&one.wanted, one.address.clone()));
        let running = Running::new(plan, Arc::clone(&state), threads, listening, probes);
        let reloader = Reloader::start(source, running, requests, bell, Arc::clone(&state))
            .context("cannot start a thread to reload by")?;
        let shared = Shared {
            directory: RwLock::new(bus.directory),
            publishers: publishers.into_iter().map(Mutex::new).collect(),
        };
        run(loops, &shared)?;
        drop(reloader);
        say_totals(&state, admin.map(Admin::stop));
        Ok(())
    }
}

/// The bus proper, with the canary's part in its settings.
fn open_bus(plan: &Plan, probes: Option<&(Canary, Vec<Stream>)>, workers: usize) -> bus::Parts {
    let settings = with_probes(&plan.settings, probes);
    let source_of_bytes = Box::new(|| random().unwrap_or_else(|_| std::process::abort()));
    bus::open(&settings, workers, Duration::ZERO, source_of_bytes)
}

/// Tells of what a bus that was root's can no longer do, though nothing of it fails before traffic
/// comes or the bus stops.
fn warn_of_owners(plan: &Plan, confinement: &Confinement) {
    let subscribers = &plan.settings.subscribers;
    let is_unix = |address: &Address| matches!(address, Address::Unix(_));
    let uses_paths = subscribers.iter().any(|one| is_unix(&one.address))
        || plan
            .listen
            .iter()
            .any(|it| matches!(it, ListenAddress::Unix(_)));
    let was_mighty = confinement.dropped().iter().any(|it| it == OVERRIDE);
    if uses_paths && was_mighty {
        warn!(
            "CAP_DAC_OVERRIDE is dropped: Unix sockets of other users are reached only where their \
             modes let this user write, and those in other users' directories stay after a stop"
        );
    }
}

fn raise_descriptor_limit() {
    if let Err(error) = sys::raise_descriptor_limit() {
        // It works with the old one, for fewer subscribers over Unix sockets.
        warn!(%error, "cannot raise the limit of open files");
    }
}

/// What the bus still needs of the host's files once its sockets are bound.
fn needs<'a>(plan: &'a Plan, source: &'a Source) -> Needs<'a> {
    Needs {
        configuration: source.file(),
        listen: &plan.listen,
    }
}

/// The sockets besides the listeners' for which it takes rights, or may: each data thread's to send
/// by, and the admin's.
fn open_others(plan: &Plan) -> anyhow::Result<(Vec<Egress>, Option<admin::Bound>)> {
    let egress = (0..plan.workers).map(|_| Egress::open(plan.send_buffer_bytes));
    let egress = egress.collect::<io::Result<_>>();
    let egress = egress.context("cannot open a socket to send by")?;
    Ok((egress, plan.admin.map(admin::Bound::bind).transpose()?))
}

/// The loops of all data threads: the first one has the registrar.
fn event_loops(parts: Vec<Parts>, registrar: Registrar) -> anyhow::Result<Vec<EventLoop>> {
    let mut parts = parts.into_iter();
    let first = parts.next().context("there is at least one worker")?;
    let mut loops = vec![EventLoop::with_registrar(first, registrar)?];
    for parts in parts {
        let first = loops.first().context("the first was made above")?;
        let other = first.beside(parts)?;
        loops.push(other);
    }
    Ok(loops)
}

/// Runs all data threads, the first one in this very thread, till they stop.
fn run(loops: Vec<EventLoop>, shared: &Shared) -> anyhow::Result<()> {
    let work = |event_loop: EventLoop| move || Ok(event_loop.run(shared)?);
    let mut works = loops.into_iter().map(work);
    let first = works.next().context("there is at least one worker")?;
    run_together(first, works)
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

/// The canary's streams to these listeners, if the plan has one.
fn canary_streams(plan: &Plan, listeners: &[Opened]) -> anyhow::Result<Option<Vec<Stream>>> {
    let addresses = listeners.iter().map(|listener| &listener.address);
    let streams = plan
        .canary_interval
        .map(|_| open_streams(addresses.enumerate()));
    streams.transpose()
}

/// A canary for these streams, if there are any.
fn probes(
    streams: Option<Vec<Stream>>,
    board: &Arc<Board>,
) -> anyhow::Result<Option<(Canary, Vec<Stream>)>> {
    let start = |streams| {
        let canary = Canary::start(Arc::clone(board)).context("cannot open a canary")?;
        Ok((canary, streams))
    };
    streams.map(start).transpose()
}

/// These settings with a canary's part in them.
fn with_probes(settings: &Settings, probes: Option<&(Canary, Vec<Stream>)>) -> Settings {
    let mut settings = settings.clone();
    if let Some((canary, streams)) = probes {
        settings.own_sources = streams.iter().map(Stream::source).cloned().collect();
        settings.subscribers.push(canary.subscriber());
    }
    settings
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

/// One data thread's sockets.
fn take_share(opened: &mut [Opened], worker: usize) -> Vec<Option<Listener>> {
    let own = |listener: &mut Opened| listener.sockets.get_mut(worker).and_then(Option::take);
    opened.iter_mut().map(own).collect()
}

fn listener_info(opened: &mut Opened) -> ListenerInfo {
    let handles = std::mem::take(&mut opened.handles);
    ListenerInfo::new(&opened.name, opened.buffer, Account::open(handles))
}

fn say_addresses(state: &State, admin: Option<&Admin>) {
    for listener in state.listeners() {
        info!(address = listener.name, "listening");
    }
    if let Some(admin) = admin {
        info!(address = %format_args!("http://{}", admin.address()), "admin listening");
    }
}

/// The last word: what came, what went, what was lost.
fn say_totals(state: &State, taken: Option<Totals>) {
    let mut totals = taken.unwrap_or_else(|| Totals::new(state.listeners().len()));
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
