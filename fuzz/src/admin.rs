//! HTTP requests of any bytes for the admin, over a connection in memory: every answer is one of
//! those that are offered, none is a server's error, a client elsewhere never gets as far as to
//! have a reload asked for, and what a connection makes the admin hold is bounded. Of requests for
//! a reload that are put together by a tape, it is told by a table which are answered.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use hailmary::admin::converse;
use hailmary::reload::{Bell, Requests};
use hailmary::state::{Phase, State};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::tape::Tape;

/// Bytes under way in either direction.
const PIPE_BYTES: usize = 4_096;

/// What one connection makes the admin hold, beside its answers: hyper's buffers of 8 KiB each,
/// the pages, the runtime, and the books that are made for it here.
const BYTES_MAX: u64 = 4 << 20;

/// How long a client waits for its answers, by a clock that goes on only where all wait: less than
/// the admin waits for the rest of a request.
const PATIENCE: Duration = Duration::from_millis(500);

/// Answers of one connection that are read: those to the shortest requests that fit an input.
const ANSWERS_BYTES_MAX: usize = 16 << 20;

/// Waiting requests for a reload: all there may be, so that a further one is told at once.
const WAITING: usize = 64;

/// What is said to who asks for a reload and may, in this state.
const PERMITTED: &str = "too many wait already";

/// Clients, and whether they are on this host.
const CLIENTS: [(&str, bool); 10] = [
    ("127.0.0.1:1000", true),
    ("192.0.2.1:1000", false),
    ("[::1]:1000", true),
    ("[::2]:1000", false),
    ("[::ffff:127.0.0.1]:1000", true),
    ("[::ffff:10.0.0.1]:1000", false),
    ("127.255.255.254:1000", true),
    ("128.0.0.1:1000", false),
    ("0.0.0.0:1000", false),
    ("[fe80::1]:1000", false),
];

/// What a `Host` says, and whether that is this host and no page's name.
const HOSTS: [(&str, bool); 14] = [
    ("127.0.0.1:7278", true),
    ("localhost", true),
    ("LOCALHOST:1", true),
    ("[::1]:7278", true),
    ("127.8.8.8", true),
    ("[::ffff:127.0.0.1]", true),
    ("bus.example", false),
    ("localhost.example", false),
    ("10.0.0.1:7278", false),
    ("[::2]", false),
    ("0.0.0.0", false),
    ("localhost@bus.example", false),
    ("bus.example@localhost", false),
    ("", false),
];

/// Headers, and whether who adds them speaks for somebody else.
const HEADERS: [(&str, bool); 9] = [
    ("Accept: */*", false),
    ("X-Real: 127.0.0.1", false),
    ("Referer: http://bus.example/", false),
    ("Origin: null", true),
    ("ORIGIN: http://localhost:7278", true),
    ("Forwarded: for=127.0.0.1", true),
    ("x-forwarded-for: 127.0.0.1", true),
    ("X-Forwarded-Host: localhost", true),
    ("X-FORWARDED-ANYTHING:", true),
];

/// First bytes from here on say that what follows is a tape.
const TAPES_FROM: u8 = 128;

/// See the module. The first byte says who asks, and whether the rest is requests or a tape.
pub fn run(data: &[u8]) {
    let Some((first, rest)) = data.split_first() else {
        return;
    };
    let (client, is_local) = CLIENTS[usize::from(first % TAPES_FROM) % CLIENTS.len()];
    let client = client.parse().expect("an address");
    match *first < TAPES_FROM {
        true => check(&converse_with(client, rest), is_local),
        false => {
            let (request, is_harmless) = reload(&mut Tape::new(rest));
            let answer = converse_with(client, request.as_bytes());
            check_reload(&request, &answer, is_local && is_harmless);
        }
    }
}

fn converse_with(client: SocketAddr, requests: &[u8]) -> String {
    let reloads = reloads();
    let mut answers = Vec::new();
    crate::within(BYTES_MAX + answers_bytes(requests), || {
        answers = ask(requests, client, reloads);
    });
    assert!(answers.len() <= ANSWERS_BYTES_MAX);
    String::from_utf8_lossy(&answers).into_owned()
}

/// A request for a reload, and whether it may be granted to who is on this host.
fn reload(tape: &mut Tape<'_>) -> (String, bool) {
    let (authority, mut is_harmless) = match tape.one_in(4) {
        // Hosts alone: of others, it is not for this side to say what is a URI.
        true => *tape.pick(&HOSTS[..11]),
        false => ("", true),
    };
    let scheme = match authority {
        "" => "",
        _ => "http://",
    };
    let mut request =
        format!("POST {scheme}{authority}/-/reload HTTP/1.1\r\nConnection: close\r\n");
    // Each that is named counts, and there has to be one.
    let hosts = *tape.pick(&[1, 1, 1, 0, 2]);
    is_harmless &= hosts > 0;
    for _ in 0..hosts {
        let (host, is_here) = tape.pick(&HOSTS);
        request += &format!("Host: {host}\r\n");
        is_harmless &= is_here;
    }
    for _ in 0..tape.below(3) {
        let (header, is_for_another) = tape.pick(&HEADERS);
        request += &format!("{header}\r\n");
        is_harmless &= !is_for_another;
    }
    (request + "\r\n", is_harmless)
}

/// Whoever may ask is told that too many wait, and everybody else that it is not for them.
fn check_reload(request: &str, answer: &str, may_ask: bool) {
    let status = match may_ask {
        true => "503",
        false => "403",
    };
    let line = format!("HTTP/1.1 {status} ");
    assert!(answer.starts_with(&line), "{request}{answer}");
    assert_eq!(answer.contains(PERMITTED), may_ask, "{request}{answer}");
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
            // Who hangs up is not answered: so it waits till nobody else has anything to do.
            tokio::time::sleep(PATIENCE).await;
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
