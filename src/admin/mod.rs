//! The admin thread: metrics, health and an API over HTTP.
//!
//! It reads what the data thread shows and never touches it, and its own clients are bounded:
//! so many connections, so long, with so large a head. Whoever is over is cut off; the data
//! thread does not notice. The one thing that it passes on is the wish for a reload, where the
//! configuration says so.

mod api;
mod metrics;
mod reload;
mod topics;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context;
use axum::Router;
use axum::extract::State as Shared;
use axum::http::{StatusCode, header};
use axum::response::{Html, IntoResponse};
use axum::routing::{get, post};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Semaphore, oneshot};
use tokio::time::{sleep, timeout};
use tower_service::Service;

use crate::ledger::Totals;
use crate::net::sys;
use crate::reload::Requests;
use crate::state::{Phase, State};
use crate::topics_seen;

/// Connections at once: a few scrapers and people. Further ones are closed at once.
const CONNECTIONS_MAX: usize = 64;

/// Bytes of a request's head: what a browser or scraper sends is a tenth of it.
const HEAD_BYTES_MAX: usize = 8_192;

/// How long a client may take to send a request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a connection may last, idle or not. Scrapers reconnect.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(60);

/// How long to wait before accepting again where the system has no descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long a turn of the data thread may take before the bus is called stuck.
const STUCK_AFTER: Duration = Duration::from_secs(2);

/// Where the admin is to serve, bound already.
#[derive(Debug)]
pub struct Bound {
    listener: TcpListener,
    address: SocketAddr,
}

impl Bound {
    /// Binds the address. Whoever connects waits till the admin serves.
    ///
    /// # Errors
    ///
    /// Where the address cannot be had.
    pub fn bind(address: SocketAddr) -> anyhow::Result<Self> {
        let bind = || {
            let listener = TcpListener::bind(address)?;
            listener.set_nonblocking(true)?;
            let address = listener.local_addr()?;
            Ok(Self { listener, address })
        };
        bind().map_err(|error: io::Error| {
            anyhow::anyhow!("admin cannot listen on {address}: {error}")
        })
    }
}

/// The admin thread.
#[derive(Debug)]
pub struct Admin {
    address: SocketAddr,
    desk: Arc<Desk>,
    stop: oneshot::Sender<()>,
    thread: JoinHandle<()>,
}

impl Admin {
    /// Serves from a thread of its own.
    ///
    /// # Errors
    ///
    /// Where a thread cannot be had.
    pub fn start(bound: Bound, state: Arc<State>, reloads: Arc<Requests>) -> anyhow::Result<Self> {
        let Bound { listener, address } = bound;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("cannot start the admin")?;
        let desk = Arc::new(Desk::new(state, reloads));
        let (stop, stopped) = oneshot::channel();
        let router = router(Arc::clone(&desk));
        let thread = std::thread::Builder::new()
            .name("admin".to_owned())
            .spawn(move || {
                // Events go before pages: of ten thousand subscribers one takes a while.
                sys::give_way();
                runtime.block_on(async {
                    tokio::select! {
                        _ = stopped => {}
                        () = accept(listener, router) => {}
                    }
                });
                runtime.shutdown_background();
            })?;
        Ok(Self {
            address,
            desk,
            stop,
            thread,
        })
    }

    /// Where it listens, with the real port.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Stops serving and gives back the books.
    #[must_use]
    pub fn stop(self) -> Totals {
        // Both fail only where the thread has ended already.
        let _ = self.stop.send(());
        let _ = self.thread.join();
        let empty = Totals::new(0);
        std::mem::replace(&mut self.desk.totals(), empty)
    }
}

/// What the handlers share.
#[derive(Debug)]
struct Desk {
    state: Arc<State>,
    reloads: Arc<Requests>,
    /// Everything counted since the start.
    totals: Mutex<Totals>,
    /// The topics of all events since the start.
    topics_seen: Mutex<topics_seen::Totals>,
}

