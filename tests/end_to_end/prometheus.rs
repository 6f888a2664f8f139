//! What `deploy/` has for Prometheus and Grafana, held against a real bus and a real Prometheus.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::unix::net::UnixDatagram;
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use super::support::{
    PATIENCE, Process, Serving, Subscribing, datagram, event, lines, value, wait_until,
};

const RULES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/prometheus/alerts.yml");
const CASES: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/deploy/prometheus/alerts_test.yml"
);
const DASHBOARD: &str = include_str!("../../deploy/grafana/hailmary.json");
const README: &str = include_str!("../../deploy/README.md");

/// What both laws say is 0.
const LAWS: [&str; 2] = [
    "sum(hailmary_ingress_events_total) - sum(hailmary_ingress_dropped_events_total)
     - sum(hailmary_unmatched_events_total) - sum(hailmary_matched_events_total)",
    "sum(hailmary_copies_total) - sum(hailmary_egress_events_total)
     - sum(hailmary_egress_dropped_events_total)",
];

/// How many scrapes under load must keep the laws.
const SCRAPES: usize = 5;

/// How wide Grafana's grid is.
const GRID_WIDTH: u64 = 24;

/// A bus with a canary and three static subscribers: one whose socket nobody made, one that never
/// reads its socket, and one behind a port that nobody has, as the network tells the bus
/// afterwards.
struct Scene {
    bus: Serving,
    _full: UnixDatagram,
    _directory: TempDir,
}

impl Scene {
    fn start(loop_table: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let unix = |name: &str| directory.path().join(name);
        let full = UnixDatagram::bind(unix("full")).unwrap();
        // No other test is given a port of this address.
        let dead = UdpSocket::bind("127.0.89.1:0").unwrap();
        let addresses = [
            ("gone", format!("unix://{}", unix("gone").display())),
            ("full", format!("unix://{}", unix("full").display())),
            ("dead", dead.local_addr().unwrap().to_string()),
        ];
        drop(dead);
        let mut text = format!("[loop]\n{loop_table}\n[canary]\ninterval_ms = 50\n");
        for (name, address) in addresses {
            text += &format!(
                "[[subscriber]]\nname = \"{name}\"\naddress = \"{address}\"\ntopics = [\"a.>\"]\n"
            );
        }
        let file = unix("bus.toml");
        fs::write(&file, text).unwrap();
        Self {
            bus: Serving::start(&["--config", file.to_str().unwrap()], &[]),
            _full: full,
            _directory: directory,
        }
    }
}

/// The words that begin with the bus's prefix.
fn metric_names(text: &str) -> BTreeSet<&str> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with("hailmary_")).collect()
}

/// Which reasons are asked for by name.
fn reasons(text: &str) -> BTreeSet<&str> {
    let values = text.split("reason=\"").skip(1);
    values.map(|rest| rest.split('"').next().unwrap()).collect()
}

#[test]
fn only_what_a_bus_shows_is_asked_for() {
    let scene = Scene::start("");
    let bus = &scene.bus;
    let page = bus.get("/metrics");
    let samples: String = page
        .lines()
        .filter(|line| line.starts_with("hailmary_"))
        .flat_map(|line| [line, "\n"])
        .collect();
    let shown = metric_names(&samples);
    let shown_reasons = reasons(&samples);
    let rules = fs::read_to_string(RULES).unwrap();
    let cases = fs::read_to_string(CASES).unwrap();
    let dashboard = DASHBOARD.replace("\\\"", "\"");
    for text in [&rules, &cases, &dashboard] {
        let unknown: Vec<_> = metric_names(text).difference(&shown).copied().collect();
        assert!(unknown.is_empty(), "{unknown:?} is not in\n{page}");
    }
    for text in [&rules, &dashboard] {
        let unknown: Vec<_> = reasons(text).difference(&shown_reasons).copied().collect();
        assert!(unknown.is_empty(), "reasons {unknown:?} are not in\n{page}");
    }
}

