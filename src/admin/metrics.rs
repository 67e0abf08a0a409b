//! `GET /metrics`.

use super::State;
use crate::clock;
use crate::fleet::Mode;
use crate::gateway::Gateway;
use crate::server::tls::HandshakeError;
use crate::telemetry::log;
use crate::telemetry::metrics::histogram::HistogramSnapshot;
use crate::telemetry::metrics::labels::{CallResult, Outcome};
use crate::telemetry::metrics::process::Process;
use crate::telemetry::metrics::text::{Exposition, Kind};
use crate::telemetry::metrics::{AppTotals, SOURCES};
use crate::telemetry::trace::Drops;

/// Everything there is to count, in Prometheus' text format.
pub(super) fn render(state: &State) -> String {
    let gateway = &state.current.gateway();
    let names: Vec<&str> = gateway.config.apps.iter().map(|app| app.name.as_str()).collect();
    let totals = gateway.metrics.totals();
    let mut text = Exposition::default();
    // What came to no app has an empty name, which Prometheus treats like none.
    let apps: Vec<(&str, &AppTotals)> = names.iter().copied().chain([""]).zip(&totals).collect();
    requests(&mut text, &apps);
    calls(&mut text, &apps[..names.len()]);
    app_gauges(&mut text, gateway, &names);
    fleet(&mut text, gateway);
    traces(&mut text, gateway);
    program(&mut text, gateway, state);
    text.finish()
}

fn requests(text: &mut Exposition, apps: &[(&str, &AppTotals)]) {
    let name = "chatgate_requests_total";
    text.begin(name, Kind::Counter, "Requests answered, by what became of them: ok, failed (Chat said so) or a slug.");
    for (app, totals) in apps {
        for (command, totals) in &totals.commands {
            for outcome in Outcome::all().filter(|outcome| totals.requests[outcome.index()] > 0) {
                let labels = [("app", *app), ("command", &command.text()), ("outcome", outcome.text())];
                text.sample(name, &labels, totals.requests[outcome.index()]);
            }
        }
    }
    let name = "chatgate_request_duration_seconds";
    text.begin(name, Kind::Histogram, "From a request's head to its answer, waits and calls included.");
    for (app, totals) in apps {
        for (command, totals) in totals.commands.iter().filter(|(_, totals)| totals.request_time.count() > 0) {
            text.spread(name, &[("app", app), ("command", &command.text())], &totals.request_time);
        }
    }
}

fn calls(text: &mut Exposition, apps: &[(&str, &AppTotals)]) {
    let name = "chatgate_upstream_calls_total";
    text.begin(name, Kind::Counter, "Calls sent to Chat, by ErrorCode (0 is success), or why none came.");
    for (app, totals) in apps {
        for (command, totals) in totals.commands.iter().filter(|(_, totals)| totals.call_count() > 0) {
            for end in CallResult::all().filter(|end| totals.calls[end.index()] > 0) {
                let labels = [("app", *app), ("command", &command.text()), ("error_code", &end.text())];
                text.sample(name, &labels, totals.calls[end.index()]);
            }
        }
    }
    let together = |part: fn(&AppTotals) -> &HistogramSnapshot| {
        apps.iter().fold(HistogramSnapshot::default(), |mut sum, (_, totals)| {
            sum.add(part(totals));
            sum
        })
    };
    let name = "chatgate_upstream_duration_seconds";
    text.begin(name, Kind::Histogram, "From sending a call to its whole answer.");
    text.spread(name, &[], &together(|totals| &totals.call_time));
    let name = "chatgate_quota_wait_seconds";
    text.begin(name, Kind::Histogram, "How long calls waited for their turn and their connection.");
    text.spread(name, &[], &together(|totals| &totals.quota_wait));
    let name = "chatgate_follow_pairs_total";
    text.begin(name, Kind::Counter, "Pairs answered, by where they came from. Flipped ones are among the fetched.");
    for (app, totals) in apps {
        for (source, count) in SOURCES.iter().zip(totals.pairs) {
            text.sample(name, &[("app", app), ("source", source)], count);
        }
    }
}

fn app_gauges(text: &mut Exposition, gateway: &Gateway, names: &[&str]) {
    let now = clock::unix_now().as_secs_f64();
    let figures: Vec<_> = names.iter().enumerate().map(|(app, name)| (*name, gateway.stats(app))).collect();
    let mut gauge = |name: &str, help: &str, value: &dyn Fn(usize) -> f64| {
        text.begin(name, Kind::Gauge, help);
        for (app, (label, _)) in figures.iter().enumerate() {
            text.sample(name, &[("app", label)], value(app));
        }
    };
    gauge("chatgate_cache_pairs", "Pairs in the cache, those past their ttl too.", &|app| {
        figures[app].1.cache_pairs as f64
    });
    gauge("chatgate_pairs_queued", "Pairs that wait for a call.", &|app| figures[app].1.pairs_queued as f64);
    gauge("chatgate_upstream_calls_in_flight", "Calls on their way to Chat.", &|app| {
        figures[app].1.calls_in_flight as f64
    });
    gauge("chatgate_usersig_expires_seconds", "Seconds that the present signature is still good.", &|app| {
        let figures = &figures[app].1;
        (figures.signature_issued_at + figures.signature_lifetime) as f64 - now
    });
    gauge("chatgate_upstream_state", "Where calls go: 0 primary domain, 1 standby, 2 parked.", &|app| {
        f64::from(gateway.upstream_state(app).0 as u8)
    });
}

