//! `GET /metrics`: the counters and gauges of the gateway.

use super::State;
use crate::clock;
use crate::domain::relation::FOLLOW;
use crate::fleet::Mode;
use crate::gateway::{App, AppStats, Gateway};
use crate::platform;
use crate::server::tls::HandshakeError;
use crate::telemetry::log;
use crate::telemetry::metrics::histogram::HistogramSnapshot;
use crate::telemetry::metrics::labels::{CallLabel, Outcome};
use crate::telemetry::metrics::text::{Exposition, MetricKind};
use crate::telemetry::metrics::{AppTotals, ReadSource, SOURCES};
use crate::telemetry::trace::DropCause;

/// Returns all metrics in Prometheus' text format.
pub(super) fn render(state: &State) -> String {
    let gateway = &state.current.gateway();
    let names: Vec<&str> = gateway.config.apps.iter().map(|app| app.name.as_str()).collect();
    let totals = gateway.metrics.totals();
    let mut text = Exposition::default();
    // Requests without an app have an empty label, which Prometheus treats like a missing one.
    let apps: Vec<(&str, &AppTotals)> = names.iter().copied().chain([""]).zip(&totals).collect();
    requests(&mut text, &apps);
    calls(&mut text, &apps[..names.len()]);
    relations(&mut text, gateway, &apps[..names.len()]);
    cached_reads(&mut text, gateway, &apps[..names.len()]);
    callers(&mut text, gateway, &names);
    app_gauges(&mut text, gateway, &names);
    webhooks(&mut text, gateway);
    fleet(&mut text, gateway);
    traces(&mut text, gateway);
    program(&mut text, gateway, state);
    process(&mut text, state);
    text.finish()
}

fn requests(text: &mut Exposition, apps: &[(&str, &AppTotals)]) {
    let name = "chatgate_requests_total";
    let help = "Requests answered, by outcome: ok, failed (error returned by Chat), abandoned (caller disconnected), \
                or a Chatgate-Error slug.";
    text.begin(name, MetricKind::Counter, help);
    for (app, totals) in apps {
        for (command, totals) in &totals.commands {
            for outcome in Outcome::all().filter(|outcome| totals.requests[outcome.index()] > 0) {
                let labels = [("app", *app), ("command", &command.text()), ("outcome", outcome.text())];
                text.sample(name, &labels, totals.requests[outcome.index()]);
            }
        }
    }
    let name = "chatgate_request_duration_seconds";
    let help = "Time from the headers of a request to its response in seconds, including waits and calls.";
    text.begin(name, MetricKind::Histogram, help);
    for (app, totals) in apps {
        for (command, totals) in totals.commands.iter().filter(|(_, totals)| totals.request_time.count() > 0) {
            text.histogram(name, &[("app", app), ("command", &command.text())], &totals.request_time);
        }
    }
}

fn calls(text: &mut Exposition, apps: &[(&str, &AppTotals)]) {
    let name = "chatgate_upstream_calls_total";
    let help = "Calls to Chat, by ErrorCode (0 means success) or transport failure.";
    text.begin(name, MetricKind::Counter, help);
    for (app, totals) in apps {
        for (command, totals) in totals.commands.iter().filter(|(_, totals)| totals.call_count() > 0) {
            for result in CallLabel::all().filter(|result| totals.calls[result.index()] > 0) {
                let labels = [("app", *app), ("command", &command.text()), ("error_code", &result.text())];
                text.sample(name, &labels, totals.calls[result.index()]);
            }
        }
    }
    let sum_of = |histogram: fn(&AppTotals) -> &HistogramSnapshot| {
        apps.iter().fold(HistogramSnapshot::default(), |mut sum, (_, totals)| {
            sum.add(histogram(totals));
            sum
        })
    };
    let name = "chatgate_upstream_duration_seconds";
    let help = "Time from sending a call to its complete response, in seconds.";
    text.begin(name, MetricKind::Histogram, help);
    text.histogram(name, &[], &sum_of(|totals| &totals.call_time));
    let name = "chatgate_quota_wait_seconds";
    text.begin(name, MetricKind::Histogram, "Time that calls waited for quota and a connection, in seconds.");
    text.histogram(name, &[], &sum_of(|totals| &totals.quota_wait));
    let name = "chatgate_follow_pairs_total";
    let help = "Pairs of follows answered, by source: hit, joined, fetched, flipped (included in fetched), stale.";
    text.begin(name, MetricKind::Counter, help);
    for (app, totals) in apps {
        for (source, count) in SOURCES.iter().zip(totals.relations[FOLLOW.index]) {
            text.sample(name, &[("app", app), ("source", source)], count);
        }
    }
}