#[test]
fn a_bus_tells_the_receive_buffer_that_it_wanted() {
    let gauges = |loop_table: &str| {
        let Scene { bus, .. } = &Scene::start(loop_table);
        let page = bus.get("/metrics");
        let of = |name: &str| value(&page, &format!("{name}{{listener=\"{}\"}}", bus.address()));
        (
            of("ingress_buffer_bytes"),
            of("ingress_buffer_wanted_bytes"),
        )
    };
    // Linux accounts for twice what was asked for, and each data thread has a socket.
    let (granted, wanted) = gauges("receive_buffer_bytes = 65536\nworkers = 2");
    assert_eq!((granted, wanted), (4 * 65_536, 4 * 65_536));
    // One byte more than Linux ever grants.
    let (granted, wanted) = gauges("receive_buffer_bytes = 1073741824");
    assert_eq!(wanted, 1 << 31);
    assert!(granted < wanted, "{granted}");
}

/// Panels in their order, those of rows that are folded included.
fn panels(dashboard: &Value) -> Vec<&Value> {
    let panels = dashboard["panels"].as_array().unwrap().iter();
    panels
        .flat_map(|panel| {
            let inner = panel["panels"].as_array().into_iter().flatten();
            std::iter::once(panel).chain(inner)
        })
        .collect()
}

/// Left, right, top and bottom.
fn edges(panel: &Value) -> [u64; 4] {
    let of = |edge: &str| panel["gridPos"][edge].as_u64().unwrap();
    [of("x"), of("x") + of("w"), of("y"), of("y") + of("h")]
}

/// The queries of a panel.
fn queries(panel: &Value) -> impl Iterator<Item = &str> {
    let targets = panel["targets"].as_array().into_iter().flatten();
    targets.map(|target| {
        assert_eq!(target["datasource"]["uid"], "${datasource}", "{target}");
        target["expr"].as_str().unwrap()
    })
}

#[test]
fn the_dashboard_can_be_imported_anywhere() {
    let dashboard: Value = serde_json::from_str(DASHBOARD).unwrap();
    let variables = dashboard["templating"]["list"].as_array().unwrap();
    let names: Vec<_> = variables.iter().map(|variable| &variable["name"]).collect();
    assert_eq!(names, ["datasource", "instance"]);
    let panels = panels(&dashboard);
    let mut ids = BTreeSet::new();
    for (index, panel) in panels.iter().enumerate() {
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{panel}");
        let [left, right, top, bottom] = edges(panel);
        assert!(right <= GRID_WIDTH, "{panel}");
        for other in &panels[..index] {
            let other_edges = edges(other);
            let is_beside = right <= other_edges[0] || other_edges[1] <= left;
            let is_above = bottom <= other_edges[2] || other_edges[3] <= top;
            assert!(is_beside || is_above, "{panel} lies on {other}");
        }
        for query in queries(panel) {
            let of_bus = query.matches("{instance=~\"$instance\"").count();
            assert_eq!(query.matches("hailmary_").count(), of_bus, "{query}");
        }
    }
}

/// A program of Debian's package `prometheus`. Who asks for these tests is to have it: one that
/// skipped itself would look like one that passed.
fn program(name: &str) -> Command {
    let version = Command::new(name).arg("--version").output();
    let runs = version.is_ok_and(|version| version.status.success());
    assert!(runs, "{name} is not in PATH, or does not run");
    Command::new(name)
}

fn promtool(arguments: &[&str]) -> Output {
    program("promtool").args(arguments).output().unwrap()
}

#[test]
#[ignore = "needs prometheus and promtool"]
fn the_rules_pass_their_cases() {
    for arguments in [
        &["check", "rules", "--lint=all", "--lint-fatal", RULES][..],
        &["test", "rules", CASES],
    ] {
        let output = promtool(arguments);
        assert!(output.status.success(), "{output:?}");
    }
}

