//! The last two minutes of each app, a point a second: what `/status` calls the last second, and what the page
//! plots.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::Serialize;

use crate::clock;
use crate::domain::chat::app::AppName;
use crate::domain::tick::Tick;
use crate::gateway::Gateway;
use crate::telemetry::metrics::AppTotals;
use crate::telemetry::metrics::PairCounts;
use crate::telemetry::metrics::histogram::HistogramSnapshot;
use crate::telemetry::metrics::labels::{CallResult, CommandLabel, Outcome};

/// How many points are kept.
pub(super) const POINTS_MAX: usize = 120;
/// How many seconds the percentiles of a point look back: of one second alone they would jump about.
const LATENCY_SECS: usize = 10;

/// The points of all apps there are, by name.
#[derive(Debug, Default)]
pub(super) struct History(Mutex<Vec<(AppName, AppHistory)>>);

#[derive(Debug, Default)]
struct AppHistory {
    points: VecDeque<Point>,
    /// What was counted at the last [`LATENCY_SECS`] + 1 points, the latest last.
    seen: VecDeque<Seen>,
    /// Calls a second of each command at the latest point.
    rates: Vec<(CommandLabel, f64)>,
}

/// One second of an app. Rates are a second's mean.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub(super) struct Point {
    /// Seconds since 1970.
    pub at: u64,
    /// Requests answered: well; Chat said no; chatgate said no.
    pub ok: f64,
    pub failed: f64,
    pub refused: f64,
    /// Pairs by source.
    pub hit: f64,
    pub joined: f64,
    pub fetched: f64,
    pub flipped: f64,
    pub stale: f64,
    /// Calls to Chat: answered with ErrorCode 0; others.
    pub calls_ok: f64,
    pub calls_failed: f64,
    /// Percentiles of the last ten seconds' requests, in milliseconds; `None` if there were none.
    pub p50_ms: Option<f64>,
    pub p90_ms: Option<f64>,
    pub p99_ms: Option<f64>,
    /// Pairs and calls that wait.
    pub queued: usize,
    /// Calls against the limit, of the command that is nearest to it: 1 is all there is.
    pub quota_use: f64,
    /// Which command that is.
    pub quota_command: Option<String>,
}

/// What was counted up to a moment.
#[derive(Debug, Clone)]
struct Seen {
    at: Tick,
    requests: [u64; 3],
    pairs: PairCounts,
    calls: [u64; 2],
    calls_of: Vec<(CommandLabel, u64)>,
    request_time: HistogramSnapshot,
}

impl History {
    /// Adds a point to each app.
    pub(super) fn add(&self, gateway: &Gateway) {
        let totals = gateway.metrics.totals();
        let (now, unix_now) = (clock::tick(), clock::unix_now().as_secs());
        let mut apps = self.apps();
        apps.retain(|(name, _)| gateway.apps.iter().any(|app| app.name == *name));
        for (app, totals) in gateway.apps.iter().zip(&totals) {
            let known = apps.iter().position(|(name, _)| *name == app.name).unwrap_or_else(|| {
                apps.push((app.name.clone(), AppHistory::default()));
                apps.len() - 1
            });
            let history = &mut apps[known].1;
            let seen = Seen::new(now, totals);
            let Some(before) = history.seen.back() else {
                history.seen.push_back(seen);
                continue;
            };
            let earliest = history.seen.front().unwrap_or(before);
            let (mut point, rates) = seen.point_since(before, earliest);
            point.at = unix_now;
            point.queued = app.stats().pairs_queued;
            for (label, rate) in &rates {
                let Some(name) = label.name() else { continue };
                let quota = app.quota_stats(name);
                point.queued += quota.waiting;
                let part = rounded(rate / f64::from(quota.limit));
                if part > point.quota_use {
                    (point.quota_use, point.quota_command) = (part, Some(name.to_string()));
                }
            }
            history.rates = rates;
            push(&mut history.seen, seen, LATENCY_SECS + 1);
            push(&mut history.points, point, POINTS_MAX);
        }
    }

    /// The latest point of an app, and calls a second of each command at it.
    pub(super) fn latest(&self, app: &AppName) -> (Point, Vec<(CommandLabel, f64)>) {
        let apps = self.apps();
        let history = apps.iter().find(|(name, _)| name == app).map(|(_, history)| history);
        history
            .map(|history| (history.points.back().cloned().unwrap_or_default(), history.rates.clone()))
            .unwrap_or_default()
    }

    /// All points of an app, the latest last.
    pub(super) fn points(&self, app: &AppName) -> Vec<Point> {
        let apps = self.apps();
        let history = apps.iter().find(|(name, _)| name == app).map(|(_, history)| history);
        history.map(|history| history.points.iter().cloned().collect()).unwrap_or_default()
    }