/// What is shared with other replicas, if anything is.
fn fleet(text: &mut Exposition, gateway: &Gateway) {
    let Some(fleet) = &gateway.fleet else { return };
    let figures = fleet.stats();
    let together = u8::from(figures.mode == Mode::Connected);
    text.single("chatgate_fleet_together", Kind::Gauge, "1 while Redis is there, 0 while alone.", together);
    let counters = [
        ("chatgate_fleet_losses_total", "How often Redis was lost.", figures.disconnects),
        ("chatgate_fleet_permits_total", "Permits that Redis has granted.", figures.permits),
        ("chatgate_fleet_pairs_read_total", "Pairs looked for in Redis.", figures.cache_lookups),
        ("chatgate_fleet_pairs_found_total", "Pairs found in Redis.", figures.cache_hits),
        ("chatgate_fleet_evictions_told_total", "Evictions told to other replicas.", figures.invalidations_sent),
        ("chatgate_fleet_evictions_heard_total", "Evictions told by other replicas.", figures.invalidations_received),
    ];
    for (name, help, value) in counters {
        text.single(name, Kind::Counter, help, value);
    }
}

/// What became of spans, if traces are taken.
fn traces(text: &mut Exposition, gateway: &Gateway) {
    let Some(tracing) = &gateway.tracing else { return };
    let figures = tracing.figures();
    text.single("chatgate_trace_spans_queued", Kind::Gauge, "Spans that wait for the collector.", figures.queued);
    let name = "chatgate_trace_spans_exported_total";
    text.single(name, Kind::Counter, "Spans that the collector has taken.", figures.exported);
    let name = "chatgate_trace_spans_dropped_total";
    text.begin(name, Kind::Counter, "Spans that are lost, by why.");
    for (why, count) in Drops::ALL.iter().zip(figures.dropped) {
        text.sample(name, &[("cause", why.label())], count);
    }
}

fn program(text: &mut Exposition, gateway: &Gateway, state: &State) {
    let budget = [
        ("chatgate_connections", "Connections to the data listeners.", state.connections()),
        ("chatgate_requests_in_flight", "Requests being worked on.", gateway.requests.in_use()),
        ("chatgate_buffered_bytes", "Bytes of bodies and answers held in memory.", gateway.buffered.in_use()),
    ];
    for (name, help, value) in budget {
        text.single(name, Kind::Gauge, help, value);
    }
    if let (Some(tls), Some(connections)) = (&gateway.config.server.tls, state.connections.get()) {
        let left = tls.certificate.ends_at.as_secs_f64() - clock::unix_now().as_secs_f64();
        let help = "Seconds that the certificate of server.tls is still good.";
        text.single("chatgate_tls_certificate_expires_seconds", Kind::Gauge, help, left);
        let name = "chatgate_tls_handshakes_failed_total";
        text.begin(name, Kind::Counter, "TLS handshakes of callers that came to nothing.");
        for cause in HandshakeError::ALL {
            text.sample(name, &[("cause", cause.label())], connections.handshakes.failures().count(cause));
        }
    }
    let help = "Lines of the log that found no room.";
    text.single("chatgate_log_lines_dropped_total", Kind::Counter, help, log::dropped_lines());
    let name = "chatgate_build_info";
    text.begin(name, Kind::Gauge, "The version that runs.");
    text.sample(name, &[("version", env!("CARGO_PKG_VERSION"))], 1);
    let process = Process::now();
    let seconds = "Processor time used, in seconds.";
    let start = "When the process started, in seconds since 1970.";
    text.single("process_start_time_seconds", Kind::Gauge, start, state.started_at.as_secs_f64());
    if let Some(value) = process.cpu_secs {
        text.single("process_cpu_seconds_total", Kind::Counter, seconds, value);
    }
    let gauges = [
        ("process_resident_memory_bytes", "Memory in use, in bytes.", process.resident_bytes),
        ("process_open_fds", "File descriptors open.", process.open_fds),
        ("process_max_fds", "File descriptors that may be open.", process.max_fds),
        ("process_threads", "Threads.", process.threads),
    ];
    for (name, help, value) in gauges {
        if let Some(value) = value {
            text.single(name, Kind::Gauge, help, value);
        }
    }
}