/// Writes the pairs of each relation that is enabled.
fn relations(text: &mut Exposition, gateway: &Gateway, apps: &[(&str, &AppTotals)]) {
    let kinds = &gateway.config.relation.kinds;
    let name = "chatgate_relation_pairs_total";
    let help = "Pairs answered, by relation and source: hit, joined, fetched, flipped (included in fetched), stale.";
    text.begin(name, MetricKind::Counter, help);
    for (app, totals) in apps {
        for kind in kinds {
            for (source, count) in SOURCES.iter().zip(totals.relations[kind.index]) {
                text.sample(name, &[("app", app), ("relation", kind.name), ("source", source)], count);
            }
        }
    }
}

/// Writes the metrics of cached reads, if there are any.
fn cached_reads(text: &mut Exposition, gateway: &Gateway, apps: &[(&str, &AppTotals)]) {
    if gateway.config.cache.commands.is_empty() {
        return;
    }
    let name = "chatgate_read_cache_requests_total";
    let help =
        "Cached reads answered, by source: hit, joined, fetched, stale, bypass (neither read from the cache nor kept).";
    text.begin(name, MetricKind::Counter, help);
    for (app, totals) in apps {
        for (command, totals) in
            totals.commands.iter().filter(|(_, totals)| totals.reads.iter().any(|count| *count > 0))
        {
            for (source, count) in ReadSource::ALL.iter().zip(totals.reads) {
                let labels = [("app", *app), ("command", &command.text()), ("source", source.text())];
                text.sample(name, &labels, count);
            }
        }
    }
    let help = "Cached responses of other reads, with their requests, in bytes, including expired ones.";
    text.single("chatgate_read_cache_bytes", MetricKind::Gauge, help, gateway.reads.bytes());
    let help = "Cached responses of other reads, including expired ones.";
    text.single("chatgate_read_cache_entries", MetricKind::Gauge, help, gateway.reads.len());
}

/// Writes the metrics of configured callers that have sent a request.
fn callers(text: &mut Exposition, gateway: &Gateway, names: &[&str]) {
    let totals = gateway.caller_stats();
    let rows: Vec<_> = names
        .iter()
        .copied()
        .chain([""])
        .zip(&totals)
        .flat_map(|(app, rows)| rows.iter().map(move |row| (app, row)))
        .collect();
    if rows.is_empty() {
        return;
    }
    let name = "chatgate_caller_calls_total";
    let help = "Calls to Chat, by the caller that caused them. A call for several callers counts for the one whose turn \
                it was; retries count.";
    text.begin(name, MetricKind::Counter, help);
    for (app, caller) in &rows {
        text.sample(name, &[("app", app), ("caller", caller.name.as_str())], caller.totals.calls);
    }
    let name = "chatgate_caller_pairs_total";
    let help = "Pairs answered to a caller, by source: hit, joined, fetched, flipped (included in fetched), stale.";
    text.begin(name, MetricKind::Counter, help);
    for (app, caller) in &rows {
        for (source, count) in SOURCES.iter().zip(caller.totals.pairs).filter(|(_, count)| *count > 0) {
            text.sample(name, &[("app", app), ("caller", caller.name.as_str()), ("source", source)], count);
        }
    }
    let name = "chatgate_caller_refused_total";
    let help = "Requests of a caller that chatgate rejected or could not complete, by Chatgate-Error slug.";
    text.begin(name, MetricKind::Counter, help);
    for (app, caller) in &rows {
        for (outcome, count) in caller.totals.refusals() {
            let labels = [("app", *app), ("caller", caller.name.as_str()), ("outcome", outcome.text())];
            text.sample(name, &labels, count);
        }
    }
    let name = "chatgate_caller_wait_seconds_total";
    let help = "Time that requests of a caller waited for lookups or quota, in seconds.";
    text.begin(name, MetricKind::Counter, help);
    for (app, caller) in &rows {
        let labels = [("app", *app), ("caller", caller.name.as_str())];
        text.sample(name, &labels, caller.totals.waited_micros as f64 / 1e6);
    }
    let name = "chatgate_caller_info";
    text.begin(name, MetricKind::Gauge, "1 for each configured caller, with its class: interactive or batch.");
    for caller in &gateway.config.callers {
        text.sample(name, &[("caller", caller.name.as_str()), ("class", caller.class.name())], 1);
    }
}

