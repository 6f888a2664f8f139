//! What people and scripts ask: JSON.

use std::sync::Arc;

use axum::Json;
use axum::extract::State as Shared;
use serde_json::{Map, Value, json};

use crate::bus::overload::Thinning;
use crate::bus::policies::Priority;
use crate::canary::Board;
use crate::confine::Confinement;
use crate::ledger::Counts;
use crate::reload::Reload;
use crate::state::{Kind, ListenerInfo, Phase, State};

use super::Desk;

/// `GET /api/v1/status`
pub(super) async fn status(Shared(desk): Shared<Arc<Desk>>) -> Json<Value> {
    let accounts = desk.state.accounts().flatten();
    let kernel_drops = accounts.map(|account| account.drops).sum();
    Json(json!({
        "version": env!("CARGO_PKG_VERSION"),
        "bus": format!("{:016x}", desk.state.bus),
        "phase": match desk.state.phase() {
            Phase::Starting => "starting",
            Phase::Ready => "ready",
            Phase::Stopping => "stopping",
        },
        "pid": std::process::id(),
        "uptime_seconds": desk.state.started.elapsed().as_secs_f64(),
        "listeners": listeners(&desk.state),
        "subscribers": desk.state.subscribers().len(),
        "overload": overload(&desk.state),
        "canary": canary(&desk.state.canary),
        "confinement": confinement(&desk.state.confinement),
        "reload": desk.state.reloads.last().map(reload),
        "totals": totals(&desk.totals().counts, kernel_drops),
    }))
}

/// Those that are open.
fn listeners(state: &State) -> Vec<Value> {
    let listener = |info: &ListenerInfo| {
        let buffer = info.buffer()?;
        let account = info.account.read();
        Some(json!({
            "address": info.name,
            "inodes": info.account.inodes(),
            "wanted_buffer_bytes": buffer.wanted,
            "granted_buffer_bytes": buffer.granted,
            "buffer_bytes": account.map(|account| account.size_bytes),
            "buffer_used_bytes": account.map(|account| account.used_bytes),
        }))
    };
    let all = state.listeners();
    all.iter().filter_map(|info| listener(info)).collect()
}

fn overload(state: &State) -> Value {
    let level = state.overload();
    let kept = |priority| Thinning::at(level).of(priority).sample.share();
    json!({
        "level": level.get(),
        "kept": {
            "low": kept(Priority::Low),
            "normal": kept(Priority::Normal),
            "high": kept(Priority::High),
        },
    })
}

fn canary(board: &Board) -> Option<Value> {
    let interval = board.interval()?;
    let streams: Vec<_> = board.streams().into_iter().flatten().collect();
    Some(json!({
        "interval_seconds": interval.as_secs_f64(),
        "sent": streams.iter().map(|stream| stream.sent).sum::<u64>(),
        "lost": streams.iter().map(|stream| stream.lost).sum::<u64>(),
    }))
}

fn confinement(confinement: &Confinement) -> Value {
    let holds = confinement.holds();
    let holds = holds.map(|(fence, hold)| (fence.label().to_owned(), json!(hold.name())));
    let mut shown: Map<String, Value> = holds.collect();
    shown.insert("mode".to_owned(), json!(confinement.mode().name()));
    shown.insert("dropped".to_owned(), json!(confinement.dropped()));
    Value::Object(shown)
}

/// The last one.
fn reload(last: Reload) -> Value {
    json!({
        "outcome": last.outcome().label(),
        "unix_seconds": last.unix_seconds,
        "error": last.result.err(),
    })
}

fn totals(counts: &Counts, kernel_drops: u64) -> Value {
    let events = &counts.events;
    json!({
        "frames": counts.listeners.iter().map(|listener| listener.frames).sum::<u64>(),
        "dropped_frames": counts.dropped_frames.iter().sum::<u64>() + kernel_drops,
        "events": events.events,
        "dropped_events": events.dropped(),
        "lost_before_the_bus": events.lost,
        "unmatched": events.unmatched,
        "matched": events.matched,
        "copies": events.copies,
        "sent": counts.series.iter().map(|series| series.events).sum::<u64>(),
        "dropped": counts.series.iter().flat_map(|series| series.dropped).sum::<u64>(),
    })
}

/// `GET /api/v1/subscribers`
pub(super) async fn subscribers(Shared(desk): Shared<Arc<Desk>>) -> Json<Value> {
    let subscribers = desk.state.subscribers();
    let subscriber = |info: &Arc<crate::state::SubscriberInfo>| {
        json!({
            "name": *info.name,
            "kind": match info.kind { Kind::Static => "static", Kind::Lease => "lease" },
            "address": info.address.to_string(),
            "topics": info.topics,
            "frame_bytes": info.frame_bytes,
            "group": info.terms.group.as_deref(),
            "sample": info.terms.sample.share(),
            "events_per_second": info.terms.events_per_second,
        })
    };
    Json(subscribers.iter().map(subscriber).collect())
}
