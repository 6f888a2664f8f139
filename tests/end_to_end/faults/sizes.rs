//! Datagrams that the kernel does not send for their size (`EMSGSIZE`).
//!
//! To another host that is never a datagram's lot: a socket as the bus opens it lets the kernel make
//! fragments (`IP_PMTUDISC_WANT` of ip(7)), and no frame is over what UDP takes. It is that of
//! several that are to leave as one message, each of which is over the route's MTU. A datagram for a
//! Unix socket has it where it is over the send buffer.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::os::unix::net::UnixDatagram;

use hailmary::net::listener::open_egress;
use socket2::{Domain, MsgHdr, SockAddr};

use crate::support::evidence::{figure, tell};
use crate::support::hosts::{Host, counted, ends, ip, is_inside};
use crate::support::{PATIENCE, Subscribing, hailmary};

use super::scene::{Scene, Summary, dropped, dropped_as, sent};

const BURSTS: u64 = 10;
const BURST: u64 = 30;

/// What every Ethernet takes.
const MTU_BYTES: u32 = 1_500;

/// Less than a frame with one event of those of [`Scene::publish_bursts`].
const NARROW_MTU_BYTES: u32 = 600;

/// Most bytes of a UDP datagram, and of the largest frame.
const DATAGRAM_BYTES_MAX: usize = 65_507;

/// The smallest send buffer that may be configured, of which the kernel makes twice as much.
const SEND_BUFFER_BYTES: usize = 4_096;

/// What the kernel says to so many datagrams of so many bytes as one message, by a new socket of
/// the bus's.
fn send_together(to: SocketAddr, datagrams: usize, bytes: u16) -> io::Result<usize> {
    let length = size_of::<libc::cmsghdr>() + size_of_val(&bytes);
    let control = [
        &length.to_ne_bytes()[..],
        &libc::SOL_UDP.to_ne_bytes(),
        &libc::UDP_SEGMENT.to_ne_bytes(),
        &bytes.to_ne_bytes(),
    ];
    let to = SockAddr::from(to);
    let payload = vec![b'x'; datagrams * usize::from(bytes)];
    let slices = [IoSlice::new(&payload)];
    let control = control.concat();
    let message = MsgHdr::new().with_addr(&to).with_buffers(&slices);
    let socket = open_egress(Domain::IPV4, 1 << 20)?;
    socket.sendmsg(&message.with_control(&control), 0)
}

/// Asserts that frames which are over the MTU of the way to a host are refused together, by what
/// errors the bus takes for that, and one by one are not, whatever their size.
pub fn assert_refused_together(host: &str) {
    // Of a port that no subscriber has.
    let to = SocketAddr::new(host.parse().unwrap(), 9);
    assert_eq!(send_together(to, 3, 400).unwrap(), 1_200, "they fit");
    let refused = send_together(to, 3, 1_000).unwrap_err().raw_os_error();
    // Before Linux 6.14 it is EINVAL.
    assert!(
        [Some(libc::EMSGSIZE), Some(libc::EINVAL)].contains(&refused),
        "{refused:?}"
    );
    for bytes in [1, 1_000, 1_400, DATAGRAM_BYTES_MAX] {
        let socket = open_egress(Domain::IPV4, 1 << 20).unwrap();
        let sent = socket.send_to(&vec![b'x'; bytes], &to.into());
        assert_eq!(sent.unwrap(), bytes);
    }
}

