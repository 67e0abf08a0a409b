//! `chatgate check`: prints the effective settings of a configuration.

use std::fmt::{self, Write};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use crate::config::{
    Access, App, Caller, Config, Endpoint, ListenAddr, Proxy, Relation, Server, Tls, Webhook, lower_limit,
    show_duration, show_size,
};
use crate::domain::caller::Class;
use crate::domain::chat::app::AppName;
use crate::domain::chat::command::{CommandName, CommandPattern, KNOWN_COMMANDS};
use crate::domain::quote::shown;

/// Returns the paths of Unix sockets at which another kind of file lies now, so that `serve` could not listen there.
pub(super) fn occupied_sockets(config: &Config) -> Vec<&Path> {
    let webhook = config.webhook.as_ref().map(|webhook| &webhook.listen);
    let listeners = config.server.listen.iter().chain([&config.server.admin]).chain(webhook);
    let paths = listeners.filter_map(|listener| match listener {
        ListenAddr::Unix(path) => Some(&**path),
        ListenAddr::Tcp(_) => None,
    });
    paths.filter(|path| path.symlink_metadata().is_ok_and(|found| !found.file_type().is_socket())).collect()
}

/// Returns the effective settings as readable text, without warnings.
pub(super) fn report(config: &Config) -> String {
    let mut text = String::new();
    write_report(&mut text, config).expect("writing to a String cannot fail");
    text
}

fn write_report(out: &mut String, config: &Config) -> fmt::Result {
    write_data_listener(out, config)?;
    write_other_listeners(out, config)?;
    write_callers(out, config)?;
    write_apps(out, config)?;
    write_limits(out, config)
}

fn write_data_listener(out: &mut String, config: &Config) -> fmt::Result {
    let server = &config.server;
    let is_authenticated = !config.callers.is_empty() || server.requires_client_cert();
    for address in &server.listen {
        let has_tls = server.tls.is_some() && matches!(address, ListenAddr::Tcp(_));
        let tls = if has_tls { ", with TLS" } else { "" };
        writeln!(out, "data listener   {address}{}{tls}", exposure(address, is_authenticated))?;
    }
    write_tls(out, server.tls.as_ref(), "server.tls")
}

fn write_tls(out: &mut String, tls: Option<&Tls>, key: &str) -> fmt::Result {
    let Some(Tls { certificate, requires_client_cert, .. }) = tls else { return Ok(()) };
    writeln!(out, "certificate     {}\n  expires       {}", certificate.subject, certificate.ends_at_text())?;
    if *requires_client_cert {
        writeln!(out, "  clients       need a certificate from {key}.client_ca_file (TCP only)")?;
    }
    Ok(())
}

fn write_other_listeners(out: &mut String, config: &Config) -> fmt::Result {
    let server = &config.server;
    let has_token = server.admin_token.is_some();
    let token = if has_token { ", admin actions need the token" } else { "" };
    let exposure = exposure(&server.admin, has_token || !config.callers.is_empty());
    writeln!(out, "admin listener  {}{exposure}{token}", server.admin)?;
    if !server.unix_uids.is_empty() {
        let uids: Vec<String> = server.unix_uids.iter().map(u32::to_string).collect();
        writeln!(out, "Unix sockets    only for user IDs {}", uids.join(", "))?;
    }
    if let Some(webhook) = &config.webhook {
        write_webhooks(out, webhook)?;
    }
    if let Some(trace) = &config.trace {
        let (url, service, percent) = (shown(&trace.otlp.to_string()), trace.service(), trace.sample * 100.0);
        writeln!(out, "traces          to {url} as {service}, {percent}% of the requests without a trace")?;
    }
    if !server.hosts.is_empty() {
        writeln!(out, "host names      {}", server.hosts.join(", "))?;
    }
    Ok(())
}

fn write_webhooks(out: &mut String, webhook: &Webhook) -> fmt::Result {
    let Webhook { listen, window, forward, forward_timeout, tls, .. } = webhook;
    let mut apps: Vec<&str> = webhook.tokens.keys().map(AppName::as_str).collect();
    apps.sort_unstable();
    let with_tls = if tls.is_some() && matches!(listen, ListenAddr::Tcp(_)) { ", with TLS" } else { "" };
    let window = show_duration(*window);
    writeln!(out, "webhooks        {listen}{with_tls}, for {}, signed within {window}", apps.join(", "))?;
    let mut targets: Vec<_> = forward.iter().collect();
    targets.sort_unstable_by_key(|(name, _)| *name);
    for (name, target) in targets {
        writeln!(out, "  forwarded     {name} to {target}, answered within {}", show_duration(*forward_timeout))?;
    }
    write_tls(out, tls.as_ref(), "webhook.tls")
}

