//! A burst of twice what the receive buffer holds: what did not fit is lost, and counted.

use std::net::UdpSocket;

use hailmary_proto::v1::{Event, Frame, Stamp};
use prost::Message;

use crate::support::evidence::{figure, tell};
use crate::support::{Serving, assert_laws, event, value};

/// Bytes of payload, and what the kernel charges at least for a datagram with them.
const SIZES: [(usize, u64); 3] = [(16, 700), (1_000, 2_000), (4_000, 4_100)];

/// A frame of one event, and how many its flow had before it.
fn frame(sequence: u64, payload_bytes: usize) -> Vec<u8> {
    let event = Event {
        payload: vec![b'x'; payload_bytes],
        ..event("a")
    };
    let stamp = Stamp {
        sender: 77,
        sequence,
        ..Stamp::default()
    };
    Frame {
        events: vec![event],
        stamp: Some(stamp),
        ..Frame::default()
    }
    .encode_to_vec()
}

/// What became of a burst: sent, taken, counted as lost.
fn burst(payload_bytes: usize, charged_bytes: u64) -> (u64, u64, u64) {
    let bus = Serving::start(&[], &[]);
    let listener = bus.address();
    let room = format!("ingress_buffer_bytes{{listener=\"{listener}\"}}");
    let room = value(&bus.get("/metrics"), &room);
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let send = |sequence| {
        let sent = socket.send_to(&frame(sequence, payload_bytes), bus.udp());
        sent.unwrap();
    };
    // The bus knows the flow from its first frame on.
    send(0);
    bus.wait_for_metric("ingress_events_total", 1);
    bus.signal("STOP");
    let end = 1 + 2 * room / charged_bytes;
    (1..end).for_each(send);
    bus.signal("CONT");
    let taken = format!("ingress_frames_total{{listener=\"{listener}\"}}");
    let lost = "ingress_dropped_frames_total{reason=\"kernel_buffer\"}";
    bus.wait_for("/metrics", |page| {
        value(page, &taken) + value(page, lost) == end
    });
    // What was lost at the end shows by what comes behind it.
    send(end);
    let page = bus.wait_for("/metrics", |page| {
        value(page, "ingress_lost_events_total") == value(page, lost)
    });
    assert_laws(&page);
    let (taken, lost) = (value(&page, &taken), value(&page, lost));
    assert_eq!(taken + lost, end + 1, "{page}");
    assert_eq!(value(&page, "ingress_events_total"), taken);
    assert!(lost > 0, "{page}");
    assert!(taken * charged_bytes < room + room / 2, "{taken} fitted");
    (end + 1, taken, lost)
}

#[test]
fn what_did_not_fit_is_counted_to_the_datagram() {
    let outcomes = SIZES.map(|(bytes, charged)| burst(bytes, charged));
    let sum = |count: fn(&(u64, u64, u64)) -> u64| outcomes.iter().map(count).sum::<u64>();
    let (sent, taken, lost) = (sum(|it| it.0), sum(|it| it.1), sum(|it| it.2));
    let figures = [
        figure("sent", sent, "datagrams"),
        figure("taken", taken, "datagrams"),
        figure("counted as lost in the kernel's buffer", lost, "datagrams"),
        figure("neither", sent - taken - lost, "datagrams"),
    ];
    tell(
        "burst_of_twice_the_buffer",
        "While the bus stands still it is sent twice what its receive buffer holds.",
        "What fits is used, and what does not is counted, to the datagram.",
        &figures,
    );
}
