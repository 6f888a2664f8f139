//! HTTP requests of any bytes for the admin, over a connection in memory: every answer is one of
//! those that are offered, none is a server's error, a client elsewhere never gets as far as to
//! have a reload asked for, and what a connection makes the admin hold is bounded.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};

use hailmary::admin::converse;
use hailmary::reload::{Bell, Requests};
use hailmary::state::{Phase, State};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Bytes under way in either direction.
const PIPE_BYTES: usize = 4_096;

/// What one connection makes the admin hold, beside its answers: hyper's buffers of 8 KiB each,
/// the pages, the runtime, and the books that are made for it here.
const BYTES_MAX: u64 = 4 << 20;

/// Answers of one connection that are read: those to the shortest requests that fit an input.
const ANSWERS_BYTES_MAX: usize = 16 << 20;

/// Waiting requests for a reload: all there may be, so that a further one is told at once.
const WAITING: usize = 64;

/// What is said to who asks for a reload and may, in this state.
const PERMITTED: &str = "too many wait already";

/// See the module. The first byte says whether the client is on this host.
pub fn run(data: &[u8]) {
    let Some((first, requests)) = data.split_first() else {
        return;
    };
    let is_local = first % 2 == 0;
    let client = match is_local {
        true => SocketAddr::from(([127, 0, 0, 1], 1_000)),
        false => SocketAddr::from(([192, 0, 2, 1], 1_000)),
    };
    let reloads = reloads();
    let mut answers = Vec::new();
    crate::within(BYTES_MAX + answers_bytes(requests), || {
        answers = ask(requests, client, reloads);
    });
    assert!(answers.len() <= ANSWERS_BYTES_MAX);
    check(&String::from_utf8_lossy(&answers), is_local);
}

/// How much the answers may take: the longest has less than 64 KiB, and a request no less than
/// these bytes.
fn answers_bytes(requests: &[u8]) -> u64 {
    const REQUEST_BYTES_MIN: u64 = 16;
    (1 + requests.len() as u64 / REQUEST_BYTES_MIN) * (64 << 10) * 2
}

fn ask(requests: &[u8], client: SocketAddr, reloads: &Arc<Requests>) -> Vec<u8> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        // Time goes on only where everybody waits for it, and then at once.
        .start_paused(true)
        .build()
        .expect("a runtime");
    let state = Arc::new(State::new(7, Vec::new(), 1));
    state.put_series(&["other".into(), "indexer".into()]);
    state.put_topic_labels(&["other".into()]);
    state.set_phase(Phase::Ready);
    runtime.block_on(async {
        let (near, far) = tokio::io::duplex(PIPE_BYTES);
        let (mut reader, mut writer) = tokio::io::split(near);
        let serve = converse(far, client, state, Arc::clone(reloads));
        let write = async {
            // The admin hangs up on nonsense.
            let _ = writer.write_all(requests).await;
            let _ = writer.shutdown().await;
        };
        let read = async {
            let mut answers = Vec::new();
            let _ = reader.read_to_end(&mut answers).await;
            answers
        };
        let ((), (), answers) = tokio::join!(serve, write, read);
        answers
    })
}

fn check(answers: &str, is_local: bool) {
    const STATUSES: [&str; 10] = [
        "100", "200", "400", "403", "404", "405", "414", "431", "501", "503",
    ];
    for answer in answers.split("HTTP/1.1 ").skip(1) {
        let status = answer.get(..3).unwrap_or(answer);
        assert!(STATUSES.contains(&status), "{answer}");
    }
    assert!(answers.is_empty() || answers.starts_with("HTTP/1."));
    assert!(is_local || !answers.contains(PERMITTED), "{answers}");
}

/// Where reloads are offered, and so many wait that no further one does.
fn reloads() -> &'static Arc<Requests> {
    static REQUESTS: OnceLock<(Arc<Requests>, Bell)> = OnceLock::new();
    let (requests, _) = REQUESTS.get_or_init(|| {
        let (requests, bell) = Requests::listen().expect("a socket");
        requests.offer(true);
        for _ in 0..WAITING {
            assert!(requests.ask().is_some());
        }
        assert!(requests.ask().is_none());
        (requests, bell)
    });
    requests
}