fn app_gauges(text: &mut Exposition, gateway: &Gateway, names: &[&str]) {
    let now = clock::unix_now().as_secs_f64();
    let stats: Vec<_> = gateway.apps.iter().zip(names).map(|(app, name)| (*name, app.stats(), app)).collect();
    let mut gauge = |name: &str, help: &str, value: &dyn Fn(&AppStats, &App) -> f64| {
        text.begin(name, MetricKind::Gauge, help);
        for (label, stats, app) in &stats {
            text.sample(name, &[("app", label)], value(stats, app));
        }
    };
    gauge("chatgate_cache_pairs", "Pairs in the cache, including expired ones.", &|stats, _| stats.cache_pairs as f64);
    gauge("chatgate_pairs_queued", "Pairs queued for a call.", &|stats, _| stats.pairs_queued as f64);
    gauge("chatgate_upstream_calls_in_flight", "Calls to Chat in flight.", &|stats, _| stats.calls_in_flight as f64);
    gauge("chatgate_usersig_expires_seconds", "Time until the current signature expires, in seconds.", &|stats, _| {
        (stats.signature_issued_at + stats.signature_lifetime) as f64 - now
    });
    let help = "Destination of calls: 0 primary domain, 1 standby domain, 2 none (parked).";
    gauge("chatgate_upstream_state", help, &|_, app| f64::from(app.upstream_state().0 as u8));
}

/// Writes the metrics of forwarded webhooks, if any app has one.
fn webhooks(text: &mut Exposition, gateway: &Gateway) {
    let forwards = gateway.config.webhook.as_ref().is_some_and(|webhook| !webhook.forward.is_empty());
    if !forwards {
        return;
    }
    let name = "chatgate_webhook_forwards_total";
    let help = "Webhooks for an app, by outcome: ok (the app answered 200), failed (it answered another status), or the \
                reason why it did not answer.";
    text.begin(name, MetricKind::Counter, help);
    for app in gateway.apps.iter() {
        for (outcome, count) in app.webhooks.forwards.outcomes() {
            text.sample(name, &[("app", app.name.as_str()), ("outcome", outcome.text())], count);
        }
    }
    let name = "chatgate_webhook_forward_duration_seconds";
    text.begin(name, MetricKind::Histogram, "Time until an app answered a webhook or failed to, in seconds.");
    for app in gateway.apps.iter() {
        let time = app.webhooks.forwards.time();
        if time.count() > 0 {
            text.histogram(name, &[("app", app.name.as_str())], &time);
        }
    }
}

/// Writes the metrics of the listeners with TLS, if there are any.
fn tls(text: &mut Exposition, gateway: &Gateway, state: &State) {
    let webhook = gateway.config.webhook.as_ref();
    let data = ("data", gateway.config.server.tls.as_ref().zip(state.connections.get()));
    let webhook = ("webhook", webhook.and_then(|webhook| webhook.tls.as_ref()).zip(state.webhook_connections.get()));
    let listeners = [data, webhook];
    let listeners: Vec<_> = listeners.iter().filter_map(|(name, listener)| Some((*name, (*listener)?))).collect();
    if listeners.is_empty() {
        return;
    }
    let name = "chatgate_tls_certificate_expires_seconds";
    text.begin(name, MetricKind::Gauge, "Time until the certificate of a listener expires, in seconds.");
    for (listener, (tls, _)) in &listeners {
        let left = tls.certificate.ends_at.as_secs_f64() - clock::unix_now().as_secs_f64();
        text.sample(name, &[("listener", listener)], left);
    }
    let name = "chatgate_tls_handshakes_failed_total";
    let help = "Failed TLS handshakes of clients, by cause (timeout, not_tls, client_certificate, other).";
    text.begin(name, MetricKind::Counter, help);
    for (listener, (_, connections)) in &listeners {
        for cause in HandshakeError::ALL {
            let labels = [("listener", *listener), ("cause", cause.label())];
            text.sample(name, &labels, connections.handshakes.failures().count(cause));
        }
    }
}

