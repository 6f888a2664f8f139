//! One publisher at full speed does not starve another.

use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};

use hailmary_client::{Address, Publisher, Subscriber};

use crate::support::{PATIENCE, Serving, assert_laws, datagram, event, value};

/// Round trips of the polite publisher.
const ROUND_TRIPS: u64 = 100;

/// Sends as fast as it can, and says how many datagrams that were.
fn flood(bus: SocketAddr, is_over: &AtomicBool) -> u64 {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let datagram = datagram(vec![event("flood"); 100]);
    let mut sent = 0;
    while !is_over.load(Ordering::Relaxed) {
        socket.send_to(&datagram, bus).unwrap();
        sent += 1;
    }
    sent
}

/// One event at a time, each sent when the one before has arrived: so none is lost, unless the
/// bus never comes to it.
fn go_round(bus: &Address) {
    let mut subscriber = Subscriber::builder(bus)
        .pattern("polite")
        .connect(PATIENCE)
        .unwrap();
    let publisher = Publisher::connect(bus).unwrap();
    for number in 0..ROUND_TRIPS {
        publisher.publish("polite", &number.to_string());
        let event = subscriber.recv_timeout(PATIENCE).unwrap().unwrap();
        assert_eq!(event.payload, number.to_string().as_bytes());
    }
    assert_eq!(subscriber.close().lost, 0);
}

#[test]
fn listeners_share_the_loop() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("bus.toml");
    // So small that a flood is always more than there is room for.
    std::fs::write(&file, "[loop]\nreceive_buffer_bytes = 65536\n").unwrap();
    let unix = format!("unix://{}", directory.path().join("bus.sock").display());
    let bus = Serving::start(
        &["--config", file.to_str().unwrap()],
        &["127.0.0.1:0", "127.0.0.1:0", &unix],
    );
    let addresses: Vec<Address> = bus.listening.iter().map(|it| it.parse().unwrap()).collect();
    let crowd = Subscriber::builder(&addresses[1]).pattern("flood");
    let _crowd = crowd.connect(PATIENCE).unwrap();
    let is_over = AtomicBool::new(false);
    let flooded = bus.udp();
    let sent = std::thread::scope(|threads| {
        let floods = [(); 2].map(|()| threads.spawn(|| flood(flooded, &is_over)));
        let polite = threads.spawn(|| {
            go_round(&addresses[1]);
            go_round(&addresses[2]);
        });
        let result = polite.join();
        is_over.store(true, Ordering::Relaxed);
        result.unwrap();
        floods
            .map(|flood| flood.join().unwrap())
            .iter()
            .sum::<u64>()
    });
    let taken = format!("ingress_frames_total{{listener=\"{}\"}}", bus.listening[0]);
    let lost = "ingress_dropped_frames_total{reason=\"kernel_buffer\"}";
    let page = bus.wait_for("/metrics", |page| {
        value(page, &taken) + value(page, lost) == sent
    });
    assert!(value(&page, lost) > 0, "it was a flood");
    assert_laws(&page);
}
