//! `chatgate check`: what a configuration comes to.

use std::fmt::{self, Write};

use crate::config::{Access, App, Caller, Config, ListenAddr, Tls, lower_limit, show_duration, show_size};
use crate::domain::chat::app::AppName;
use crate::domain::chat::command::{CommandName, CommandPattern, KNOWN_COMMANDS};

/// What the configuration comes to, for people. Warnings are not part of it.
pub(super) fn report(config: &Config) -> String {
    let mut text = String::new();
    write_report(&mut text, config).expect("a String takes everything");
    text
}

fn write_report(out: &mut String, config: &Config) -> fmt::Result {
    let server = &config.server;
    for address in &server.listen {
        let tls = server.tls.as_ref().filter(|_| matches!(address, ListenAddr::Tcp(_)));
        let asked = !config.callers.is_empty() || server.requires_client_cert();
        let over = if tls.is_some() { ", over TLS" } else { "" };
        writeln!(out, "data listener   {address}{}{over}", reach(address.is_local(), asked))?;
    }
    if let Some(Tls { certificate, requires_client_cert, .. }) = &server.tls {
        writeln!(out, "certificate     {}\n  ends          {}", certificate.subject, certificate.ends_at_text())?;
        if *requires_client_cert {
            writeln!(out, "  callers       must show one of server.tls.client_ca_file over TCP")?;
        }
    }
    let token = if server.admin_token.is_some() { ", orders with a token" } else { "" };
    let reachable = reach(server.admin.is_local(), server.admin_token.is_some() || !config.callers.is_empty());
    writeln!(out, "admin listener  {}{reachable}{token}", server.admin)?;
    if !server.unix_uids.is_empty() {
        let uids: Vec<String> = server.unix_uids.iter().map(u32::to_string).collect();
        writeln!(out, "Unix sockets    for users {}", uids.join(", "))?;
    }
    if let Some(webhook) = &config.webhook {
        let mut apps: Vec<&str> = webhook.tokens.keys().map(AppName::as_str).collect();
        apps.sort_unstable();
        let window = show_duration(webhook.window);
        writeln!(out, "webhooks        {}, for {}, signed within {window}", webhook.listen, apps.join(", "))?;
    }
    if let Some(trace) = &config.trace {
        let (service, part) = (trace.service(), trace.sample * 100.0);
        writeln!(out, "traces          to {}, as {service}, of {part}% of the requests that begin one", trace.otlp)?;
    }
    if !server.hosts.is_empty() {
        writeln!(out, "host names      {}", server.hosts.join(", "))?;
    }
    let header = if config.access.require_header { ", with the header `Chatgate: 1`" } else { "" };
    if config.callers.is_empty() {
        let Access { allow, report_only, .. } = &config.access;
        writeln!(out, "callers may     {}{header}", allowed(allow, *report_only))?;
    } else {
        writeln!(out, "callers         need a token{header}")?;
        config.callers.iter().try_for_each(|caller| write_caller(out, caller))?;
    }
    let default = config.default_app().map(|app| &app.name);
    for app in &config.apps {
        let mark = if Some(&app.name) == default { ", for calls that name no app" } else { "" };
        writeln!(out, "\napp {}{mark}", app.name)?;
        write_app(out, app, config)?;
    }
    if default.is_none() {
        writeln!(out, "\nno app is the default: every call has to name one")?;
    }
    let cache = &config.cache;
    writeln!(out, "\ncache           {} pairs an app, each for {}", cache.max_pairs, show_duration(cache.ttl))?;
    let buffered = show_size(server.max_buffered);
    writeln!(out, "at one time     {} requests, {buffered} of bodies and answers", server.max_requests)?;
    let upstream = &config.upstream;
    let (timeout, attempt) = (show_duration(upstream.timeout), show_duration(upstream.attempt_timeout));
    let attempts = upstream.attempts;
    let most = if attempts == 1 { "1 attempt".to_owned() } else { format!("{attempts} attempts (a write: 1)") };
    writeln!(out, "a call          at most {most} of {attempt} each, {} more on average", upstream.retry_budget)?;
    writeln!(
        out,
        "worst-case wait {timeout}: by then a caller whose request is in has an answer, if only `upstream_timeout` or \
         `rate_limited` (upstream.timeout)"
    )
}

