//! Another configuration without a restart: read, checked and prepared beside the traffic, then
//! put in the place of the old one as a whole, or not at all.
//!
//! A thread of its own takes the requests: SIGHUP, and the admin's `POST /-/reload`. It sleeps in
//! between. Those that come while a reload is under way are answered by one more. It does all that
//! can fail before the first data thread hears of it; whatever does fail leaves the configuration
//! that is in use as it is, and the reason is told in the log, by the metric and by the API.

mod running;
mod sockets;
mod source;

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use signal_hook::consts::SIGHUP;
use tokio::sync::oneshot;
use tracing::{error, info};

use crate::config::ConfigError;
use crate::state::State;

pub use running::{Running, Summary};
pub use sockets::{Opened, open_streams};
pub use source::Source;

/// Who may wait for the end of a reload: as many as the admin has connections.
const WAITING_MAX: usize = 64;

/// How long after one reload the next may follow: so a storm of requests costs little, and fills
/// no log.
const PAUSE: Duration = Duration::from_millis(100);

/// How long the end waits for a reload that is under way. It may read from a disk that hangs.
const STOP_PATIENCE: Duration = Duration::from_secs(1);

/// What is said of a file or directory that is denied, and that may be why.
const GIVEN_UP: &str = "its user has no right to it, or its directory is another than when the bus \
                        started, which then gave up all others: that takes a restart";

/// What became of a reload. Its [`label`](Outcome::label) is the metric's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// What was read is in use.
    Ok,
    /// What was in use before still is.
    Failed,
}

impl Outcome {
    /// Both, in the order of their discriminants.
    pub const ALL: [Outcome; 2] = [Outcome::Ok, Outcome::Failed];

    /// The outcome as a label.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Outcome::Ok => "ok",
            Outcome::Failed => "failed",
        }
    }
}

/// Why a configuration was not put in use.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// There is nothing to read.
    #[error("there is no file to read: the bus was started without --config")]
    NoFile,
    /// It says what is impossible.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// It says what a running bus cannot become.
    #[error("{0}")]
    NeedsRestart(String),
    /// The system refuses something of it.
    #[error("{0:#}")]
    System(#[from] anyhow::Error),
    /// The data threads have ended.
    #[error("the bus is stopping")]
    Stopping,
}

/// One reload that is over.
#[derive(Clone, Debug)]
pub struct Reload {
    /// When it was over, in Unix time.
    pub unix_seconds: u64,
    /// What changed, or why nothing did.
    pub result: Result<String, String>,
}

impl Reload {
    /// What became of it.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        match self.result {
            Ok(_) => Outcome::Ok,
            Err(_) => Outcome::Failed,
        }
    }
}

/// What became of all reloads so far.
#[derive(Debug, Default)]
pub struct Reloads(Mutex<Books>);

#[derive(Debug, Default)]
struct Books {
    counts: [u64; Outcome::ALL.len()],
    last: Option<Reload>,
}

impl Reloads {
    /// How many ended so.
    #[must_use]
    pub fn count(&self, outcome: Outcome) -> u64 {
        let counts = self.books().counts;
        counts.get(outcome as usize).copied().unwrap_or(0)
    }

    /// The last one.
    #[must_use]
    pub fn last(&self) -> Option<Reload> {
        self.books().last.clone()
    }

    fn note(&self, result: Result<String, String>) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let reload = Reload {
            unix_seconds: now.unwrap_or_default().as_secs(),
            result,
        };
        let mut books = self.books();
        if let Some(count) = books.counts.get_mut(reload.outcome() as usize) {
            *count += 1;
        }
        books.last = Some(reload);
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What changed, or why nothing did.
type Answer = Result<String, String>;

/// Where reloads are asked for.
#[derive(Debug)]
pub struct Requests {
    /// Each byte is a request, or several. Where it is full there is one that waits already.
    bell: UnixStream,
    waiting: Mutex<Vec<oneshot::Sender<Answer>>>,
    is_offered: AtomicBool,
    is_over: AtomicBool,
}

/// Where requests are heard.
#[derive(Debug)]
pub struct Bell(UnixStream);

impl Requests {
    /// From here on a SIGHUP asks for a reload, and does not end the process.
    ///
    /// # Errors
    ///
    /// What the system refuses.
    pub fn listen() -> io::Result<(Arc<Self>, Bell)> {
        let (reader, writer) = UnixStream::pair()?;
        writer.set_nonblocking(true)?;
        signal_hook::low_level::pipe::register(SIGHUP, writer.try_clone()?)?;
        let requests = Self {
            bell: writer,
            waiting: Mutex::default(),
            is_offered: AtomicBool::new(false),
            is_over: AtomicBool::new(false),
        };
        Ok((Arc::new(requests), Bell(reader)))
    }

