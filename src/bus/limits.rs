//! The core's bounds, each with its unit and its reason. What an operator may change is in
//! [`Settings`](super::Settings) instead.

use std::time::Duration;

/// Topics whose subscriber sets are remembered: enough that 10,000 topics in turn stay cached,
/// few enough that the longest topics (255 bytes) fill less than 6 MiB.
pub const CACHED_TOPICS_MAX: usize = 16_384;

/// Members of all subscriber sets and parties kept between turns, in some 64 MiB at the most. Past
/// it all are made anew, as topics come.
pub const SET_MEMBERS_MAX: usize = 1 << 20;

/// Topics with a counter in each sketch of the topics seen: a count is less than 3/1024 of all
/// events from the truth, and the longest topics fill less than 512 KiB.
pub const SEEN_TOPICS_MAX: usize = 1_024;

/// Seconds over which the rates of topics are told: few enough to be of now, enough that a
/// burst does not pass for a load.
pub const RATE_WINDOW_SECONDS: u32 = 10;

/// Bytes of frames under construction at which they are to be sent, though the receive batch is
/// not used up: so many fit the processor's cache, and a batch of full datagrams stays bounded.
pub const PENDING_BYTES_MAX: usize = 1 << 18;

/// Bytes of frame buffers kept from one turn to the next. What a burst needed beyond it is given
/// back.
pub const RETAINED_BYTES_MAX: usize = 1 << 20;

/// Buses that a frame may have passed. Real chains are two or three long; a loop of
/// misconfigured buses stops here.
pub const HOPS_MAX: u32 = 8;

/// Bytes of a frame towards another host, where the subscriber does not say: an Ethernet
/// packet's worth, with room for tunnels, so that a frame is one packet.
pub const NETWORK_FRAME_BYTES: u32 = 1_400;

/// Bytes of a frame that stays on this host, where the subscriber does not say. A datagram
/// costs the same at nearly any size here.
pub const LOCAL_FRAME_BYTES: u32 = 60_000;

/// The least that a subscriber may ask for as its largest datagram: what every IPv4 host takes
/// (RFC 791, section 3.1), less the headers.
pub const FRAME_BYTES_MIN: u32 = 508;

/// What frames are filled to where the subscriber says how large a datagram it takes: the largest
/// of these that it takes. So few that whoever asks for many sizes makes few frames more.
pub const FRAME_BYTES_TARGETS: [u32; 9] = [
    FRAME_BYTES_MIN,
    1_024,
    NETWORK_FRAME_BYTES,
    2_048,
    4_096,
    8_192,
    16_384,
    32_768,
    LOCAL_FRAME_BYTES,
];

/// The shortest lease that is granted, in ms: clients renew each third, which is not to be a load.
pub const LEASE_MS_MIN: u32 = 1_000;

/// The longest lease that may be configured or granted, in ms.
pub const LEASE_MS_MAX: u32 = 300_000;

/// How long a cookie proves its address where no lease stands for it. A handshake takes two
/// round trips; a lapsed subscriber is to be told by a new challenge that it lapsed.
pub const CHALLENGE_AGE_MAX: Duration = Duration::from_secs(10);

/// How long the cookie of a standing lease may be used: the longest lease, so that the lease's
/// own end always comes first.
pub const COOKIE_AGE_MAX: Duration = Duration::from_millis(LEASE_MS_MAX as u64);

/// How long a cookie key is used. The one before is kept as long again, which is longer than any
/// cookie lives.
pub const COOKIE_KEY_AGE_MAX: Duration = Duration::from_secs(3_600);

/// Bytes of a subscriber's name; see `Subscribe.name`.
pub const NAME_BYTES_MAX: usize = 64;

/// Answers to unproven addresses of one origin, a second and at once: a host whose thousand
/// subscribers all come back after a restart is served within the two seconds they retry in.
pub const ANSWERS_PER_ORIGIN: u32 = 1_000;

/// Answers to unproven addresses in all, a second and at once: some 5 % of one core.
pub const ANSWERS_IN_ALL: u32 = 10_000;

/// Token buckets that origins share by hash, so that strangers cost no memory.
pub const ORIGIN_BUCKETS: usize = 1_024;

/// Publishers whose flows are followed. The longest silent is forgotten for a new one.
pub const PUBLISHER_FLOWS_MAX: usize = 4_096;