impl Desk {
    fn new(state: Arc<State>, reloads: Arc<Requests>) -> Self {
        let totals = Totals::new(state.listeners().len());
        Self {
            totals: Mutex::new(totals),
            topics_seen: Mutex::default(),
            state,
            reloads,
        }
    }

    /// Everything counted until now.
    fn totals(&self) -> MutexGuard<'_, Totals> {
        let mut totals = self.totals.lock().unwrap_or_else(PoisonError::into_inner);
        self.state.mailbox.take_into(&mut totals);
        totals
    }

    /// The topics seen until now.
    fn topics_seen(&self) -> MutexGuard<'_, topics_seen::Totals> {
        let totals = self.topics_seen.lock();
        let mut totals = totals.unwrap_or_else(PoisonError::into_inner);
        self.state.topics_seen.take_into(&mut totals);
        totals
    }
}

fn router(desk: Arc<Desk>) -> Router {
    Router::new()
        .route("/", get(|| async { Html(include_str!("page.html")) }))
        .route("/metrics", get(metrics))
        .route("/-/healthy", get(healthy))
        .route("/-/ready", get(ready))
        .route("/-/reload", post(reload::reload))
        .route("/api/v1/status", get(api::status))
        .route("/api/v1/subscribers", get(api::subscribers))
        .route("/api/v1/topics", get(topics::topics))
        .with_state(desk)
}

async fn metrics(Shared(desk): Shared<Arc<Desk>>) -> impl IntoResponse {
    let text = metrics::render(&desk.totals().counts, &desk.state);
    let content_type = "text/plain; version=0.0.4; charset=utf-8";
    ([(header::CONTENT_TYPE, content_type)], text)
}

async fn healthy(Shared(desk): Shared<Arc<Desk>>) -> impl IntoResponse {
    match desk.state.turning_for() {
        since if since > STUCK_AFTER => (
            StatusCode::SERVICE_UNAVAILABLE,
            format!("stuck for {} s\n", since.as_secs()),
        ),
        _ => (StatusCode::OK, "healthy\n".to_owned()),
    }
}

async fn ready(Shared(desk): Shared<Arc<Desk>>) -> (StatusCode, &'static str) {
    match desk.state.phase() {
        Phase::Starting => (StatusCode::SERVICE_UNAVAILABLE, "starting\n"),
        Phase::Ready => (StatusCode::OK, "ready\n"),
        Phase::Stopping => (StatusCode::SERVICE_UNAVAILABLE, "stopping\n"),
    }
}

/// Accepts for ever. No error of one connection, nor a lack of descriptors, ends it.
async fn accept(listener: TcpListener, router: Router) {
    let Ok(listener) = tokio::net::TcpListener::from_std(listener) else {
        return;
    };
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                if let Ok(permit) = Arc::clone(&permits).try_acquire_owned() {
                    let router = router.clone();
                    tokio::spawn(async move {
                        serve(stream, peer, router).await;
                        drop(permit);
                    });
                }
            }
            Err(_) => sleep(ACCEPT_PAUSE).await,
        }
    }
}

/// Who asks: added to each request.
#[derive(Clone, Copy, Debug)]
struct Client(SocketAddr);

/// Answers the requests of one connection, whatever carries it, as the admin does.
pub async fn converse<S>(stream: S, client: SocketAddr, state: Arc<State>, reloads: Arc<Requests>)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let router = router(Arc::new(Desk::new(state, reloads)));
    serve(stream, client, router).await;
}

async fn serve<S>(stream: S, client: SocketAddr, router: Router)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let service = service_fn(move |mut request: hyper::Request<Incoming>| {
        request.extensions_mut().insert(Client(client));
        router.clone().call(request)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service);
    // What a client does wrong is the client's: nothing is to be done about either error.
    let _ = timeout(CONNECTION_TIMEOUT, connection).await;
}

#[cfg(test)]
mod tests;