fn write_caller(out: &mut String, caller: &Caller) -> fmt::Result {
    let apps: Option<Vec<&str>> = caller.apps.as_ref().map(|apps| apps.iter().map(AppName::as_str).collect());
    let apps = apps.map_or("all apps".to_owned(), |apps| apps.join(", "));
    let quota = caller.quota.map_or("no quota of its own".to_owned(), |quota| format!("{quota}/s"));
    let may = allowed(&caller.allow, caller.report_only);
    writeln!(out, "  {}\n    may         {may}\n    of          {apps}\n    quota       {quota}", caller.name)
}

fn allowed(allow: &[CommandPattern], report_only: bool) -> String {
    let patterns: Vec<String> = allow.iter().map(ToString::to_string).collect();
    let patterns = if patterns.is_empty() { "nothing".to_owned() } else { patterns.join(", ") };
    if report_only { format!("{patterns}; all else is let through and logged (report_only)") } else { patterns }
}

fn write_app(out: &mut String, app: &App, config: &Config) -> fmt::Result {
    writeln!(out, "  sdkappid      {}", app.sdkappid)?;
    writeln!(out, "  identifier    {:?}, signing for {} at a time", app.identifier.as_str(), lifetime(app))?;
    match &app.standby {
        Some(standby) => {
            writeln!(out, "  host          {} in {}\n  standby host  {standby}", app.endpoint, app.region)?;
        }
        None => writeln!(out, "  host          {}, without a standby", app.endpoint)?,
    }
    if !app.extra_roots.is_empty() {
        writeln!(out, "  also trusted  {} of its own", plural(app.extra_roots.len(), "certificate"))?;
    }
    let quota = &app.quota;
    let total = quota.total.map_or("no bound".to_owned(), |total| format!("{total}/s"));
    let exceptions = exceptions(app, config);
    let except = if exceptions.is_empty() { "" } else { ", except" };
    writeln!(out, "  quota         {}/s for each command, {total} for all together{except}", quota.per_command)?;
    for (name, rate, why) in exceptions {
        writeln!(out, "    {name:<55} {rate:>9}  {why}")?;
    }
    Ok(())
}

/// Commands whose rate is not `per_command`, by name: rate and why. The vendor's lower limits of commands
/// that nobody may call would only be in the way.
fn exceptions(app: &App, config: &Config) -> Vec<(String, String, &'static str)> {
    let own = app.quota.commands.iter().map(|(name, rate)| (name.clone(), format!("{rate}/s"), "configured"));
    let of_callers = config.callers.iter().flat_map(|caller| &caller.allow);
    let allow: Vec<_> =
        if config.callers.is_empty() { config.access.allow.iter().collect() } else { of_callers.collect() };
    let allowed = |name: &CommandName<'_>| allow.iter().any(|pattern| pattern.matches(*name));
    let lower = KNOWN_COMMANDS.iter().map(|known| known.name).filter(allowed);
    let lower = lower.filter(|name| lower_limit(*name).is_some_and(|vendor| vendor < app.quota.per_command));
    let lower = lower.filter(|name| !app.quota.commands.contains_key(&name.to_string()));
    let lower = lower.map(|name| (name.to_string(), format!("{}/s", app.quota.limit(name)), "vendor's limit"));
    let mut exceptions: Vec<_> = own.chain(lower).collect();
    exceptions.sort();
    exceptions
}

fn lifetime(app: &App) -> String {
    show_duration(app.usersig_lifetime)
}

fn reach(local: bool, asked: bool) -> &'static str {
    match (local, asked) {
        (true, _) => "",
        (false, true) => ", which other machines can reach",
        (false, false) => ", which other machines can reach (access.open)",
    }
}

