//! `GET /api/v1/topics`: the topics seen, as JSON.
//!
//! What strangers publish is shown here and nowhere else, and never more than was asked for.

use std::cmp::Reverse;
use std::sync::Arc;

use axum::Json;
use axum::extract::{RawQuery, State as Shared};
use axum::http::StatusCode;
use serde_json::{Value, json};

use crate::bus::limits::{RATE_WINDOW_SECONDS, SEEN_TOPICS_MAX};
use crate::bus::seen::TopicsSeen;
use crate::bus::sketch::{Counter, Sketch};

use super::Desk;

/// Topics in each list where the request does not say: what a person reads.
const LISTED_TOPICS: usize = 50;

/// `GET /api/v1/topics`
pub(super) async fn topics(
    Shared(desk): Shared<Arc<Desk>>,
    RawQuery(query): RawQuery,
) -> Result<Json<Value>, (StatusCode, String)> {
    let limit = limit(query.as_deref().unwrap_or_default()).ok_or_else(|| {
        let text = format!("limit is to be a whole number from 1 to {SEEN_TOPICS_MAX}\n");
        (StatusCode::BAD_REQUEST, text)
    })?;
    let totals = desk.topics_seen();
    let now = desk.state.started.elapsed().as_secs();
    Ok(Json(lists(&totals.seen, limit, now)))
}

/// Topics in each list by a request's query: none where that is wrong.
fn limit(query: &str) -> Option<usize> {
    let mut fields = query.split('&').filter_map(|field| field.split_once('='));
    let Some((_, limit)) = fields.find(|(name, _)| *name == "limit") else {
        return Some(LISTED_TOPICS);
    };
    let limit = limit.parse().ok()?;
    (1..=SEEN_TOPICS_MAX).contains(&limit).then_some(limit)
}

/// All three lists as of this second since the start of the program.
fn lists(seen: &TopicsSeen, limit: usize, now: u64) -> Value {
    // Before its end there has been no more than a part of the first window.
    let window_seconds = now.min(RATE_WINDOW_SECONDS.into());
    let rate = |events: u64| events as f64 / window_seconds.max(1) as f64;
    let plain = |counter: &Counter<()>| {
        json!({
            "topic": String::from_utf8_lossy(counter.topic()),
            "events": counter.events(),
            "events_per_second": rate(counter.events_before(now)),
        })
    };
    let dropped = top(&seen.dropped, limit).into_iter().map(|counter| {
        json!({
            "topic": String::from_utf8_lossy(counter.topic()),
            "reason": counter.kind().label(),
            "events": counter.events(),
            "events_per_second": rate(counter.events_before(now)),
        })
    });
    let dropped: Value = dropped.collect();
    let plain = |sketch| -> Value { top(sketch, limit).into_iter().map(plain).collect() };
    json!({
        "window_seconds": window_seconds,
        "busiest": plain(&seen.busiest),
        "unmatched": plain(&seen.unmatched),
        "dropped": dropped,
        "error_events": {
            "busiest": seen.busiest.error(),
            "unmatched": seen.unmatched.error(),
            "dropped": seen.dropped.error(),
        },
    })
}

/// Those with the most events, the most first.
fn top<K: Copy + Eq + std::hash::Hash>(sketch: &Sketch<K>, limit: usize) -> Vec<&Counter<K>> {
    let mut all: Vec<_> = sketch.counters().iter().collect();
    all.sort_unstable_by_key(|counter| (Reverse(counter.events()), counter.topic()));
    all.truncate(limit);
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::seen::EventDrop;

    #[test]
    fn a_limit_is_a_number_in_its_bounds() {
        for (query, expected) in [
            ("", Some(LISTED_TOPICS)),
            ("other=5", Some(LISTED_TOPICS)),
            ("limit", Some(LISTED_TOPICS)),
            ("limit=1", Some(1)),
            ("other=5&limit=7", Some(7)),
            ("limit=1024", Some(SEEN_TOPICS_MAX)),
            ("limit=1025", None),
            ("limit=0", None),
            ("limit=", None),
            ("limit=-1", None),
            ("limit=1.5", None),
            ("limit=99999999999999999999", None),
        ] {
            assert_eq!(limit(query), expected, "{query}");
        }
    }

    #[test]
    fn lists_have_their_order_and_rates_their_window() {
        let mut seen = TopicsSeen::new(7);
        for second in 1..=3 {
            seen.busiest.add(b"b", (), 100, second);
            seen.busiest.add(b"a", (), 100, second);
            seen.busiest.add(b"c", (), 200, second);
        }
        seen.dropped.add(b"a", EventDrop::NotAllowed, 30, 3);
        let busiest = |now| lists(&seen, 2, now)["busiest"].clone();
        let topic = |topic, events, rate| json!({"topic": topic, "events": events, "events_per_second": rate});
        assert_eq!(
            busiest(4),
            json!([topic("c", 600, 150.0), topic("a", 300, 75.0)])
        );
        assert_eq!(
            busiest(11),
            json!([topic("c", 600, 60.0), topic("a", 300, 30.0)])
        );
        assert_eq!(
            busiest(13),
            json!([topic("c", 600, 20.0), topic("a", 300, 10.0)])
        );
        assert_eq!(
            busiest(14),
            json!([topic("c", 600, 0.0), topic("a", 300, 0.0)])
        );
        let all = lists(&seen, 2, 12);
        assert_eq!(all["window_seconds"], 10);
        assert_eq!(
            all["dropped"],
            json!([{
                "topic": "a", "reason": "not_allowed", "events": 30, "events_per_second": 3.0
            }])
        );
        assert_eq!(all["unmatched"], json!([]));
        assert_eq!(lists(&seen, 2, 0)["window_seconds"], 0);
    }
}