    /// Asks for a reload. What it comes to comes back, or is cut off where the bus stops. None
    /// where too many wait.
    #[must_use]
    pub fn ask(&self) -> Option<oneshot::Receiver<Answer>> {
        let (answer, answered) = oneshot::channel();
        let mut waiting = self.waiting();
        if waiting.len() >= WAITING_MAX || self.is_over.load(Ordering::Acquire) {
            return None;
        }
        waiting.push(answer);
        drop(waiting);
        self.ring();
        Some(answered)
    }

    /// Whether the admin offers reloads.
    #[must_use]
    pub fn is_offered(&self) -> bool {
        self.is_offered.load(Ordering::Relaxed)
    }

    /// Says whether the admin is to offer reloads.
    pub fn offer(&self, is_offered: bool) {
        self.is_offered.store(is_offered, Ordering::Relaxed);
    }

    fn ring(&self) {
        // Where it is full it has been rung.
        let _ = (&self.bell).write(&[0]);
    }

    fn waiting(&self) -> MutexGuard<'_, Vec<oneshot::Sender<Answer>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Bell {
    /// Sleeps till somebody asks, and takes all who have. None when all is over.
    fn wait(&mut self, requests: &Requests) -> Option<Vec<oneshot::Sender<Answer>>> {
        loop {
            match self.0.read(&mut [0; 4_096]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // It has no other end to lose: the requests hold it.
                Ok(0) | Err(_) => return None,
                Ok(_) if requests.is_over.load(Ordering::Acquire) => return None,
                // After the bytes: who asks from here on rings again.
                Ok(_) => return Some(std::mem::take(&mut requests.waiting())),
            }
        }
    }
}

/// The thread that reloads. It ends when this is dropped.
#[derive(Debug)]
pub struct Reloader {
    requests: Arc<Requests>,
    ended: Receiver<()>,
}

impl Reloader {
    /// Starts it.
    ///
    /// # Errors
    ///
    /// Where the system has no thread to give.
    pub fn start(
        source: Source,
        mut running: Running,
        requests: Arc<Requests>,
        mut bell: Bell,
        state: Arc<State>,
    ) -> io::Result<Self> {
        let (end, ended) = mpsc::sync_channel(0);
        let asked = Arc::clone(&requests);
        let run = move || {
            // Gone when the thread ends, in whatever way.
            let _end = end;
            while let Some(waiting) = bell.wait(&asked) {
                let result = told(&source, &mut running, &asked);
                state.reloads.note(result.clone());
                for answer in waiting {
                    // Who has gone misses it.
                    let _ = answer.send(result.clone());
                }
                thread::sleep(PAUSE);
            }
            drop(running);
        };
        let thread = thread::Builder::new().name("reload".to_owned());
        thread.spawn(run)?;
        Ok(Self { requests, ended })
    }
}

impl Drop for Reloader {
    fn drop(&mut self) {
        self.requests.is_over.store(true, Ordering::Release);
        self.requests.ring();
        // Whoever still waits is cut off.
        self.requests.waiting().clear();
        let _ = self.ended.recv_timeout(STOP_PATIENCE);
    }
}

/// Reloads, and tells the log.
fn told(source: &Source, running: &mut Running, requests: &Requests) -> Answer {
    info!(file = source.name(), "reloading");
    match reload(source, running) {
        Ok(summary) => {
            requests.offer(running.is_offered());
            info!(
                listeners_opened = summary.listeners_opened,
                listeners_closed = summary.listeners_closed,
                subscribers_added = summary.subscribers_added,
                subscribers_changed = summary.subscribers_changed,
                subscribers_removed = summary.subscribers_removed,
                leases_revoked = summary.leases_revoked,
                "reloaded"
            );
            Ok(summary.to_string())
        }
        Err(error) => {
            error!(%error, "not reloaded: the configuration that was in use still is");
            Err(error.to_string())
        }
    }
}

fn reload(source: &Source, running: &mut Running) -> Result<Summary, ReloadError> {
    if !source.has_file() {
        return Err(ReloadError::NoFile);
    }
    let read = source.read_anew();
    let (_, plan) = read.map_err(|error| match running.is_cut_off_from(source) {
        true => ReloadError::NeedsRestart(format!("{error}: {GIVEN_UP}")),
        false => error.into(),
    })?;
    running.reload(plan)
}