/// A page without anything that promtool would have otherwise.
fn assert_clean(page: &str) {
    let (_head, body) = page.split_once("\r\n\r\n").unwrap();
    let mut promtool = program("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = promtool.stdin.take().unwrap();
    stdin.write_all(body.as_bytes()).unwrap();
    drop(stdin);
    let output = promtool.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!((&*output.stdout, &*output.stderr), (&b""[..], &b""[..]));
}

/// The README's configuration, on this bus, with a short while between scrapes.
fn configuration(bus: &Serving) -> String {
    let listing = README.split_once("```yaml\n").unwrap().1;
    let mut text = listing.split_once("```").unwrap().0.to_owned();
    for (here, there) in [
        ("127.0.0.1:7278", &*bus.admin.to_string()),
        ("/etc/prometheus/rules/hailmary/alerts.yml", RULES),
        (
            "scrape_interval: 15s",
            "scrape_interval: 1s\n    scrape_timeout: 900ms",
        ),
    ] {
        assert_eq!(text.matches(here).count(), 1, "{here} in\n{text}");
        text = text.replace(here, there);
    }
    format!("global: {{evaluation_interval: 1s}}\n{text}")
}

/// A running Prometheus. Ended by its id when dropped, and then its files.
struct Prometheus {
    _process: Process,
    address: SocketAddr,
    _directory: TempDir,
}

impl Prometheus {
    /// Starts one that scrapes a bus, and waits till it answers.
    fn start(bus: &Serving) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("prometheus.yml");
        fs::write(&file, configuration(bus)).unwrap();
        let mut child = program("prometheus")
            .arg(format!("--config.file={}", file.display()))
            .arg(format!(
                "--storage.tsdb.path={}",
                directory.path().display()
            ))
            .arg("--web.listen-address=127.0.0.1:0")
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let said = lines(child.stderr.take().unwrap());
        let process = Process(child);
        let mut heard = Vec::new();
        let address = loop {
            let Ok(line) = said.recv_timeout(PATIENCE) else {
                panic!("Prometheus does not say where it listens: {heard:?}");
            };
            if line.contains("\"Listening on\"") {
                let address = line.split_once(" address=").unwrap().1;
                break address.split(' ').next().unwrap().parse().unwrap();
            }
            heard.push(line);
        };
        let prometheus = Self {
            _process: process,
            address,
            _directory: directory,
        };
        wait_until("Prometheus", || {
            prometheus.get("/-/ready").contains("200 OK").then_some(())
        });
        prometheus
    }

    /// What it answers, head included. HTTP 1.0 has no chunks.
    fn get(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(self.address).unwrap();
        write!(stream, "GET {path} HTTP/1.0\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    /// The data of an answer of its API.
    fn data(&self, path: &str) -> Value {
        let answer = self.get(path);
        let (_head, body) = answer.split_once("\r\n\r\n").unwrap();
        let mut body: Value = serde_json::from_str(body).unwrap();
        assert_eq!(body["status"], "success", "{path}: {body}");
        body["data"].take()
    }

    /// The values of an instant vector.
    fn query(&self, promql: &str, at: &str) -> Vec<f64> {
        let promql: String = promql.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let data = self.data(&format!("/api/v1/query?query={promql}{at}"));
        let samples = data["result"].as_array().unwrap().iter();
        samples
            .map(|sample| sample["value"][1].as_str().unwrap().parse().unwrap())
            .collect()
    }

    /// The instant of the newest scrape, as an argument of [`Prometheus::query`].
    fn newest_scrape(&self) -> Option<String> {
        let newest = self.query("timestamp(hailmary_copies_total)", "");
        newest.first().map(|seconds| format!("&time={seconds:.3}"))
    }

    fn rules(&self) -> Vec<Value> {
        let mut data = self.data("/api/v1/rules");
        let groups = data["groups"].as_array_mut().unwrap().iter_mut();
        groups
            .flat_map(|group| group["rules"].take().as_array().unwrap().clone())
            .collect()
    }

    fn alerts(&self) -> Vec<Value> {
        let data = self.data("/api/v1/alerts");
        data["alerts"].as_array().unwrap().clone()
    }
}

/// Events for the living and the dead, for nobody, and of a topic that is none.
fn publish_some(socket: &UdpSocket, bus: SocketAddr) {
    for topics in [&["a.b", "a.c", "nobody"][..], &["a..b", "a.b"]] {
        let events = topics.iter().map(|topic| event(topic)).collect();
        socket.send_to(&datagram(events), bus).unwrap();
    }
    socket.send_to(b"malformed", bus).unwrap();
}

/// Checks the laws in scrape after scrape, and says when the last one was.
fn scrape_under_load(prometheus: &Prometheus, publish: impl Fn()) -> String {
    let (mut busy, mut copies) = (0, vec![0.0]);
    wait_until("scrapes under load", || {
        publish();
        let at = prometheus.newest_scrape()?;
        let before = std::mem::replace(&mut copies, prometheus.query("hailmary_copies_total", &at));
        if copies == before {
            return None;
        }
        assert_eq!(prometheus.query("up", &at), [1.0]);
        for law in LAWS {
            assert_eq!(prometheus.query(law, &at), [0.0], "{law}");
        }
        busy += 1;
        (busy >= SCRAPES).then_some(at)
    })
}

/// Asks all that the dashboard asks, and expects an answer.
fn assert_dashboard_has_data(prometheus: &Prometheus, at: &str) {
    let dashboard: Value = serde_json::from_str(DASHBOARD).unwrap();
    for query in panels(&dashboard).into_iter().flat_map(queries) {
        let promql = query
            .replace("$instance", ".*")
            .replace("$__rate_interval", "1m")
            .replace("$__range", "1m");
        let answer = prometheus.query(&promql, at);
        assert!(!answer.is_empty(), "{promql}");
    }
}

/// Waits till all rules have been evaluated, none with an error.
fn assert_rules_work(prometheus: &Prometheus) {
    let rules = wait_until("all rules", || {
        let rules = prometheus.rules();
        let is_known = |rule: &Value| rule["health"] != "unknown";
        (!rules.is_empty() && rules.iter().all(is_known)).then_some(rules)
    });
    for rule in rules {
        assert_eq!(rule["health"], "ok", "{rule}");
    }
}

/// Waits till the dead subscribers have raised an alarm, which the living one must not.
fn assert_the_dead_are_told_of(prometheus: &Prometheus, publish: impl Fn()) {
    let names = wait_until("alerts on the dead", || {
        publish();
        let alerts = prometheus.alerts();
        for alert in &alerts {
            assert!(
                !alert["annotations"].to_string().contains("<error"),
                "{alert}"
            );
        }
        let burning = alerts.iter().map(|alert| &alert["labels"]);
        let burning =
            burning.filter(|labels| labels["alertname"] == "HailmaryLossBudgetBurningFast");
        let names: BTreeSet<_> = burning
            .map(|labels| labels["subscriber"].as_str().unwrap().to_owned())
            .collect();
        (names.len() >= 3).then_some(names)
    });
    assert!(names.iter().eq(["dead", "full", "gone"]), "{names:?}");
}

#[test]
#[ignore = "needs prometheus and promtool"]
fn a_real_prometheus_sees_the_laws_hold() {
    let scene = Scene::start("");
    let bus = &scene.bus;
    let _listener = Subscribing::start(bus.address(), &["a.>", "--name", "listener"]);
    let prometheus = Prometheus::start(bus);
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let publish = || publish_some(&socket, bus.udp());

    let at = scrape_under_load(&prometheus, publish);
    for dropped in [
        "hailmary_egress_dropped_events_total{subscriber=\"gone\",reason=\"refused\"}",
        "hailmary_egress_dropped_events_total{subscriber=\"dead\",reason=\"refused\"}",
        "hailmary_egress_dropped_events_total{subscriber=\"full\",reason=\"would_block\"}",
        "hailmary_egress_events_total{subscriber=\"listener\"}",
        "hailmary_ingress_dropped_events_total{reason=\"bad_topic\"}",
        "hailmary_unmatched_events_total",
    ] {
        let counts = prometheus.query(dropped, &at);
        assert!(counts.iter().sum::<f64>() > 0.0, "{dropped}: {counts:?}");
    }
    assert_dashboard_has_data(&prometheus, &at);
    assert_rules_work(&prometheus);
    assert_the_dead_are_told_of(&prometheus, publish);
    assert_clean(&bus.get("/metrics"));
}
