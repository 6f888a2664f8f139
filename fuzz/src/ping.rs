//! What a publisher is answered: it asks over a real socket on this host, and whoever sits at the
//! bus's address sends anything before the true answer. The first that is an answer is taken, by
//! prost's reading, and no other.

use std::net::UdpSocket;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use hailmary_client::{Address, Publisher};
use hailmary_proto::v1::frame::Control;
use hailmary_proto::v1::{Frame, Pong};
use prost::Message;

use crate::tape::Tape;

/// Long enough for a machine under load: the answer always comes.
const TIMEOUT: Duration = Duration::from_secs(20);

/// Datagrams before the true answer: far fewer than fit a socket's buffer.
const DATAGRAMS_MAX: usize = 4;

/// The bus of the true answer.
const BUS: u64 = 77;

/// Bytes that a publisher holds while it asks: its buffer of 64 KiB, and what it decodes of that.
const BYTES_MAX: u64 = 2 << 20;

/// See the module.
pub fn run(data: &[u8]) {
    let mut tape = Tape::new(data);
    let stand_in = stand_in().lock().unwrap_or_else(PoisonError::into_inner);
    let answers = (0..tape.below(1 + DATAGRAMS_MAX)).map(|_| answer(&mut tape));
    let answers: Vec<_> = answers.collect();
    stand_in
        .answers
        .send(answers.clone())
        .expect("it never ends");
    let pong = crate::within(BYTES_MAX, || stand_in.publisher.ping(TIMEOUT));
    let pong = pong.expect("the true answer comes last");
    let expected = answers.iter().find_map(Answer::pong).unwrap_or(Pong {
        bus: BUS,
        ..Pong::default()
    });
    assert_eq!(
        (pong.bus, pong.received, pong.lost),
        (expected.bus, expected.received, expected.lost)
    );
}

/// A datagram. Where it ends in the true nonce is not known before the question comes.
#[derive(Clone, Debug)]
enum Answer {
    Anything(Vec<u8>),
    /// With the question's nonce or, by this mask, nearly.
    Pong(Pong, u64),
}

impl Answer {
    /// What it says, where it is an answer. The nonce is random: no other bytes have it.
    fn pong(&self) -> Option<Pong> {
        match self {
            Answer::Pong(pong, 0) => Some(*pong),
            _ => None,
        }
    }

    fn datagram(&self, nonce: u64) -> Vec<u8> {
        match self {
            Answer::Anything(datagram) => datagram.clone(),
            Answer::Pong(pong, mask) => {
                let nonce = nonce ^ mask;
                let pong = Pong { nonce, ..*pong };
                let control = Some(Control::Pong(pong));
                let frame = Frame {
                    control,
                    ..Frame::default()
                };
                frame.encode_to_vec()
            }
        }
    }
}

fn answer(tape: &mut Tape<'_>) -> Answer {
    if tape.one_in(2) {
        return Answer::Anything(tape.datagram());
    }
    let pong = Pong {
        nonce: 0,
        bus: tape.number(),
        received: tape.number(),
        lost: tape.number(),
    };
    Answer::Pong(pong, *tape.pick(&[0, 1, 1 << 63, u64::MAX]))
}

/// Who sits at the bus's address, and a publisher that takes it for the bus.
struct StandIn {
    answers: Sender<Vec<Answer>>,
    publisher: Publisher,
}

fn stand_in() -> &'static Mutex<StandIn> {
    static STAND_IN: OnceLock<Mutex<StandIn>> = OnceLock::new();
    STAND_IN.get_or_init(|| {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        let address = socket.local_addr().expect("its address").to_string();
        let address: Address = address.parse().expect("an address");
        let (sender, answers) = channel::<Vec<Answer>>();
        std::thread::spawn(move || {
            let mut buffer = [0; 2_048];
            let mut newest = Vec::new();
            while let Ok((bytes, from)) = socket.recv_from(&mut buffer) {
                let Ok(Frame {
                    control: Some(Control::Ping(ping)),
                    ..
                }) = Frame::decode(&buffer[..bytes])
                else {
                    continue;
                };
                // A question that is asked once more is answered likewise.
                newest = answers.try_recv().unwrap_or(newest);
                let last = Answer::Pong(
                    Pong {
                        bus: BUS,
                        ..Pong::default()
                    },
                    0,
                );
                for answer in newest.iter().chain([&last]) {
                    // Where it is lost the question is asked once more.
                    let _ = socket.send_to(&answer.datagram(ping.nonce), from);
                }
            }
        });
        Mutex::new(StandIn {
            answers: sender,
            publisher: Publisher::connect(&address).expect("a publisher"),
        })
    })
}
