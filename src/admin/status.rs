//! `GET /status`: everything an operator may want to see at one moment, as JSON.

use std::sync::atomic::Ordering;

use serde_json::{Map, Value, json};

use super::State;
use super::effective::effective;
use super::history::{millis, rounded};
use crate::clock;
use crate::config::Endpoint;
use crate::domain::chat::command::CommandName;
use crate::gateway::Gateway;
use crate::telemetry::log;
use crate::telemetry::metrics::histogram::HistogramSnapshot;
use crate::telemetry::metrics::labels::{CallResult, CommandLabel, Outcome};
use crate::telemetry::metrics::process::Process;
use crate::telemetry::metrics::{AppTotals, SOURCES};

/// The whole document.
pub(super) fn render(state: &State) -> Value {
    let gateway = &state.current.gateway();
    let config = &gateway.config;
    let totals = gateway.metrics.totals();
    let (now, process) = (clock::unix_now(), Process::now());
    let budget = |held: usize, max: usize| json!({ "now": held, "max": max });
    let apps: Vec<Value> = (0..config.apps.len()).map(|app| app_status(state, gateway, app, &totals[app])).collect();
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "now": rounded(now.as_secs_f64()),
        "uptime_seconds": rounded(now.saturating_sub(state.started_at).as_secs_f64()),
        "ready": state.ready.load(Ordering::Acquire),
        "connections": budget(state.connections(), config.server.max_connections),
        "requests_in_flight": budget(gateway.requests.in_use(), config.server.max_requests),
        "buffered_bytes": budget(gateway.buffered.in_use(), config.server.max_buffered),
        "log": {
            "level": log::level().map(|level| level.as_str().to_ascii_lowercase()),
            "lines_dropped": log::dropped_lines(),
        },
        "process": {
            "resident_bytes": process.resident_bytes,
            "cpu_seconds": process.cpu_secs,
            "open_fds": process.open_fds,
            "max_fds": process.max_fds,
            "threads": process.threads,
        },
        "fleet": gateway.fleet.as_ref().map(|fleet| {
            let figures = fleet.stats();
            json!({
                "mode": figures.mode.as_str(),
                "cause": fleet.cause().as_deref(),
                "losses": figures.disconnects,
                "permits": figures.permits,
                "pairs_read": figures.cache_lookups,
                "pairs_found": figures.cache_hits,
                "evictions_told": figures.invalidations_sent,
                "evictions_heard": figures.invalidations_received,
            })
        }),
        "apps": apps,
        "without_app": { "requests": requests(&totals[config.apps.len()]) },
        "config": effective(config),
    })
}

fn app_status(state: &State, gateway: &Gateway, app: usize, totals: &AppTotals) -> Value {
    let (config, figures) = (&gateway.config.apps[app], gateway.stats(app));
    let (point, rates) = state.history.latest(&config.name);
    let (place, cause) = gateway.upstream_state(app);
    let age = clock::unix_now().as_secs_f64() - figures.signature_issued_at as f64;
    let mut request_time = HistogramSnapshot::default();
    totals.commands.iter().for_each(|(_, command)| request_time.add(&command.request_time));
    json!({
        "name": config.name.as_str(),
        "sdkappid": config.sdkappid.get(),
        "region": region(config),
        "endpoint": config.endpoint.to_string(),
        "default": gateway.config.default_app().is_some_and(|default| default.name == config.name),
        "state": { "is": place.word(), "cause": cause },
        "clock_skew_seconds": gateway.clock_skew(app),
        "signature": {
            "age_seconds": rounded(age),
            "expires_in_seconds": rounded(figures.signature_lifetime as f64 - age),
            "lifetime_seconds": figures.signature_lifetime,
        },
        "cache": {
            "pairs": figures.cache_pairs,
            "max_pairs": gateway.config.cache.max_pairs,
            "hit_ratio": hit_ratio(totals),
        },
        "queue": { "pairs_queued": figures.pairs_queued, "pairs_waited_for": figures.pairs_waiting },
        "calls_in_flight": { "now": figures.calls_in_flight, "max": gateway.config.upstream.max_in_flight },
        "quota": quotas(gateway, app, &rates),
        "last_second": point,
        "since_start": {
            "requests": requests(totals),
            "pairs": SOURCES.iter().zip(totals.pairs).map(|(source, count)| ((*source).to_owned(), count.into()))
                .collect::<Map<String, Value>>(),
            "calls": calls(totals),
            "request_ms": percentiles(&request_time),
            "call_ms": percentiles(&totals.call_time),
            "quota_wait_ms": percentiles(&totals.quota_wait),
        },
    })
}

/// The region, unless the calls go to an endpoint of the operator's own.
fn region(config: &crate::config::App) -> Option<&'static str> {
    (config.endpoint == Endpoint::https(config.region.host())).then(|| config.region.name())
}

/// The share of pairs that needed no call of their own. `None` if there were none.
fn hit_ratio(totals: &AppTotals) -> Option<f64> {
    let [hit, joined, fetched, _, stale] = totals.pairs;
    let all = hit + joined + fetched + stale;
    (all > 0).then(|| rounded((hit + stale) as f64 / all as f64))
}

/// The quotas of the commands that were called, `follow_check` or not.
fn quotas(gateway: &Gateway, app: usize, rates: &[(CommandLabel, f64)]) -> Vec<Value> {
    let quota = |name: CommandName<'_>, rate: f64| {
        let figures = gateway.quota_stats(app, name);
        json!({
            "command": name.to_string(),
            "limit": figures.limit,
            "configured": figures.configured,
            "lowered": figures.limit < figures.configured,
            "calls_per_second": rate,
            "next_permit_seconds": rounded(figures.next_permit.as_secs_f64()),
            "calls_waiting": figures.waiting,
        })
    };
    rates.iter().filter_map(|(label, rate)| Some(quota(label.name()?, *rate))).collect()
}

fn requests(totals: &AppTotals) -> Map<String, Value> {
    let count = |outcome: Outcome| -> u64 {
        totals.commands.iter().map(|(_, command)| command.requests[outcome.index()]).sum()
    };
    let counts = Outcome::all().map(|outcome| (outcome, count(outcome)));
    let there = counts.filter(|(outcome, count)| *count > 0 || *outcome == Outcome::OK);
    there.map(|(outcome, count)| (outcome.text().to_owned(), count.into())).collect()
}

/// Calls by what became of them, with what the codes mean.
fn calls(totals: &AppTotals) -> Vec<Value> {
    let count = |end: CallResult| -> u64 {
        totals.commands.iter().filter_map(|(_, command)| command.calls.get(end.index())).sum()
    };
    let counts = CallResult::all().map(|end| (end, count(end))).filter(|(_, count)| *count > 0);
    counts.map(|(end, count)| json!({ "code": end.text(), "count": count, "meaning": end.meaning() })).collect()
}

fn percentiles(spread: &HistogramSnapshot) -> Value {
    json!({ "p50": millis(spread, 0.5), "p90": millis(spread, 0.9), "p99": millis(spread, 0.99) })
}

/// `GET /status/history/NAME`: the points of one app, the latest last.
pub(super) fn history(state: &State, name: &str) -> Option<Value> {
    let gateway = state.current.gateway();
    let app = gateway.config.apps.iter().find(|app| app.name.as_str() == name)?;
    Some(json!({ "app": name, "points": state.history.points(&app.name) }))
}
