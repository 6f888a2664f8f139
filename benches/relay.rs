//! What the least of all buses takes: a thread that sends on each datagram it receives, with
//! blocking calls, between one that publishes and one that receives. `cargo bench --bench relay`
//! prints its latency as JSON, which `benches/record` sets beside that of the bus.
//!
//! It paces and counts as `hailmary bench` does: a datagram's latency runs from the time at which
//! it was to be sent, so that being held up hides nothing.

#![expect(clippy::expect_used, reason = "a bench that cannot go on has failed")]

use std::io;
use std::net::UdpSocket;
use std::thread;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

/// Bytes of a datagram: an event of 128 bytes with its topic and time, and the bus's stamp.
const DATAGRAM_BYTES: usize = 192;

/// The shortest sleep of the publisher, as in `hailmary bench`.
const SLEEP_MIN: Duration = Duration::from_micros(50);

/// How long the receivers wait for what does not come, lest a lost datagram hang the bench.
const PATIENCE: Duration = Duration::from_secs(10);

/// The longest latency told apart, and the digits kept, as in `hailmary bench`.
const NS_MAX: u64 = 60_000_000_000;
const DIGITS: u8 = 3;

/// In place of a time: the last datagram.
const END: u64 = u64::MAX;

fn main() -> io::Result<()> {
    // `cargo bench` puts a flag of its own before those of the user.
    let mut arguments = std::env::args().skip(1).filter(|text| text != "--bench");
    let mut number = |default| {
        arguments.next().map_or(default, |text| {
            text.parse().expect("usage: relay [PER_SECOND [COUNT]]")
        })
    };
    let (per_second, count): (u64, u64) = (number(1_000), number(3_000));
    let receiver = socket()?;
    let relay_in = socket()?;
    let relay_out = connected_to(&receiver)?;
    let publisher = connected_to(&relay_in)?;
    let start = Instant::now();
    let latency = thread::scope(|scope| {
        scope.spawn(|| relay(&relay_in, &relay_out).expect("the relay works"));
        let receiving = scope.spawn(|| receive(&receiver, start).expect("the receiver works"));
        publish(&publisher, start, per_second, count).expect("the publisher works");
        receiving.join().expect("the receiver has ended")
    });
    print(&latency, per_second);
    Ok(())
}

fn socket() -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket)
}

fn connected_to(receiver: &UdpSocket) -> io::Result<UdpSocket> {
    let socket = socket()?;
    socket.connect(receiver.local_addr()?)?;
    Ok(socket)
}

fn relay(from: &UdpSocket, to: &UdpSocket) -> io::Result<()> {
    let mut datagram = [0; DATAGRAM_BYTES];
    while due(&datagram) != END {
        let (length, _) = from.recv_from(&mut datagram)?;
        to.send(datagram.get(..length).unwrap_or_default())?;
    }
    Ok(())
}

fn receive(socket: &UdpSocket, start: Instant) -> io::Result<Histogram<u64>> {
    let mut latency = Histogram::new_with_bounds(1, NS_MAX, DIGITS).expect("these are bounds");
    let mut datagram = [0; DATAGRAM_BYTES];
    loop {
        socket.recv_from(&mut datagram)?;
        let now = nanos(start.elapsed());
        match due(&datagram) {
            END => return Ok(latency),
            due => latency.saturating_record(now.saturating_sub(due)),
        }
    }
}

/// Sends by an absolute schedule; what is late goes out at once, as of when it was due.
fn publish(socket: &UdpSocket, start: Instant, per_second: u64, count: u64) -> io::Result<()> {
    // This thread's sleeps end on time and not up to 50 us later, where the system lets them.
    let _ = std::fs::write("/proc/self/timerslack_ns", "1");
    let first = nanos(start.elapsed()) + 50_000_000;
    let mut datagram = [7; DATAGRAM_BYTES];
    let times = (0..count).map(|number| first + number * 1_000_000_000 / per_second);
    for due in times {
        sleep_till(start, due);
        write_due(&mut datagram, due);
        socket.send(&datagram)?;
    }
    sleep_till(start, nanos(start.elapsed()) + 50_000_000);
    write_due(&mut datagram, END);
    socket.send(&datagram)?;
    Ok(())
}

fn sleep_till(start: Instant, due: u64) {
    loop {
        let now = nanos(start.elapsed());
        if now >= due {
            return;
        }
        thread::sleep(Duration::from_nanos(due - now).max(SLEEP_MIN));
    }
}

fn write_due(datagram: &mut [u8; DATAGRAM_BYTES], due: u64) {
    if let Some(start) = datagram.first_chunk_mut() {
        *start = due.to_ne_bytes();
    }
}

fn due(datagram: &[u8; DATAGRAM_BYTES]) -> u64 {
    datagram
        .first_chunk()
        .map_or(END, |b| u64::from_ne_bytes(*b))
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// As `hailmary bench --json` has it.
fn print(latency: &Histogram<u64>, per_second: u64) {
    let us =
        |quantile| Duration::from_nanos(latency.value_at_quantile(quantile)).as_secs_f64() * 1e6;
    println!(
        "{{\"events_per_second\":{per_second},\"received\":{},\"latency_us\":{{\"p50\":{:.3},\"p99\":{:.3},\"p99_9\":{:.3}}}}}",
        latency.len(),
        us(0.5),
        us(0.99),
        us(0.999),
    );
}