fn write_callers(out: &mut String, config: &Config) -> fmt::Result {
    let Access { allow, report_only, require_header, .. } = &config.access;
    let header = if *require_header { ", with the header `Chatgate: 1`" } else { "" };
    if config.callers.is_empty() {
        return writeln!(out, "callers may use {}{header}", allowed_commands(allow, *report_only));
    }
    writeln!(out, "callers         must show which one they are{header}")?;
    config.callers.iter().try_for_each(|caller| write_caller(out, caller))
}

fn write_caller(out: &mut String, caller: &Caller) -> fmt::Result {
    let apps: Option<Vec<&str>> = caller.apps.as_ref().map(|apps| apps.iter().map(AppName::as_str).collect());
    let apps = apps.map_or("all".to_owned(), |apps| apps.join(", "));
    let quota = caller.quota.map_or("none of its own".to_owned(), |quota| format!("{quota}/s"));
    let commands = allowed_commands(&caller.allow, caller.report_only);
    writeln!(out, "  {}\n    known by    {}", caller.name, proofs(caller))?;
    writeln!(out, "    commands    {commands}\n    apps        {apps}\n    quota       {quota}")?;
    if caller.class == Class::Batch {
        writeln!(out, "    class       batch: its calls go when no interactive caller waits")?;
    }
    Ok(())
}

/// Returns how a caller is recognized, without secrets.
fn proofs(caller: &Caller) -> String {
    let tokens = match caller.tokens.len() {
        0 => None,
        1 => Some("a token".to_owned()),
        count => Some(format!("{count} tokens")),
    };
    let usersig = caller.usersig_key.as_ref().map(|_| format!("a usersig for identifier \"{}\"", caller.name));
    let certificates = caller.certificates.iter().map(|name| format!("certificate {name}"));
    let users = caller.unix_uids.iter().map(|uid| format!("Unix user {uid}"));
    tokens.into_iter().chain(usersig).chain(certificates).chain(users).collect::<Vec<_>>().join(", ")
}

fn allowed_commands(allow: &[CommandPattern], report_only: bool) -> String {
    let patterns: Vec<String> = allow.iter().map(ToString::to_string).collect();
    let patterns = if patterns.is_empty() { "no command".to_owned() } else { patterns.join(", ") };
    if report_only { format!("{patterns}; others are forwarded and logged (report_only)") } else { patterns }
}

fn write_apps(out: &mut String, config: &Config) -> fmt::Result {
    let default = config.default_app().map(|app| &app.name);
    for app in &config.apps {
        let mark = if Some(&app.name) == default { ", default" } else { "" };
        writeln!(out, "\napp {}{mark}", app.name)?;
        write_app(out, app, config)?;
    }
    if default.is_none() {
        writeln!(out, "\nno default app: every request must name one")?;
    }
    Ok(())
}

fn write_app(out: &mut String, app: &App, config: &Config) -> fmt::Result {
    let lifetime = show_duration(app.usersig_lifetime);
    writeln!(out, "  sdkappid      {}", app.sdkappid)?;
    writeln!(out, "  identifier    {:?}, signatures valid for {lifetime}", app.identifier.as_str())?;
    let region = match app.region {
        Some(region) if region.is_legacy() => format!(" in {region} (legacy)"),
        Some(region) => format!(" in {region}"),
        None => String::new(),
    };
    let proxy = config.upstream.proxy.as_ref();
    let past_proxy = |endpoint: &Endpoint| match proxy.is_some_and(|proxy| proxy.is_bypassed_for(endpoint)) {
        true => ", not through the proxy",
        false => "",
    };
    let (primary, past) = (&app.endpoint, past_proxy(&app.endpoint));
    match &app.standby {
        Some(standby) => {
            let remark =
                if app.has_undocumented_standby() { " (not documented by Tencent; see app.standby)" } else { "" };
            writeln!(out, "  primary       {primary}{region}{past}")?;
            writeln!(out, "  standby       {standby}{remark}{}", past_proxy(standby))?;
        }
        None => writeln!(out, "  primary       {primary}, without a standby{past}")?,
    }
    let reads: Vec<&str> = app.reads.iter().collect();
    if !reads.is_empty() {
        writeln!(out, "  reads         {}, besides those that chatgate knows", reads.join(", "))?;
    }
    if !app.extra_roots.is_empty() {
        let plural = if app.extra_roots.len() == 1 { "" } else { "s" };
        writeln!(out, "  also trusted  {} certificate{plural} in ca_file", app.extra_roots.len())?;
    }
    let quota = &app.quota;
    let total = quota.total.map_or("no total limit".to_owned(), |total| format!("{total}/s in total"));
    let exceptions = quota_exceptions(app, config);
    let except = if exceptions.is_empty() { "" } else { ", except" };
    writeln!(out, "  quota         {}/s per command, {total}{except}", quota.per_command)?;
    for (name, rate, reason) in exceptions {
        writeln!(out, "    {name:<55} {rate:>9}  {reason}")?;
    }
    if let Some(reserve) = quota.reserve {
        let per_command = quota.per_command;
        writeln!(out, "  reserve       {reserve}/s of each {per_command}/s, which batch callers leave alone")?;
    }
    Ok(())
}

