//! A bus's admin listener, asked over HTTP, and its page of metrics, read.
//!
//! Whatever answers may be no bus at all: an answer is bounded in bytes and in time, and is taken
//! for nothing but text.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

/// The largest answer that is read, in bytes: some thousand subscribers' series.
const ANSWER_BYTES_MAX: usize = 16 << 20;

/// Bytes taken from the connection at a time.
const CHUNK_BYTES: usize = 1 << 14;

/// Characters of a stranger's answer that are repeated to people.
const QUOTE_CHARS_MAX: usize = 60;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nobody is there, or there is no way there.
    #[error("{0}")]
    Unreachable(io::Error),
    /// Somebody is there and does not answer as a bus does.
    #[error("{0}")]
    Answer(String),
}

/// A bus's admin listener.
#[derive(Clone, Debug)]
pub struct AdminClient {
    /// HOST:PORT.
    address: String,
    /// How long an answer may take in all.
    patience: Duration,
}

impl AdminClient {
    /// The one at HOST:PORT or `http://HOST:PORT/`.
    #[must_use]
    pub fn new(address: &str, patience: Duration) -> Self {
        let address = address.trim_start_matches("http://").trim_end_matches('/');
        Self {
            address: address.to_owned(),
            patience,
        }
    }

    /// HOST:PORT.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// What it answers with status 200, without the head.
    ///
    /// # Errors
    ///
    /// See [`AskError`].
    pub fn get(&self, path: &str) -> Result<String, AskError> {
        let deadline = Instant::now() + self.patience;
        let stream = self.connect(deadline).map_err(AskError::Unreachable)?;
        let answer = exchange(stream, path, deadline);
        let answer = answer.map_err(|error| AskError::Answer(error.to_string()))?;
        page_of(&answer).map(str::to_owned)
    }

    /// The first of the name's addresses that takes a connection.
    fn connect(&self, deadline: Instant) -> io::Result<TcpStream> {
        let mut result = Err(io::Error::new(io::ErrorKind::NotFound, "no address"));
        for address in self.address.to_socket_addrs()? {
            result = left(deadline).and_then(|left| TcpStream::connect_timeout(&address, left));
            if result.is_ok() {
                break;
            }
        }
        result
    }
}

/// The time that is left.
fn left(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(io::Error::new(io::ErrorKind::TimedOut, "no answer in time"));
    }
    Ok(left)
}

fn exchange(mut stream: TcpStream, path: &str, deadline: Instant) -> io::Result<String> {
    stream.set_write_timeout(Some(left(deadline)?))?;
    // Of version 1.0, so that the answer is not in chunks and ends with the connection.
    stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes())?;
    let mut answer = Vec::new();
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        stream.set_read_timeout(Some(left(deadline)?))?;
        match stream.read(&mut chunk) {
            Ok(0) => break,
            Ok(bytes) => answer.extend_from_slice(chunk.get(..bytes).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // What a read timeout is called differs by system.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "no answer in time"));
            }
            Err(error) => return Err(error),
        }
        if answer.len() > ANSWER_BYTES_MAX {
            return Err(io::Error::other("the answer is longer than 16 MiB"));
        }
    }
    String::from_utf8(answer).map_err(|_| io::Error::other("the answer is not text"))
}

fn page_of(answer: &str) -> Result<&str, AskError> {
    let first: String = answer.lines().take(1).collect();
    let quote: String = first.escape_debug().take(QUOTE_CHARS_MAX).collect();
    match answer.split_once("\r\n\r\n") {
        Some((head, page)) if head.starts_with("HTTP/") => match first.contains(" 200 ") {
            true => Ok(page),
            false => Err(AskError::Answer(format!("it says \"{quote}\""))),
        },
        _ => Err(AskError::Answer(format!("no HTTP: \"{quote}\""))),
    }
}

/// A page of metrics, as scraped.
#[derive(Debug, Default)]
pub struct Scrape(Vec<Sample>);

/// One series of it.
#[derive(Debug)]
pub struct Sample {
    name: String,
    labels: String,
    /// Its count.
    pub value: u64,
}