/// Writes the metrics of the fleet, if it is configured.
fn fleet(text: &mut Exposition, gateway: &Gateway) {
    let Some(fleet) = &gateway.fleet else { return };
    let stats = fleet.stats();
    let connected = u8::from(stats.mode == Mode::Connected);
    let help = "Whether this replica is connected to Redis (1) or not (0).";
    text.single("chatgate_fleet_connected", MetricKind::Gauge, help, connected);
    let (sent, received) = (stats.invalidations_sent, stats.invalidations_received);
    let counters = [
        ("chatgate_fleet_disconnects_total", "Times the connection to Redis was lost.", stats.disconnects),
        ("chatgate_fleet_permits_total", "Permits granted by Redis.", stats.permits),
        ("chatgate_fleet_cache_lookups_total", "Pairs looked up in Redis.", stats.cache_lookups),
        ("chatgate_fleet_cache_hits_total", "Pairs found in Redis.", stats.cache_hits),
        ("chatgate_fleet_invalidations_sent_total", "Invalidations sent to other replicas.", sent),
        ("chatgate_fleet_invalidations_received_total", "Invalidations received from other replicas.", received),
    ];
    for (name, help, value) in counters {
        text.single(name, MetricKind::Counter, help, value);
    }
}

/// Writes the metrics of the trace export, if it is configured.
fn traces(text: &mut Exposition, gateway: &Gateway) {
    let Some(tracing) = &gateway.tracing else { return };
    let stats = tracing.stats();
    let help = "Trace spans in the queue for the collector.";
    text.single("chatgate_trace_spans_queued", MetricKind::Gauge, help, stats.queued);
    let help = "Trace spans accepted by the collector.";
    text.single("chatgate_trace_spans_exported_total", MetricKind::Counter, help, stats.exported);
    let name = "chatgate_trace_spans_dropped_total";
    text.begin(name, MetricKind::Counter, "Trace spans dropped, by cause (queue_full, export_failed).");
    for (cause, count) in DropCause::ALL.iter().zip(stats.dropped) {
        text.sample(name, &[("cause", cause.label())], count);
    }
}

fn program(text: &mut Exposition, gateway: &Gateway, state: &State) {
    let buffered = gateway.buffered.in_use();
    let gauges = [
        ("chatgate_connections", "Open connections to the data listeners.", state.connections()),
        ("chatgate_admin_connections", "Open connections to the admin listener.", state.admin_limit.in_use()),
        ("chatgate_requests_in_flight", "Requests in flight.", gateway.requests.in_use()),
        ("chatgate_buffered_bytes", "Request and response bodies held in memory, in bytes.", buffered),
    ];
    for (name, help, value) in gauges {
        text.single(name, MetricKind::Gauge, help, value);
    }
    tls(text, gateway, state);
    let help = "Idle connections to the admin listener that were closed to make room for new ones.";
    let recycled = state.admin_limit.recycled();
    text.single("chatgate_admin_connections_recycled_total", MetricKind::Counter, help, recycled);
    let help = "Log lines dropped because the log buffer was full.";
    text.single("chatgate_log_lines_dropped_total", MetricKind::Counter, help, log::dropped_lines());
    let name = "chatgate_build_info";
    text.begin(name, MetricKind::Gauge, "Version of chatgate as a label; the value is 1.");
    text.sample(name, &[("version", env!("CARGO_PKG_VERSION"))], 1);
}

/// Writes the resource usage of the process, under the names that Prometheus' client libraries use.
fn process(text: &mut Exposition, state: &State) {
    let process = platform::resource_usage();
    let help = "Start time of the process, in seconds since 1970.";
    text.single("process_start_time_seconds", MetricKind::Gauge, help, state.started_at.as_secs_f64());
    if let Some(value) = process.cpu_secs {
        let help = "User and system CPU time, in seconds.";
        text.single("process_cpu_seconds_total", MetricKind::Counter, help, value);
    }
    let gauges = [
        ("process_resident_memory_bytes", "Resident memory, in bytes.", process.resident_bytes),
        ("process_open_fds", "Open file descriptors.", process.open_fds),
        ("process_max_fds", "Limit of open file descriptors.", process.max_fds),
        ("process_threads", "Number of threads.", process.threads),
    ];
    for (name, help, value) in gauges {
        if let Some(value) = value {
            text.single(name, MetricKind::Gauge, help, value);
        }
    }
}