/// Returns the commands with a rate other than `per_command`, sorted by name: name, rate, and reason. Chat's lower
/// limits are included only for commands that a caller may use.
fn quota_exceptions(app: &App, config: &Config) -> Vec<(String, String, &'static str)> {
    let configured = app.quota.commands.iter().map(|(name, rate)| (name.clone(), format!("{rate}/s"), "configured"));
    let of_callers = config.callers.iter().flat_map(|caller| &caller.allow);
    let allow: Vec<_> =
        if config.callers.is_empty() { config.access.allow.iter().collect() } else { of_callers.collect() };
    let is_lower = |name: &CommandName<'_>| {
        allow.iter().any(|pattern| pattern.matches(*name))
            && lower_limit(*name).is_some_and(|limit| limit < app.quota.per_command)
            && !app.quota.commands.contains_key(&name.to_string())
    };
    let lower = KNOWN_COMMANDS.iter().map(|known| known.name).filter(is_lower);
    let lower = lower.map(|name| (name.to_string(), format!("{}/s", app.quota.limit(name)), "Chat's limit"));
    let mut exceptions: Vec<_> = configured.chain(lower).collect();
    exceptions.sort();
    exceptions
}

/// Writes how calls leave this machine, without credentials.
fn write_way_out(out: &mut String, proxy: Option<&Proxy>) -> fmt::Result {
    let Some(proxy) = proxy else { return writeln!(out, "\nway out         direct, without a proxy") };
    let source = proxy.variable.map_or(String::new(), |variable| format!(" (from {variable})"));
    let auth = if proxy.auth.is_some() { ", with credentials" } else { "" };
    writeln!(out, "\nway out         {proxy}{source}{auth}; it resolves the names")?;
    let direct: Vec<String> = proxy.bypass.iter().map(ToString::to_string).chain(["loopback".to_owned()]).collect();
    writeln!(out, "  directly to   {}", direct.join(", "))
}

fn write_limits(out: &mut String, config: &Config) -> fmt::Result {
    let (Config { cache, upstream, .. }, Server { max_requests, max_buffered, .. }) = (config, &config.server);
    write_way_out(out, upstream.proxy.as_ref())?;
    write_relations(out, &config.relation)?;
    let per = if config.relation.kinds.len() > 1 { "app and relation" } else { "app" };
    writeln!(out, "cache           {} pairs per {per}, each for {}", cache.max_pairs, show_duration(cache.ttl))?;
    if !cache.commands.is_empty() {
        writeln!(out, "cached reads    up to {} of responses", show_size(cache.max_bytes))?;
    }
    for read in cache.commands.iter() {
        writeln!(out, "  {:<57} for {}", read.name, show_duration(read.ttl))?;
    }
    let buffered = show_size(*max_buffered);
    writeln!(out, "in flight       up to {max_requests} requests with {buffered} of bodies")?;
    let attempts = match upstream.attempts {
        1 => "1 per call".to_owned(),
        attempts => format!("up to {attempts} per call (writes: 1)"),
    };
    let attempt = show_duration(upstream.attempt_timeout);
    writeln!(out, "attempts        {attempts}, {attempt} each; retry budget {}", upstream.retry_budget)?;
    let timeout = show_duration(upstream.timeout);
    writeln!(out, "response time   at most {timeout} (upstream.timeout), then `upstream_timeout` or `rate_limited`")
}

