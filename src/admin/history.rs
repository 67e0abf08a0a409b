//! The last two minutes of each app, with one point per second. `/status` shows the latest point, and the page plots
//! all of them.

use std::collections::VecDeque;

use parking_lot::Mutex;
use serde::Serialize;

use crate::clock;
use crate::domain::chat::app::AppName;
use crate::domain::tick::Tick;
use crate::gateway::Gateway;
use crate::telemetry::metrics::AppTotals;
use crate::telemetry::metrics::PairCounts;
use crate::telemetry::metrics::histogram::HistogramSnapshot;
use crate::telemetry::metrics::labels::{CallLabel, CommandLabel, Outcome};

/// Maximum number of points of an app.
const POINTS_MAX: usize = 120;
/// Window of the latency percentiles in seconds. Percentiles of a single second would fluctuate too much.
const LATENCY_SECS: usize = 10;

/// The history of all configured apps, by name.
#[derive(Debug, Default)]
pub(super) struct History(Mutex<Vec<(AppName, AppHistory)>>);

#[derive(Debug, Default)]
struct AppHistory {
    points: VecDeque<Point>,
    /// Counters at the last [`LATENCY_SECS`] + 1 points, the latest last.
    counters: VecDeque<CounterSnapshot>,
    /// Calls per second of each command at the latest point.
    rates: Vec<(CommandLabel, f64)>,
}

/// One second of an app. Rates are per second.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub(super) struct Point {
    /// Seconds since 1970.
    pub at: u64,
    /// Requests with a successful response.
    pub ok: f64,
    /// Requests for which Chat returned an error.
    pub failed: f64,
    /// Requests that chatgate rejected or could not complete.
    pub refused: f64,
    /// Pairs by source.
    pub hit: f64,
    pub joined: f64,
    pub fetched: f64,
    pub flipped: f64,
    pub stale: f64,
    /// Calls to Chat with ErrorCode 0.
    pub calls_ok: f64,
    /// All other calls to Chat.
    pub calls_failed: f64,
    /// Percentiles of the request durations of the last [`LATENCY_SECS`], in milliseconds; `None` without requests.
    pub p50_ms: Option<f64>,
    pub p90_ms: Option<f64>,
    pub p99_ms: Option<f64>,
    /// Queued pairs and calls.
    pub queued: usize,
    /// The largest fraction of a command's quota that is in use; 1 is the whole quota.
    pub quota_use: f64,
    /// The command of `quota_use`.
    pub quota_command: Option<String>,
}

/// The counters of an app at one instant.
#[derive(Debug, Clone)]
struct CounterSnapshot {
    at: Tick,
    requests: RequestCounts,
    pairs: PairCounts,
    calls_ok: u64,
    calls_failed: u64,
    calls_by_command: Vec<(CommandLabel, u64)>,
    request_time: HistogramSnapshot,
}

#[derive(Debug, Clone, Default)]
struct RequestCounts {
    ok: u64,
    failed: u64,
    refused: u64,
}

impl History {
    /// Adds a point to each app.
    pub(super) fn add(&self, gateway: &Gateway) {
        let totals = gateway.metrics.totals();
        let (now, unix_now) = (clock::tick(), clock::unix_now().as_secs());
        let mut apps = self.0.lock();
        apps.retain(|(name, _)| gateway.apps.iter().any(|app| app.name == *name));
        for (app, totals) in gateway.apps.iter().zip(&totals) {
            let position = apps.iter().position(|(name, _)| *name == app.name).unwrap_or_else(|| {
                apps.push((app.name.clone(), AppHistory::default()));
                apps.len() - 1
            });
            let history = &mut apps[position].1;
            let counters = CounterSnapshot::new(now, totals);
            let Some(previous) = history.counters.back() else {
                history.counters.push_back(counters);
                continue;
            };
            let earliest = history.counters.front().unwrap_or(previous);
            let (mut point, rates) = counters.point_since(previous, earliest);
            point.at = unix_now;
            point.queued = app.stats().pairs_queued;
            for (label, rate) in &rates {
                let Some(name) = label.name() else { continue };
                let quota = app.quota_stats(name);
                point.queued += quota.waiting();
                let fraction = rounded(rate / f64::from(quota.limit));
                if fraction > point.quota_use {
                    (point.quota_use, point.quota_command) = (fraction, Some(name.to_string()));
                }
            }
            history.rates = rates;
            push_bounded(&mut history.counters, counters, LATENCY_SECS + 1);
            push_bounded(&mut history.points, point, POINTS_MAX);
        }
    }

    /// Returns the latest point of an app, and the calls per second of each command at it.
    pub(super) fn latest(&self, app: &AppName) -> (Point, Vec<(CommandLabel, f64)>) {
        let apps = self.0.lock();
        let history = apps.iter().find(|(name, _)| name == app).map(|(_, history)| history);
        history
            .map(|history| (history.points.back().cloned().unwrap_or_default(), history.rates.clone()))
            .unwrap_or_default()
    }

    /// Returns the points of an app, the latest last.
    pub(super) fn points(&self, app: &AppName) -> Vec<Point> {
        let apps = self.0.lock();
        let history = apps.iter().find(|(name, _)| name == app).map(|(_, history)| history);
        history.map(|history| history.points.iter().cloned().collect()).unwrap_or_default()
    }
}

