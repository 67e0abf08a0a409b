//! `GET /status`: the state of the gateway and of each app, as JSON.

use std::sync::atomic::Ordering;

use serde_json::{Map, Value, json};

use super::State;
use super::effective::effective;
use super::history::{millis, rounded};
use crate::clock;
use crate::config::Endpoint;
use crate::domain::caller::Class;
use crate::domain::chat::command::CommandName;
use crate::domain::chat::region::Region;
use crate::domain::relation::RelationKind;
use crate::gateway::webhooks::FORWARDS_MAX;
use crate::gateway::{App, CallerStats, Gateway};
use crate::platform;
use crate::telemetry::log;
use crate::telemetry::metrics::histogram::HistogramSnapshot;
use crate::telemetry::metrics::labels::{CallLabel, CommandLabel, Outcome};
use crate::telemetry::metrics::{AppTotals, CommandTotals, PairCounts, ReadSource, SOURCES};

/// Returns the document.
pub(super) fn render(state: &State) -> Value {
    let gateway = &state.current.gateway();
    let config = &gateway.config;
    let totals = gateway.metrics.totals();
    let (now, process) = (clock::unix_now(), platform::resource_usage());
    let capacity = |in_use: usize, max: usize| json!({ "now": in_use, "max": max });
    let of_callers = gateway.caller_stats();
    let apps = gateway.apps.iter().zip(&totals).zip(&of_callers);
    let apps: Vec<Value> =
        apps.map(|((app, totals), callers)| app_status(state, gateway, app, totals, callers)).collect();
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "now": rounded(now.as_secs_f64()),
        "uptime_seconds": rounded(now.saturating_sub(state.started_at).as_secs_f64()),
        "ready": state.ready.load(Ordering::Acquire),
        "connections": capacity(state.connections(), config.server.max_connections),
        "admin_connections": capacity(state.admin_limit.in_use(), config.server.admin_max_connections),
        "requests_in_flight": capacity(gateway.requests.in_use(), config.server.max_requests),
        "buffered_bytes": capacity(gateway.buffered.in_use(), config.server.max_buffered),
        "read_cache": read_cache(gateway),
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
            let stats = fleet.stats();
            json!({
                "mode": stats.mode.as_str(),
                "cause": fleet.cause().as_deref(),
                "disconnects": stats.disconnects,
                "permits": stats.permits,
                "cache_lookups": stats.cache_lookups,
                "cache_hits": stats.cache_hits,
                "invalidations_sent": stats.invalidations_sent,
                "invalidations_received": stats.invalidations_received,
            })
        }),
        "apps": apps,
        "without_app": {
            "requests": requests(&totals[config.apps.len()]),
            "callers": callers(&of_callers[config.apps.len()]),
        },
        "config": effective(config),
    })
}