#[test]
#[ignore = "needs network namespaces"]
fn a_narrow_route_is_refused_several_frames_at_once_and_loses_none() {
    let test = "faults::sizes::a_narrow_route_is_refused_several_frames_at_once_and_loses_none";
    if !is_inside(test) {
        return;
    }
    let hosts = [1, 2].map(|cable| Host::connect_by(cable, MTU_BYTES));
    let mut scene = Scene::start("", &[&ends(1)[0], &ends(2)[0]]);
    let beside = scene.subscribe(&hosts[0], 1, "beside");
    let narrow = scene.subscribe(&hosts[1], 2, "narrow");
    scene.publish_bursts(BURSTS, BURST, &beside);
    assert_eq!(counted("Ip", "FragCreates"), 0, "the way is not narrow yet");

    let far = &ends(2)[1];
    ip(&format!(
        "route add {far}/32 dev cable2 mtu lock {NARROW_MTU_BYTES}"
    ));
    assert_refused_together(far);
    let before = counted("Ip", "FragOKs");
    scene.publish_bursts(BURSTS, BURST, &beside);
    let fragmented = counted("Ip", "FragOKs") - before;
    scene.publish_end(&[&beside, &narrow]);
    let page = scene.books();
    assert!(fragmented >= BURSTS * BURST, "{fragmented}, {page}");
    let all = Summary {
        received: scene.published(),
        lost: 0,
        dropped_by_bus: 0,
    };
    for name in ["beside", "narrow"] {
        assert_eq!(sent(&page, name), scene.published(), "{page}");
        assert_eq!(dropped(&page, name), 0, "{page}");
    }
    let [beside, narrow] = [beside, narrow].map(Summary::of);
    assert_eq!([beside, narrow], [all, all], "{page}");
    let figures = [
        figure("published", scene.published(), "events"),
        figure("frames that left in fragments", fragmented, "frames"),
        figure("lost behind the narrow route", narrow.lost, "events"),
        figure("lost by the one on another route", beside.lost, "events"),
        figure("counted as dropped", dropped(&page, "narrow"), "events"),
    ];
    tell(
        "route_narrow",
        "The route to a subscriber's host becomes too narrow for the bus's frames, of which the \
         kernel then refuses several at once (EMSGSIZE).",
        "They leave one by one, which it refuses of no size, and in fragments. Nobody loses an \
         event, nor does anybody on another route.",
        &figures,
    );
}

#[test]
fn a_datagram_over_the_send_buffer_is_counted_and_costs_the_others_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("small");
    let small = UnixDatagram::bind(&path).unwrap();
    small.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut scene = Scene::start(
        &format!(
            "[loop]\nsend_buffer_bytes = {SEND_BUFFER_BYTES}\n\
             [[subscriber]]\nname = \"small\"\naddress = \"unix://{}\"\ntopics = [\"a\"]\n",
            path.display()
        ),
        &[],
    );
    let wants = ["a", "--name", "beside"];
    let beside = Subscribing::start_by(hailmary(), scene.bus.address(), &wants);
    let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
    for _ in 0..BURST {
        // Alone each, so that none is refused for the company it is in.
        scene.publish(1, &[b'x'; 3 * SEND_BUFFER_BYTES]);
        scene.publish(1, b"small");
        assert!(small.recv(&mut buffer).unwrap() < SEND_BUFFER_BYTES);
        for _ in 0..2 {
            beside.line();
        }
    }
    let page = scene.books();
    let too_large = dropped_as(&page, "small", "too_large");
    assert_eq!(too_large, BURST, "{page}");
    assert_eq!(dropped(&page, "small"), BURST, "for no other reason");
    assert_eq!(sent(&page, "small"), BURST, "{page}");
    assert_eq!(dropped(&page, "beside"), 0, "{page}");
    let beside = Summary::of(beside);
    assert_eq!(beside.received, scene.published());
    let figures = [
        figure("published", scene.published(), "events"),
        figure("of those, over the send buffer", BURST, "events"),
        figure("counted as too large", too_large, "events"),
        figure("lost by the one beside it", beside.lost, "events"),
    ];
    tell(
        "datagram_over_the_send_buffer",
        "Every second event for a subscriber on a Unix socket is over the bus's send buffer, so that \
         the kernel refuses it (EMSGSIZE).",
        "Each is counted with its reason. Those between arrive, and a subscriber beside it loses \
         nothing.",
        &figures,
    );
}
