//! The configuration as it is in effect, in the form of its file. Only what stands here is shown: nothing
//! secret can come in by itself.

use std::time::Duration;

use serde_json::{Value, json};

use crate::config::{App, Config, LogFormat, show_duration, show_size};
use crate::domain::chat::command::KNOWN_COMMANDS;

/// Everything but keys and tokens.
pub(super) fn effective(config: &Config) -> Value {
    let Config { server, apps, access, cache, follow_check, upstream, webhook, fleet, log, trace, .. } = config;
    let texts = |items: &mut dyn Iterator<Item = String>| items.collect::<Vec<_>>();
    json!({
        "server": {
            "listen": texts(&mut server.listen.iter().map(ToString::to_string)),
            "admin": server.admin.to_string(),
            "unix_mode": format!("{:04o}", server.unix_mode),
            "hosts": server.hosts,
            "max_body": show_size(server.max_body),
            "max_connections": server.max_connections,
            "max_requests": server.max_requests,
            "max_buffered": show_size(server.max_buffered),
            "handshake_timeout": span(server.handshake_timeout),
            "head_timeout": span(server.head_timeout),
            "body_timeout": span(server.body_timeout),
            "write_timeout": span(server.write_timeout),
            "idle_timeout": span(server.idle_timeout),
            "drain_delay": span(server.drain_delay),
            "drain_timeout": span(server.drain_timeout),
            "explain": server.explain,
            "tls": server.tls.as_ref().map(|tls| json!({
                "certificate": tls.certificate.subject,
                "ends_at": tls.certificate.ends_at_text(),
                "callers_show_certificates": tls.requires_client_cert,
            })),
        },
        "app": apps.iter().map(app).collect::<Vec<_>>(),
        "access": {
            "allow": texts(&mut access.allow.iter().map(ToString::to_string)),
            "require_header": access.require_header,
            "open": access.open,
        },
        "cache": {
            "ttl": span(cache.ttl),
            "max_pairs": cache.max_pairs,
            "write_settle": span(cache.write_settle),
        },
        "follow_check": { "max_to": follow_check.max_to, "flip": follow_check.flip },
        "upstream": {
            "timeout": span(upstream.timeout),
            "attempt_timeout": span(upstream.attempt_timeout),
            "connect_timeout": span(upstream.connect_timeout),
            "max_answer": show_size(upstream.max_answer),
            "max_in_flight": upstream.max_in_flight,
            "connection_max_age": span(upstream.connection_max_age),
            "idle_timeout": span(upstream.idle_timeout),
        },
        "webhook": webhook.as_ref().map(|webhook| json!({
            "listen": webhook.listen.to_string(),
            "apps": texts(&mut webhook.tokens.keys().map(ToString::to_string)),
            "window": span(webhook.window),
        })),
        // The address may hold a password.
        "fleet": fleet.as_ref().map(|fleet| json!({
            "tls": fleet.tls.is_some(),
            "prefix": fleet.prefix,
            "share": fleet.share,
        })),
        "log": {
            "format": if log.format == LogFormat::Json { "json" } else { "text" },
            "level": log.level.as_str().to_ascii_lowercase(),
            "requests": log.requests.word(),
        },
        "trace": trace.as_ref().map(|trace| json!({
            "otlp": trace.otlp.to_string(),
            "sample": trace.sample,
            "service": trace.service(),
        })),
    })
}

fn app(app: &App) -> Value {
    let rate = |limit: std::num::NonZeroU32| format!("{limit}/s");
    let own = KNOWN_COMMANDS.iter().map(|known| (known.name, app.quota.limit(known.name)));
    let other = own.filter(|(_, limit)| *limit != app.quota.per_command);
    json!({
        "name": app.name.as_str(),
        "sdkappid": app.sdkappid.get(),
        "endpoint": app.endpoint.to_string(),
        "standby": app.standby.as_ref().map(ToString::to_string),
        "identifier": app.identifier.as_str(),
        "usersig_lifetime": span(app.usersig_lifetime),
        "default": app.default,
        "quota": {
            "per_command": rate(app.quota.per_command),
            "total": app.quota.total.map(rate),
            "commands": other.map(|(name, limit)| (name.to_string(), rate(limit).into()))
                .collect::<serde_json::Map<String, Value>>(),
        },
    })
}

fn span(duration: Duration) -> String {
    show_duration(duration)
}
