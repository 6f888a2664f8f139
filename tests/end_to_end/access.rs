//! Who may publish and subscribe to what: rules by network, and over Unix sockets by user.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

use hailmary_proto::v1::Frame;
use hailmary_proto::v1::frame::Control;
use hailmary_proto::v1::refusal::Reason;
use prost::Message;

use super::publish;
use super::support::{
    ByHand, PATIENCE, Serving, Subscribing, assert_laws, request, subscribe, value,
};

/// A bus under some rules, on UDP and, with a path that whoever can reach it may use, on Unix.
struct Ruled {
    bus: Serving,
    directory: tempfile::TempDir,
}

impl Ruled {
    fn start(access: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("bus.toml");
        fs::write(&file, format!("[access]\n{access}")).unwrap();
        let unix = format!("unix://{}", directory.path().join("bus.sock").display());
        let bus = Serving::start(
            &["--config", file.to_str().unwrap()],
            &["127.0.0.1:0", &unix],
        );
        Self { bus, directory }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("bus.sock")
    }

    fn unix(&self) -> &str {
        &self.bus.listening[1]
    }
}

/// Publishes each topic at one of the bus's addresses.
fn publish_each(bus: &str, topics: &[&str]) {
    for topic in topics {
        publish(bus, &[topic, topic]);
    }
}

#[test]
fn a_subscriber_of_everything_gets_what_it_may_see() {
    let ruled = Ruled::start(
        "subscribe = [\n\
           { from = [\"127.0.0.1\"], topics = [\"search.>\"] },\n\
           { from = [\"::/0\"], topics = [\"search.secret\"], deny = true },\n\
           { from = [\"127.0.0.1\"], topics = [\"*.search\"] },\n\
         ]\n",
    );
    let wants = [">", "--format", "raw", "--count", "2", "--name", "eager"];
    // What is said of IPv4's loopback and of IPv6's is said of Unix sockets.
    let by_udp = Subscribing::start(ruled.bus.address(), &wants);
    let by_unix = Subscribing::start(ruled.unix(), &wants);
    publish_each(
        ruled.bus.address(),
        &["spam.a", "search.a", "search.secret"],
    );
    let page = ruled.bus.wait_for_metric("ingress_events_total", 3);
    assert_laws(&page);
    assert_eq!(value(&page, "unmatched_events_total"), 1, "{page}");
    assert_eq!(value(&page, "copies_total"), 3, "{page}");
    // Only one of them sees the secret, and the other goes on to what it may see.
    assert_eq!(by_udp.output().0, "search.a\nsearch.secret\n");
    publish_each(ruled.bus.address(), &["spam.b", "last.search"]);
    assert_eq!(by_unix.output().0, "search.a\nlast.search\n");
    assert_laws(&ruled.bus.get("/metrics"));
}

/// Asks for a lease over the Unix socket, as a stranger.
fn ask(path: &Path) -> Control {
    let own = tempfile::tempdir().unwrap();
    let socket = UnixDatagram::bind(own.path().join("own")).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.send_to(&request(subscribe(1, b"")), path).unwrap();
    let mut buffer = [0; 1500];
    let length = socket.recv(&mut buffer).unwrap();
    Frame::decode(&buffer[..length]).unwrap().control.unwrap()
}

fn is_refused(control: Control) -> bool {
    matches!(control, Control::Refusal(refusal) if refusal.reason() == Reason::NotAllowed)
}

#[test]
fn an_empty_list_is_nobody_by_unix_neither() {
    let ruled = Ruled::start("publish = []\nsubscribe = []\n");
    publish(ruled.bus.address(), &["a", "x"]);
    publish(ruled.unix(), &["a", "x"]);
    let dropped = "ingress_dropped_frames_total{reason=\"not_allowed\"}";
    let page = ruled.bus.wait_for_metric(dropped, 2);
    assert_eq!(value(&page, "ingress_events_total"), 0);
    assert!(is_refused(ask(&ruled.path())));
    let by_udp = ByHand::new().ask(ruled.bus.udp(), subscribe(1, b""));
    assert!(is_refused(by_udp));
    let refused = "lease_refusals_total{reason=\"not_allowed\"}";
    ruled.bus.wait_for_metric(refused, 2);
}

#[cfg(all(target_os = "linux", not(feature = "portable")))]
mod by_user {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    use std::os::unix::process::CommandExt;
    use std::process::Command;

    use crate::support::hailmary;

    use super::*;

    /// Whom this test runs as, by a file that it makes.
    fn own() -> (u32, u32) {
        let file = tempfile::NamedTempFile::new().unwrap();
        let made = file.as_file().metadata().unwrap();
        (made.uid(), made.gid())
    }

    const TOPICS: [&str; 3] = ["spam.a", "search.a", "last.search"];

