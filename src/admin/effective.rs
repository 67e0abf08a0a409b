//! The effective configuration, in the form of its file.
//!
//! It contains only the keys that are listed here, so a new secret in the configuration does not appear in it.

use serde_json::{Value, json};

use crate::config::{App, Caller, Config, LogFormat, Server, Tls, show_duration, show_size};
use crate::domain::chat::command::KNOWN_COMMANDS;
use crate::domain::quote::shown;

/// Returns the effective configuration without keys and tokens.
pub(super) fn effective(config: &Config) -> Value {
    let Config { server, apps, access, callers, cache, relation, upstream, webhook, fleet, log, trace, .. } = config;
    json!({
        "server": server_section(server),
        "app": apps.iter().map(app_section).collect::<Vec<_>>(),
        "access": {
            "allow": texts(access.allow.iter()),
            "require_header": access.require_header,
            "open": access.open,
        },
        "caller": callers.iter().map(caller_section).collect::<Vec<_>>(),
        "cache": {
            "ttl": show_duration(cache.ttl),
            "max_pairs": cache.max_pairs,
            "write_settle": show_duration(cache.write_settle),
            "stale_while_revalidate": show_duration(cache.stale_while_revalidate),
            "max_bytes": show_size(cache.max_bytes),
            "commands": cache.commands.iter().map(|read| (read.name.to_string(), show_duration(read.ttl).into()))
                .collect::<serde_json::Map<String, Value>>(),
        },
        "relation": {
            "kinds": relation.kinds.iter().map(|kind| kind.name).collect::<Vec<_>>(),
            "max_to": relation.max_to,
            "call_max": relation.call_max,
            "flip": relation.flip,
        },
        "upstream": {
            "timeout": show_duration(upstream.timeout),
            "attempt_timeout": show_duration(upstream.attempt_timeout),
            "connect_timeout": show_duration(upstream.connect_timeout),
            "max_answer": show_size(upstream.max_answer),
            "max_in_flight": upstream.max_in_flight,
            "connection_max_age": show_duration(upstream.connection_max_age),
            "idle_timeout": show_duration(upstream.idle_timeout),
            "proxy": upstream.proxy.as_ref().map(ToString::to_string),
            "proxy_variable": upstream.proxy.as_ref().and_then(|proxy| proxy.variable),
            "no_proxy": upstream.proxy.as_ref().map(|proxy| texts(&proxy.bypass)),
        },
        "webhook": webhook.as_ref().map(|webhook| json!({
            "listen": webhook.listen.to_string(),
            "apps": texts(webhook.tokens.keys()),
            "window": show_duration(webhook.window),
            // Without the paths, which may contain a secret.
            "forward": webhook.forward.iter().map(|(name, target)| (name.to_string(), target.to_string().into()))
                .collect::<serde_json::Map<String, Value>>(),
            "forward_timeout": show_duration(webhook.forward_timeout),
            "tls": webhook.tls.as_ref().map(tls_section),
        })),
        // The address may contain a password.
        "fleet": fleet.as_ref().map(|fleet| json!({
            "form": fleet.redis.name(),
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
            "otlp": shown(&trace.otlp.to_string()),
            "sample": trace.sample,
            "service": trace.service(),
        })),
    })
}

fn server_section(server: &Server) -> Value {
    json!({
        "listen": texts(server.listen.iter()),
        "admin": server.admin.to_string(),
        "unix_mode": format!("{:04o}", server.unix_mode),
        "hosts": server.hosts,
        "max_body": show_size(server.max_body),
        "max_connections": server.max_connections,
        "admin_max_connections": server.admin_max_connections,
        "max_requests": server.max_requests,
        "max_buffered": show_size(server.max_buffered),
        "handshake_timeout": show_duration(server.handshake_timeout),
        "head_timeout": show_duration(server.head_timeout),
        "body_timeout": show_duration(server.body_timeout),
        "write_timeout": show_duration(server.write_timeout),
        "idle_timeout": show_duration(server.idle_timeout),
        "drain_delay": show_duration(server.drain_delay),
        "drain_timeout": show_duration(server.drain_timeout),
        "explain": server.explain,
        "tls": server.tls.as_ref().map(tls_section),
    })
}

fn tls_section(tls: &Tls) -> Value {
    json!({
        "certificate": tls.certificate.subject,
        "ends_at": tls.certificate.ends_at_text(),
        "callers_show_certificates": tls.requires_client_cert,
    })
}

fn app_section(app: &App) -> Value {
    let rate = |limit: std::num::NonZeroU32| format!("{limit}/s");
    let limits = KNOWN_COMMANDS.iter().map(|known| (known.name, app.quota.limit(known.name)));
    let exceptions = limits.filter(|(_, limit)| *limit != app.quota.per_command);
    json!({
        "name": app.name.as_str(),
        "sdkappid": app.sdkappid.get(),
        "endpoint": app.endpoint.to_string(),
        "standby": app.standby.as_ref().map(ToString::to_string),
        "identifier": app.identifier.as_str(),
        "usersig_lifetime": show_duration(app.usersig_lifetime),
        "default": app.default,
        "reads": texts(app.reads.iter()),
        "quota": {
            "per_command": rate(app.quota.per_command),
            "total": app.quota.total.map(rate),
            "reserve": app.quota.reserve.map(rate),
            "commands": exceptions.map(|(name, limit)| (name.to_string(), rate(limit).into()))
                .collect::<serde_json::Map<String, Value>>(),
        },
    })
}

/// Shows how a caller is recognized, without its tokens and its key.
fn caller_section(caller: &Caller) -> Value {
    json!({
        "name": caller.name.as_str(),
        "tokens": caller.tokens.len(),
        "signs": caller.usersig_key.is_some(),
        "certificates": texts(caller.certificates.iter()),
        "unix_uids": caller.unix_uids,
        "apps": caller.apps.as_ref().map(texts),
        "allow": texts(caller.allow.iter()),
        "report_only": caller.report_only,
        "class": caller.class.name(),
        "quota": caller.quota.map(|quota| format!("{quota}/s")),
    })
}

fn texts(items: impl IntoIterator<Item = impl ToString>) -> Vec<String> {
    items.into_iter().map(|item| item.to_string()).collect()
}