impl CounterSnapshot {
    fn new(at: Tick, totals: &AppTotals) -> Self {
        let mut requests = RequestCounts::default();
        let (mut calls_ok, mut calls_failed, mut calls_by_command) = (0, 0, Vec::new());
        let mut request_time = HistogramSnapshot::default();
        for (label, command) in &totals.commands {
            let [ok, failed] = [Outcome::OK, Outcome::FAILED].map(|outcome| command.requests[outcome.index()]);
            requests.ok += ok;
            requests.failed += failed;
            requests.refused += command.requests.iter().sum::<u64>() - ok - failed;
            let (all, ok) = (command.call_count(), command.calls.get(CallLabel::OK.index()).copied().unwrap_or(0));
            calls_ok += ok;
            calls_failed += all - ok;
            calls_by_command.push((*label, all));
            request_time.add(&command.request_time);
        }
        Self { at, requests, pairs: totals.pairs(), calls_ok, calls_failed, calls_by_command, request_time }
    }

    /// Returns the point between `previous` and this snapshot, and the calls per second of each command. The latency
    /// percentiles cover the time since `earliest`.
    fn point_since(&self, previous: &CounterSnapshot, earliest: &CounterSnapshot) -> (Point, Vec<(CommandLabel, f64)>) {
        let secs = self.at.since(previous.at).as_secs_f64().max(0.001);
        let rate = |now: u64, before: u64| rounded(now.saturating_sub(before) as f64 / secs);
        let [hit, joined, fetched, flipped, stale] =
            std::array::from_fn(|source| rate(self.pairs[source], previous.pairs[source]));
        let latency = self.request_time.since(&earliest.request_time);
        let [p50_ms, p90_ms, p99_ms] = [0.5, 0.9, 0.99].map(|q| millis(&latency, q));
        let rates = self.calls_by_command.iter().map(|(label, calls)| {
            let earlier = previous.calls_by_command.iter().find(|(other, _)| other == label);
            (*label, rate(*calls, earlier.map_or(0, |(_, calls)| *calls)))
        });
        let point = Point {
            ok: rate(self.requests.ok, previous.requests.ok),
            failed: rate(self.requests.failed, previous.requests.failed),
            refused: rate(self.requests.refused, previous.requests.refused),
            hit,
            joined,
            fetched,
            flipped,
            stale,
            calls_ok: rate(self.calls_ok, previous.calls_ok),
            calls_failed: rate(self.calls_failed, previous.calls_failed),
            p50_ms,
            p90_ms,
            p99_ms,
            ..Point::default()
        };
        (point, rates.collect())
    }
}

/// Returns the `q`-quantile in milliseconds.
pub(super) fn millis(durations: &HistogramSnapshot, q: f64) -> Option<f64> {
    durations.quantile(q).map(|secs| rounded(secs * 1000.0))
}

/// Rounds to three decimal places, which keeps the JSON short.
pub(super) fn rounded(number: f64) -> f64 {
    (number * 1000.0).round() / 1000.0
}

/// Appends an item and removes the oldest ones beyond `max`.
fn push_bounded<T>(queue: &mut VecDeque<T>, item: T, max: usize) {
    queue.push_back(item);
    while queue.len() > max {
        queue.pop_front();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::domain::chat::command::FOLLOW_CHECK;
    use crate::domain::relation::{FOLLOW, FRIEND};
    use crate::telemetry::metrics::Metrics;

    #[test]
    fn point_covers_the_time_since_the_previous_snapshot() {
        let metrics = Metrics::new(1);
        let (recorder, check) = (Arc::clone(&metrics.recorder().apps()[0]), CommandLabel::of(FOLLOW_CHECK));
        let snapshot = |secs: u64| CounterSnapshot::new(Tick::from_micros(secs * 1_000_000), &metrics.totals()[0]);
        let count = |outcome, took| recorder.request(check, outcome, Duration::from_millis(took));
        count(Outcome::OK, 4000);
        recorder.call(check, CallLabel::OK, Duration::ZERO);
        let first = snapshot(10);
        for outcome in [Outcome::OK, Outcome::OK, Outcome::FAILED] {
            count(outcome, 1);
        }
        recorder.request(check, Outcome::rejected(&crate::error::GatewayError::NotFound), Duration::ZERO);
        recorder.pairs(&FOLLOW, &[4, 1, 3, 2, 0]);
        recorder.pairs(&FRIEND, &[2, 0, 0, 0, 0]);
        for code in [0, 60007, 60007] {
            recorder.call(check, CallLabel::answered(code), Duration::ZERO);
        }
        let (point, rates) = snapshot(12).point_since(&first, &first);
        assert_eq!((point.ok, point.failed, point.refused), (1.0, 0.5, 0.5));
        assert_eq!((point.hit, point.joined, point.fetched, point.flipped), (3.0, 0.5, 1.5, 1.0));
        assert_eq!((point.calls_ok, point.calls_failed), (0.5, 1.0));
        assert_eq!(rates, [(check, 1.5)]);
        assert!(point.p99_ms.is_some_and(|p99| p99 <= 1.0), "{point:?}");
    }

    #[test]
    fn push_bounded_removes_the_oldest_items() {
        let mut queue = VecDeque::new();
        (0..10).for_each(|item| push_bounded(&mut queue, item, 3));
        assert_eq!(queue, [7, 8, 9]);
    }
}