    fn apps(&self) -> MutexGuard<'_, Vec<(AppName, AppHistory)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seen {
    fn new(at: Tick, totals: &AppTotals) -> Self {
        let (mut requests, mut calls, mut request_time) = ([0; 3], [0; 2], HistogramSnapshot::default());
        let mut calls_of = Vec::new();
        for (label, command) in &totals.commands {
            let [ok, failed] = [Outcome::OK, Outcome::FAILED].map(|outcome| command.requests[outcome.index()]);
            let refused = command.requests.iter().sum::<u64>() - ok - failed;
            for (sum, count) in requests.iter_mut().zip([ok, failed, refused]) {
                *sum += count;
            }
            let (all, well) = (command.call_count(), command.calls.get(CallResult::OK.index()).copied().unwrap_or(0));
            calls[0] += well;
            calls[1] += all - well;
            calls_of.push((*label, all));
            request_time.add(&command.request_time);
        }
        Self { at, requests, pairs: totals.pairs, calls, calls_of, request_time }
    }

    /// What has come since `before`, and the calls a second of each command.
    fn point_since(&self, before: &Seen, earliest: &Seen) -> (Point, Vec<(CommandLabel, f64)>) {
        let secs = self.at.since(before.at).as_secs_f64().max(0.001);
        let rate = |now: u64, before: u64| rounded(now.saturating_sub(before) as f64 / secs);
        let [ok, failed, refused] = [0, 1, 2].map(|at| rate(self.requests[at], before.requests[at]));
        let [hit, joined, fetched, flipped, stale] = [0, 1, 2, 3, 4].map(|at| rate(self.pairs[at], before.pairs[at]));
        let [calls_ok, calls_failed] = [0, 1].map(|at| rate(self.calls[at], before.calls[at]));
        let spread = self.request_time.since(&earliest.request_time);
        let [p50_ms, p90_ms, p99_ms] = [0.5, 0.9, 0.99].map(|share| millis(&spread, share));
        let rates = self.calls_of.iter().map(|(label, calls)| {
            let earlier = before.calls_of.iter().find(|(other, _)| other == label).map_or(0, |(_, calls)| *calls);
            (*label, rate(*calls, earlier))
        });
        let point = Point {
            ok,
            failed,
            refused,
            hit,
            joined,
            fetched,
            flipped,
            stale,
            calls_ok,
            calls_failed,
            p50_ms,
            p90_ms,
            p99_ms,
            ..Point::default()
        };
        (point, rates.collect())
    }
}

/// A percentile in milliseconds.
pub(super) fn millis(spread: &HistogramSnapshot, share: f64) -> Option<f64> {
    spread.quantile(share).map(|secs| rounded(secs * 1000.0))
}

/// To three places: more is noise and bytes.
pub(super) fn rounded(number: f64) -> f64 {
    (number * 1000.0).round() / 1000.0
}

fn push<T>(queue: &mut VecDeque<T>, item: T, max: usize) {
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
    use crate::telemetry::metrics::Metrics;

    #[test]
    fn a_point_holds_what_came_since_the_one_before() {
        let metrics = Metrics::new(1);
        let (recorder, check) = (Arc::clone(&metrics.recorder().apps()[0]), CommandLabel::of(FOLLOW_CHECK));
        let seen = |secs: u64| Seen::new(Tick::from_micros(secs * 1_000_000), &metrics.totals()[0]);
        let count = |outcome, took| recorder.request(check, outcome, Duration::from_millis(took));
        count(Outcome::OK, 4000);
        recorder.call(check, CallResult::OK, Duration::ZERO);
        let first = seen(10);
        for outcome in [Outcome::OK, Outcome::OK, Outcome::FAILED] {
            count(outcome, 1);
        }
        recorder.request(check, Outcome::rejected(&crate::error::GatewayError::NotFound), Duration::ZERO);
        recorder.pairs(&[6, 1, 3, 2, 0]);
        for code in [0, 60007, 60007] {
            recorder.call(check, CallResult::answered(code), Duration::ZERO);
        }
        let (point, rates) = seen(12).point_since(&first, &first);
        assert_eq!((point.ok, point.failed, point.refused), (1.0, 0.5, 0.5));
        assert_eq!((point.hit, point.joined, point.fetched, point.flipped), (3.0, 0.5, 1.5, 1.0));
        assert_eq!((point.calls_ok, point.calls_failed), (0.5, 1.0));
        assert_eq!(rates, [(check, 1.5)]);
        assert!(point.p99_ms.is_some_and(|p99| p99 <= 1.0), "{point:?}");
    }

    #[test]
    fn a_queue_forgets_its_oldest() {
        let mut queue = VecDeque::new();
        (0..10).for_each(|item| push(&mut queue, item, 3));
        assert_eq!(queue, [7, 8, 9]);
    }
}