fn write_relations(out: &mut String, relation: &Relation) -> fmt::Result {
    if relation.kinds.is_empty() {
        return writeln!(out, "relations       none; every check is relayed");
    }
    for (index, kind) in relation.kinds.iter().enumerate() {
        let title = if index == 0 { "relations" } else { "" };
        let accounts = relation.call_max_of(kind);
        writeln!(out, "{title:<16}{}: {}, up to {accounts} accounts per call", kind.name, kind.check)?;
    }
    Ok(())
}

fn exposure(address: &ListenAddr, is_authenticated: bool) -> &'static str {
    match (address.is_local(), is_authenticated) {
        (true, _) => "",
        (false, true) => ", reachable from other machines",
        (false, false) => ", reachable from other machines without authentication (access.open)",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Env, load};

    const KEY: &str = "0badc0de5ec2e70badc0de5ec2e70badc0de5ec2e70badc0de5ec2e70badc0de";

    fn report_of(text: &str) -> String {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("c.toml");
        std::fs::write(&path, text).expect("written");
        let tokens =
            [("TOKEN", "a-token-that-is-long"), ("NEXT", "a-token-that-is-next"), ("OTHER", "a-token-that-is-another")];
        let proxy = [("AUTH", "a-user:a-password"), ("ALL_PROXY", "socks5h://a-user:a-password@10.0.0.9:1080")];
        let env: Env = tokens.into_iter().chain(proxy).chain([("KEY", KEY)]).collect();
        report(&load(&path, &env).unwrap_or_else(|problems| panic!("{problems}")))
    }

    #[test]
    fn report_has_listeners_apps_hosts_quotas_and_response_time() {
        let text = report_of(
            "[server]\nlisten = ['127.0.0.1:1', 'unix:/run/x.sock']\n\
             [[app]]\nname = 'one'\nsdkappid = 7\nregion = 'tokyo'\nsecret_key_env = 'KEY'\n\
             [app.quota]\nper_command = '150/s'\ntotal = '900/s'\nreserve = '15/s'\ncommands = { 'follow/follow_add' = '3/s' }\n\
             [[app]]\nname = 'two'\nsdkappid = 8\nendpoint = 'http://127.0.0.1:9700'\nsecret_key_env = 'KEY'\ndefault = true\n\
             [webhook]\nlisten = '0.0.0.0:2'\napp_tokens = { two = { env = 'KEY' }, one = { env = 'KEY' } }\n\
             [trace]\notlp = 'http://collector:4318/0badc0de5ec2e70badc0de5ec2e70badc0de5ec2/'\nsample = 0.1\n\
             [relation]\nkinds = ['friend', 'follow']\ncall_max = 300\n[upstream]\ntimeout = '17s'\n[access]\nallow = ['follow/*', 'im_open_login_svc/*']\n",
        );
        for line in [
            "data listener   127.0.0.1:1",
            "data listener   unix:/run/x.sock",
            "admin listener  127.0.0.1:8701",
            "webhooks        0.0.0.0:2, for one, two, signed within 1m",
            "callers may use follow/*, im_open_login_svc/*",
            "traces          to http://collector:4318/.../v1/traces as chatgate, 10% of the requests without a trace",
            "app one",
            "  sdkappid      7",
            "  identifier    \"administrator\", signatures valid for 24h",
            "  primary       https://adminapijpn.im.qcloud.com in tokyo",
            "  quota         150/s per command, 900/s in total, except",
            "  reserve       15/s of each 150/s, which batch callers leave alone",
            "app two, default",
            "  primary       http://127.0.0.1:9700, without a standby",
            "way out         direct, without a proxy",
            "relations       follow: follow/follow_check, up to 100 accounts per call",
            "                friend: sns/friend_check, up to 300 accounts per call",
            "cache           1000000 pairs per app and relation, each for 30s",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
        let words = |name: &str| -> Vec<String> {
            let line = text.lines().find(|line| line.contains(name)).unwrap_or_else(|| panic!("{name}\n{text}"));
            line.split_whitespace().map(str::to_owned).collect()
        };
        assert_eq!(words("follow/follow_add"), ["follow/follow_add", "3/s", "configured"]);
        assert_eq!(words("im_open_login_svc/account_delete")[1], "100/s");
        assert!(
            text.contains("response time   at most 17s (upstream.timeout)")
                && text.contains("adminapijpn.my-imcloud.com"),
            "{text}"
        );
        assert!(!text.contains("timpush/push"), "no caller may use it\n{text}");
        assert!(!text.contains(&KEY[..8]), "{text}");
    }

    #[test]
    fn report_marks_regions_and_shows_declared_reads() {
        let app = "sdkappid = 7\nsecret_key_env = 'KEY'\n";
        let text = report_of(&format!(
            "[[app]]\nname = 'one'\nregion = 'riyadh'\nreads = ['future/get', 'future/list']\n{app}\
             [[app]]\nname = 'two'\nregion = 'mumbai'\n{}\
             [[app]]\nname = 'three'\nendpoint = 'https://x.test'\nstandby = 'https://y.test'\n{}",
            app.replace('7', "8"),
            app.replace('7', "9"),
        ));
        for line in [
            "  standby       https://adminapiksa.my-imcloud.com (not documented by Tencent; see app.standby)",
            "  reads         future/get, future/list, besides those that chatgate knows",
            "  primary       https://adminapiind.im.qcloud.com in mumbai (legacy)",
            "  standby       https://adminapiind.my-imcloud.com",
            "  primary       https://x.test",
            "  standby       https://y.test",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
    }

    #[test]
    fn report_has_the_way_out_without_credentials() {
        let app = "[[app]]\nname = 'one'\nsdkappid = 7\nregion = 'tokyo'\nsecret_key_env = 'KEY'\n\
                   standby = 'https://10.0.0.1'\n";
        let text = report_of(&format!(
            "{app}[upstream]\nproxy = 'http://proxy.test:3128'\nproxy_auth_env = 'AUTH'\nno_proxy = ['10.0.0.0/8']\n"
        ));
        for line in [
            "  primary       https://adminapijpn.im.qcloud.com in tokyo",
            "  standby       https://10.0.0.1, not through the proxy",
            "way out         http://proxy.test:3128, with credentials; it resolves the names",
            "  directly to   10.0.0.0/8, loopback",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
        assert!(!text.contains("a-user") && !text.contains("a-password"), "{text}");
        let text = report_of(&format!("{app}[upstream]\nproxy = 'env'\n"));
        let line = "way out         socks5h://10.0.0.9:1080 (from ALL_PROXY), with credentials; it resolves the names";
        assert!(text.lines().any(|found| found == line), "{text}");
        assert!(!text.contains("a-user") && !text.contains("a-password"), "{text}");
    }

    #[test]
    fn report_has_callers_and_permissions_but_no_token() {
        let text = report_of(
            "[server]\nlisten = '0.0.0.0:1'\nunix_uids = [0, 7]\nadmin_token_env = 'KEY'\n\
             [[app]]\nname = 'one'\nsdkappid = 7\nregion = 'tokyo'\nsecret_key_env = 'KEY'\n\
             [[caller]]\nname = 'feed'\ntoken_env = ['TOKEN', 'NEXT']\napps = ['one']\nallow = ['timpush/push']\nquota = '50/s'\nclass = 'batch'\n\
             [[caller]]\nname = 'trial'\ntoken_env = 'OTHER'\nreport_only = true\nusersig_key_env = 'KEY'\nunix_uids = [7]\n",
        );
        for line in [
            "data listener   0.0.0.0:1, reachable from other machines",
            "admin listener  127.0.0.1:8701, admin actions need the token",
            "Unix sockets    only for user IDs 0, 7",
            "callers         must show which one they are",
            "  feed\n    known by    2 tokens\n    commands    timpush/push\n    apps        one\n    quota       50/s\n    \
             class       batch: its calls go when no interactive caller waits",
            "  trial\n    known by    a token, a usersig for identifier \"trial\", Unix user 7\n    commands    follow/follow_check; others are forwarded and logged (report_only)\n    \
             apps        all\n    quota       none of its own",
        ] {
            assert!(text.contains(&format!("{line}\n")), "{line}\n{text}");
        }
        assert!(text.contains("Chat's limit"), "timpush/push has a lower limit, and a caller may use it\n{text}");
        assert!(!text.contains("a-token-that") && !text.contains(&KEY[..8]), "{text}");
    }

    #[test]
    fn report_shows_open_access_and_empty_allow_lists() {
        let text = report_of(
            "[server]\nlisten = '0.0.0.0:1'\n[access]\nopen = true\nallow = []\nrequire_header = true\n\
             [[app]]\nname = 'a'\nsdkappid = 1\nregion = 'china'\nsecret_key_env = 'KEY'\n\
             [[app]]\nname = 'b'\nsdkappid = 2\nregion = 'china'\nsecret_key_env = 'KEY'\n",
        );
        for part in [
            "0.0.0.0:1, reachable from other machines without authentication",
            "callers may use no command, with",
            "no default app",
        ] {
            assert!(text.contains(part), "{part}\n{text}");
        }
    }
}