    #[test]
    fn a_user_sees_over_unix_what_it_may_see_and_nobody_else_does() {
        let (uid, gid) = own();
        for (own, other) in [
            (format!("uid:{uid}"), format!("uid:{}", uid ^ 1)),
            (format!("gid:{gid}"), format!("gid:{}", gid ^ 1)),
        ] {
            let rule = |whom: &str, topic: &str| {
                format!("{{ from = [\"{whom}\"], topics = [\"{topic}\"] }},\n")
            };
            let rules = [
                rule(&own, "search.>"),
                rule(&own, "*.search"),
                rule(&other, ">"),
            ];
            let ruled = Ruled::start(&format!("subscribe = [\n{}]\n", rules.concat()));
            let wants = [">", "--format", "raw", "--count", "2"];
            let subscriber = Subscribing::start(ruled.unix(), &wants);
            publish_each(ruled.unix(), &TOPICS);
            assert_eq!(subscriber.output().0, "search.a\nlast.search\n");
            let by_udp = ByHand::new().ask(ruled.bus.udp(), subscribe(1, b""));
            assert!(is_refused(by_udp), "a user is one over Unix sockets alone");
            assert_laws(&ruled.bus.get("/metrics"));

            let ruled = Ruled::start(&format!("subscribe = [{}]\n", rule(&other, ">")));
            assert!(is_refused(ask(&ruled.path())), "another one's");
        }
    }

    #[test]
    fn a_denied_user_publishes_nothing_over_unix() {
        let (uid, gid) = own();
        let here = "{ from = [\"127.0.0.1\"], topics = [\">\"] }";
        for (whom, lost) in [
            (format!("uid:{uid}"), 2),
            (format!("gid:{gid}"), 2),
            (format!("uid:{}", uid ^ 1), 0),
            (format!("gid:{}", gid ^ 1), 0),
        ] {
            let deny = |topic: &str| {
                format!("{{ from = [\"{whom}\"], topics = [\"{topic}\"], deny = true }}")
            };
            let rules = [here, &deny("search.>"), &deny("*.search")].join(",\n");
            let ruled = Ruled::start(&format!("publish = [\n{rules}\n]\n"));
            publish_each(ruled.unix(), &TOPICS);
            // What the rule says of users it does not say of networks.
            publish_each(ruled.bus.address(), &TOPICS);
            let page = ruled.bus.wait_for_metric("ingress_events_total", 6);
            let dropped = "ingress_dropped_events_total{reason=\"not_allowed\"}";
            assert_eq!(value(&page, dropped), lost, "{whom}");
            assert_eq!(value(&page, "unmatched_events_total"), 6 - lost, "{whom}");
            assert_laws(&page);
        }
    }

    /// A user, and a group that it is not named after. Neither needs to exist.
    const OTHER: (u32, u32) = (64_001, 64_002);

    /// The program, as that user.
    fn as_other() -> Command {
        let mut command = hailmary();
        command.uid(OTHER.0).gid(OTHER.1);
        command
    }

    fn publish_as_other(ruled: &Ruled, topic: &str) {
        let mut command = as_other();
        let arguments = ["pub", topic, topic, "--to", ruled.unix()];
        assert!(command.args(arguments).status().unwrap().success());
    }

    /// Lets everybody reach the socket.
    fn open_to_all(ruled: &Ruled) {
        for (path, mode) in [(ruled.directory.path(), 0o755), (&*ruled.path(), 0o666)] {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        }
    }

    #[test]
    #[ignore = "needs root, to be two users, and a program that others may run"]
    fn two_users_on_one_socket_are_told_apart() {
        let (uid, _) = own();
        assert_eq!(uid, 0, "only root starts processes of other users");
        let (other, its_group) = OTHER;
        let ruled = Ruled::start(&format!(
            "publish = [\n\
               {{ from = [\"127.0.0.1\"], topics = [\">\"] }},\n\
               {{ from = [\"uid:{other}\"], topics = [\"spam.>\"], deny = true }},\n\
               {{ from = [\"gid:{its_group}\"], topics = [\"secret\"], deny = true }},\n\
             ]\n\
             subscribe = [\n\
               {{ from = [\"uid:0\"], topics = [\">\"] }},\n\
               {{ from = [\"gid:{its_group}\"], topics = [\"search.>\", \"*.search\"] }},\n\
             ]\n",
        ));
        open_to_all(&ruled);
        let wants = [">", "--format", "raw", "--count"];
        let roots = Subscribing::start(ruled.unix(), &[&wants[..], &["7"]].concat());
        let others = [&wants[..], &["4"]].concat();
        let others = Subscribing::start_by(as_other(), ruled.unix(), &others);
        for topic in ["secret", "spam.a", "search.a", "last.search"] {
            publish(ruled.unix(), &[topic, topic]);
            publish_as_other(&ruled, topic);
        }
        publish(ruled.unix(), &["spam.b", "spam.b"]);
        let all = "secret\nspam.a\nsearch.a\nsearch.a\nlast.search\nlast.search\nspam.b\n";
        assert_eq!(roots.output().0, all);
        let seen = "search.a\nsearch.a\nlast.search\nlast.search\n";
        assert_eq!(others.output().0, seen);
        let page = ruled.bus.get("/metrics");
        let dropped = "ingress_dropped_events_total{reason=\"not_allowed\"}";
        assert_eq!(value(&page, dropped), 2);
        assert_laws(&page);
    }
}