fn app_status(
    state: &State,
    gateway: &Gateway,
    app: &App,
    totals: &AppTotals,
    of_callers: &[CallerStats<'_>],
) -> Value {
    let stats = app.stats();
    let config = gateway.config.apps.iter().find(|config| config.name == app.name).expect("its configuration");
    let (point, rates) = state.history.latest(&config.name);
    let (upstream_state, cause) = app.upstream_state();
    let age = clock::unix_now().as_secs_f64() - stats.signature_issued_at as f64;
    let mut request_time = HistogramSnapshot::default();
    totals.commands.iter().for_each(|(_, command)| request_time.add(&command.request_time));
    json!({
        "name": config.name.as_str(),
        "sdkappid": config.sdkappid.get(),
        "region": region(config),
        "endpoint": config.endpoint.to_string(),
        "default": gateway.config.default_app().is_some_and(|default| default.name == config.name),
        "state": { "is": upstream_state.word(), "cause": cause, "proxy_failure": app.proxy_failure() },
        "clock_skew_seconds": app.clock_skew(),
        "signature": {
            "age_seconds": rounded(age),
            "expires_in_seconds": rounded(stats.signature_lifetime as f64 - age),
            "lifetime_seconds": stats.signature_lifetime,
        },
        "cache": {
            "pairs": stats.cache_pairs,
            "max_pairs": gateway.config.cache.max_pairs * gateway.config.relation.kinds.len(),
            "hit_ratio": hit_ratio(&totals.pairs()),
        },
        "relations": relations(app, totals),
        "cached_reads": cached_reads(totals),
        "queue": {
            "pairs_queued": stats.pairs_queued,
            "pairs_waited_for": stats.pairs_waiting,
            "refreshes_queued": stats.refreshes_queued,
        },
        "calls_in_flight": { "now": stats.calls_in_flight, "max": gateway.config.upstream.max_in_flight },
        "quota": quotas(app, &rates),
        "webhooks": webhooks(gateway, app),
        "callers": callers(of_callers),
        "last_second": point,
        "since_start": {
            "requests": requests(totals),
            "pairs": pairs(&totals.pairs()),
            "calls": calls(totals),
            "request_ms": percentiles(&request_time),
            "call_ms": percentiles(&totals.call_time),
            "quota_wait_ms": percentiles(&totals.quota_wait),
        },
    })
}

/// Returns the size of the cache of other reads; `None` if no command is cached.
fn read_cache(gateway: &Gateway) -> Option<Value> {
    let reads = &gateway.reads;
    let entry = || json!({ "bytes": { "now": reads.bytes(), "max": reads.max_bytes() }, "entries": reads.len() });
    (!gateway.config.cache.commands.is_empty()).then(entry)
}

/// Returns the cached reads that were requested, by command.
fn cached_reads(totals: &AppTotals) -> Vec<Value> {
    let requested = totals.commands.iter().filter(|(_, totals)| totals.reads.iter().any(|count| *count > 0));
    let row = |(command, totals): &(CommandLabel, CommandTotals)| {
        let [hit, joined, fetched, stale, _] = totals.reads;
        let all = hit + joined + fetched + stale;
        let mut row: Map<String, Value> = Map::new();
        row.insert("command".to_owned(), command.text().into());
        row.extend(
            ReadSource::ALL.iter().zip(totals.reads).map(|(source, count)| (source.text().to_owned(), count.into())),
        );
        row.insert("hit_ratio".to_owned(), (all > 0).then(|| rounded((hit + stale) as f64 / all as f64)).into());
        Value::Object(row)
    };
    requested.map(row).collect()
}

/// Returns the configured callers that have sent a request, those with the most calls first.
fn callers(stats: &[CallerStats<'_>]) -> Vec<Value> {
    let mut stats: Vec<_> = stats.iter().collect();
    stats.sort_by_key(|caller| std::cmp::Reverse(caller.totals.calls));
    let caller = |CallerStats { name, class, totals }: &CallerStats<'_>| {
        let refused = totals.refusals().map(|(outcome, count)| (outcome.text().to_owned(), count.into()));
        json!({
            "name": name.as_str(),
            "class": class.name(),
            "calls": totals.calls,
            "pairs": pairs(&totals.pairs),
            "refused": refused.collect::<Map<String, Value>>(),
            "waited_seconds": rounded(totals.waited_micros as f64 / 1e6),
        })
    };
    stats.into_iter().map(caller).collect()
}

/// Returns the pairs of each relation that is enabled, by its name.
fn relations(app: &App, totals: &AppTotals) -> Map<String, Value> {
    let relation = |(kind, cached): (&RelationKind, usize)| {
        let counts = &totals.relations[kind.index];
        let value = json!({ "pairs_cached": cached, "hit_ratio": hit_ratio(counts), "pairs": pairs(counts) });
        (kind.name.to_owned(), value)
    };
    app.cached_by_relation().map(relation).collect()
}

fn pairs(counts: &PairCounts) -> Map<String, Value> {
    SOURCES.iter().zip(counts).map(|(source, count)| ((*source).to_owned(), (*count).into())).collect()
}

/// Returns what became of the webhooks for an app; `None` if they are not forwarded.
fn webhooks(gateway: &Gateway, app: &App) -> Option<Value> {
    gateway.config.webhook.as_ref()?.forward.get(&app.name)?;
    let outcomes = app.webhooks.forwards.outcomes().map(|(outcome, count)| (outcome.text().to_owned(), count.into()));
    Some(json!({
        "forwarded": outcomes.collect::<Map<String, Value>>(),
        "in_flight": { "now": app.webhooks.in_flight.in_use(), "max": FORWARDS_MAX },
        "response_ms": percentiles(&app.webhooks.forwards.time()),
    }))
}

/// Returns the region; `None` if the configuration sets another endpoint.
fn region(config: &crate::config::App) -> Option<&'static str> {
    config.region.filter(|region| config.endpoint == Endpoint::https(region.host())).map(Region::name)
}

/// Returns the fraction of pairs that were cached; `None` without pairs.
fn hit_ratio(pairs: &PairCounts) -> Option<f64> {
    let [hit, joined, fetched, _, stale] = *pairs;
    let all = hit + joined + fetched + stale;
    (all > 0).then(|| rounded((hit + stale) as f64 / all as f64))
}

/// Returns the quotas of the commands that were called.
fn quotas(app: &App, rates: &[(CommandLabel, f64)]) -> Vec<Value> {
    let quota = |name: CommandName<'_>, rate: f64| {
        let stats = app.quota_stats(name);
        json!({
            "command": name.to_string(),
            "limit": stats.limit,
            "configured": stats.configured,
            "lowered": stats.limit < stats.configured,
            "calls_per_second": rate,
            "next_permit_seconds": rounded(stats.next_permit.as_secs_f64()),
            "calls_waiting": stats.waiting(),
            "batch_calls_waiting": stats.waiting[Class::Batch],
        })
    };
    rates.iter().filter_map(|(label, rate)| Some(quota(label.name()?, *rate))).collect()
}

fn requests(totals: &AppTotals) -> Map<String, Value> {
    let count = |outcome: Outcome| -> u64 {
        totals.commands.iter().map(|(_, command)| command.requests[outcome.index()]).sum()
    };
    let counts = Outcome::all().map(|outcome| (outcome, count(outcome)));
    let shown = counts.filter(|(outcome, count)| *count > 0 || *outcome == Outcome::OK);
    shown.map(|(outcome, count)| (outcome.text().to_owned(), count.into())).collect()
}

/// Returns the calls by result, with the meaning of each code.
fn calls(totals: &AppTotals) -> Vec<Value> {
    let count = |result: CallLabel| -> u64 {
        totals.commands.iter().filter_map(|(_, command)| command.calls.get(result.index())).sum()
    };
    let counts = CallLabel::all().map(|result| (result, count(result))).filter(|(_, count)| *count > 0);
    counts
        .map(|(result, count)| json!({ "code": result.text(), "count": count, "meaning": result.meaning() }))
        .collect()
}

fn percentiles(durations: &HistogramSnapshot) -> Value {
    json!({ "p50": millis(durations, 0.5), "p90": millis(durations, 0.9), "p99": millis(durations, 0.99) })
}

/// Returns the document of `GET /status/history/NAME`: the points of one app, the latest last. `None` for an unknown
/// app.
pub(super) fn history(state: &State, name: &str) -> Option<Value> {
    let gateway = state.current.gateway();
    let app = gateway.config.apps.iter().find(|app| app.name.as_str() == name)?;
    Some(json!({ "app": name, "points": state.history.points(&app.name) }))
}