fn plural(count: usize, noun: &str) -> String {
    if count == 1 { format!("1 {noun}") } else { format!("{count} {noun}s") }
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
        let tokens = [("TOKEN", "a-token-that-is-long"), ("OTHER", "a-token-that-is-another")];
        let env: Env = tokens.into_iter().chain([("KEY", KEY)]).collect();
        report(&load(&path, &env).unwrap_or_else(|problems| panic!("{problems}")))
    }

    #[test]
    fn it_names_listeners_apps_hosts_quotas_and_the_longest_wait() {
        let text = report_of(
            "[server]\nlisten = ['127.0.0.1:1', 'unix:/run/x.sock']\n\
             [[app]]\nname = 'one'\nsdkappid = 7\nregion = 'tokyo'\nsecret_key_env = 'KEY'\n\
             [app.quota]\nper_command = '150/s'\ntotal = '900/s'\ncommands = { 'follow/follow_add' = '3/s' }\n\
             [[app]]\nname = 'two'\nsdkappid = 8\nendpoint = 'http://127.0.0.1:9700'\nsecret_key_env = 'KEY'\ndefault = true\n\
             [webhook]\nlisten = '0.0.0.0:2'\napp_tokens = { two = { env = 'KEY' }, one = { env = 'KEY' } }\n\
             [trace]\notlp = 'http://collector:4317'\nsample = 0.1\n\
             [upstream]\ntimeout = '17s'\n[access]\nallow = ['follow/*', 'im_open_login_svc/*']\n",
        );
        for line in [
            "data listener   127.0.0.1:1",
            "data listener   unix:/run/x.sock",
            "admin listener  127.0.0.1:8701",
            "webhooks        0.0.0.0:2, for one, two, signed within 1m",
            "callers may     follow/*, im_open_login_svc/*",
            "traces          to http://collector:4317, as chatgate, of 10% of the requests that begin one",
            "app one",
            "  sdkappid      7",
            "  identifier    \"administrator\", signing for 24h at a time",
            "  host          https://adminapijpn.im.qcloud.com in tokyo",
            "  quota         150/s for each command, 900/s for all together, except",
            "app two, for calls that name no app",
            "  host          http://127.0.0.1:9700, without a standby",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
        let words = |name: &str| -> Vec<String> {
            let line = text.lines().find(|line| line.contains(name)).unwrap_or_else(|| panic!("{name}\n{text}"));
            line.split_whitespace().map(str::to_owned).collect()
        };
        assert_eq!(words("follow/follow_add"), ["follow/follow_add", "3/s", "configured"]);
        assert_eq!(words("im_open_login_svc/account_delete")[1], "100/s");
        assert!(text.contains("worst-case wait 17s") && text.contains("adminapijpn.my-imcloud.com"), "{text}");
        assert!(!text.contains("timpush/push"), "nobody may call it\n{text}");
        assert!(!text.contains(&KEY[..8]), "{text}");
    }

    #[test]
    fn it_names_callers_and_what_they_may_but_no_token() {
        let text = report_of(
            "[server]\nlisten = '0.0.0.0:1'\nunix_uids = [0, 7]\nadmin_token_env = 'KEY'\n\
             [[app]]\nname = 'one'\nsdkappid = 7\nregion = 'tokyo'\nsecret_key_env = 'KEY'\n\
             [[caller]]\nname = 'feed'\ntoken_env = 'TOKEN'\napps = ['one']\nallow = ['timpush/push']\nquota = '50/s'\n\
             [[caller]]\nname = 'trial'\ntoken_env = 'OTHER'\nreport_only = true\n",
        );
        for line in [
            "data listener   0.0.0.0:1, which other machines can reach",
            "admin listener  127.0.0.1:8701, orders with a token",
            "Unix sockets    for users 0, 7",
            "callers         need a token",
            "  feed\n    may         timpush/push\n    of          one\n    quota       50/s",
            "  trial\n    may         follow/follow_check; all else is let through and logged (report_only)\n    \
             of          all apps\n    quota       no quota of its own",
        ] {
            assert!(text.contains(&format!("{line}\n")), "{line}\n{text}");
        }
        assert!(text.contains("vendor's limit"), "timpush/push has a lower one, and somebody may call it\n{text}");
        assert!(!text.contains("a-token-that") && !text.contains(&KEY[..8]), "{text}");
    }

    #[test]
    fn what_lets_others_in_or_nobody_is_said() {
        let text = report_of(
            "[server]\nlisten = '0.0.0.0:1'\n[access]\nopen = true\nallow = []\nrequire_header = true\n\
             [[app]]\nname = 'a'\nsdkappid = 1\nregion = 'china'\nsecret_key_env = 'KEY'\n\
             [[app]]\nname = 'b'\nsdkappid = 2\nregion = 'china'\nsecret_key_env = 'KEY'\n",
        );
        for part in
            ["0.0.0.0:1, which other machines can reach", "callers may     nothing, with", "no app is the default"]
        {
            assert!(text.contains(part), "{part}\n{text}");
        }
    }
}