impl Scrape {
    /// Reads what it understands: whole numbers, which all counters are.
    #[must_use]
    pub fn parse(page: &str) -> Self {
        let sample = |line: &str| {
            let (series, value) = line.rsplit_once(' ')?;
            let (name, labels) = series.split_once('{').unwrap_or((series, ""));
            Some(Sample {
                name: name.strip_prefix("hailmary_")?.to_owned(),
                labels: labels.trim_end_matches('}').to_owned(),
                value: value.parse().ok()?,
            })
        };
        Self(page.lines().filter_map(sample).collect())
    }

    /// All series of one metric, by its name without prefix.
    pub fn samples<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Sample> {
        self.0.iter().filter(move |sample| sample.name == name)
    }

    /// A metric over all its labels.
    #[must_use]
    pub fn sum(&self, name: &str) -> u64 {
        let values = self.samples(name).map(|sample| sample.value);
        values.fold(0, u64::saturating_add)
    }
}

impl Sample {
    /// A label's value.
    #[must_use]
    pub fn label(&self, name: &str) -> Option<&str> {
        let labels = self.labels.trim_end_matches('"').split("\",");
        labels
            .filter_map(|label| label.split_once("=\""))
            .find_map(|(key, value)| (key == name).then_some(value))
    }

    /// Whether it is this subscriber's.
    #[must_use]
    pub fn is_of(&self, subscriber: &str) -> bool {
        self.label("subscriber") == Some(subscriber)
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// What is made of the answer of somebody who says this, and holds the line or hangs up.
    fn ask(says: &[u8], holds: Option<Duration>) -> Result<String, String> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}/", listener.local_addr().unwrap());
        std::thread::scope(|scope| {
            scope.spawn(move || {
                let (mut stream, _) = listener.accept().unwrap();
                let mut request = [0; 64];
                let _ = stream.read(&mut request);
                // Whoever asked may have heard enough.
                let _ = stream.write_all(says);
                if holds.is_some() {
                    let _ = stream.read_to_end(&mut Vec::new());
                }
            });
            let client = AdminClient::new(&address, holds.unwrap_or(Duration::from_secs(60)));
            client.get("/x").map_err(|error| error.to_string())
        })
    }

    #[test]
    fn an_answer_is_its_page_and_anything_else_an_error() {
        assert_eq!(
            ask(b"HTTP/1.1 200 OK\r\nX: 1\r\n\r\nyes", None),
            Ok("yes".into())
        );
        for (says, told) in [
            (&b""[..], "no HTTP: \"\""),
            (b"SSH-2.0-\x1b[2J\n", "no HTTP: \"SSH-2.0-\\u{1b}[2J\""),
            (
                b"HTTP/1.1 404 Not Found\r\n\r\n",
                "it says \"HTTP/1.1 404 Not Found\"",
            ),
            (b"HTTP/1.1 200 OK\r\n\r\n\xff", "the answer is not text"),
        ] {
            assert_eq!(ask(says, None), Err(told.to_owned()));
        }
        let long = vec![b'x'; ANSWER_BYTES_MAX + 1];
        assert!(ask(&long, None).unwrap_err().contains("longer than 16 MiB"));
    }

    #[test]
    fn whoever_never_ends_is_left() {
        let told = ask(b"HTTP/1.1 200 OK\r\n\r\n", Some(Duration::from_millis(50)));
        assert_eq!(told, Err("no answer in time".to_owned()));
    }

    #[test]
    fn nobody_is_not_a_wrong_answer() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        drop(listener);
        let client = AdminClient::new(&address, Duration::from_secs(60));
        assert!(matches!(client.get("/"), Err(AskError::Unreachable(_))));
    }

    #[test]
    fn a_page_that_makes_no_sense_has_no_samples() {
        let page = "hailmary_\nhailmary_a{\nhailmary_b{x=\"} -1\nhailmary_c nan\n\n{} 1\n";
        assert!(Scrape::parse(page).0.is_empty());
        let page = "hailmary_a{reason=\"x\"} 18446744073709551615\nhailmary_a{=\",} 1\n";
        assert_eq!(Scrape::parse(page).sum("a"), u64::MAX);
    }
}
