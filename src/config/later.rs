//! Keys whose feature is not there yet. They are read and checked like all others, so that their mistakes
//! show, and then refused: a key that is silently ignored would promise what is not kept.

use std::collections::HashSet;

use super::apps::at;
use super::build::patterns;
use super::section::{SecretNames, Section};
use super::tree::{Node, Place};
use super::units::{Reading, fraction, parsed, rate, text};
use crate::domain::app::AppName;

/// A key that is to come.
struct ToCome {
    key: &'static str,
    /// What the feature is, as the beginning of a sentence.
    feature: &'static str,
    /// What to do for now.
    instead: &'static str,
}

/// All of them. A feature that comes takes its row away; its checks below become its reading.
const TO_COME: &[ToCome] = &[
    ToCome {
        key: "server.tls",
        feature: "TLS for callers",
        instead: "leave it out and listen on loopback or a Unix socket",
    },
    ToCome {
        key: "server.admin_token_file",
        feature: "a token for operators",
        instead: "leave it out and let admin listen on loopback or a Unix socket",
    },
    ToCome {
        key: "caller",
        feature: "telling callers apart",
        instead: "leave it out, let a Unix socket's mode say who may call, and write [access] allow for all of them",
    },
    ToCome {
        key: "fleet",
        feature: "sharing between replicas",
        instead: "leave it out and divide [app.quota] among the replicas",
    },
    ToCome { key: "trace", feature: "exporting traces", instead: "leave it out" },
];

/// Whether the feature of a key is still to come: `server.tls` and so on, without numbers.
pub fn is_to_come(key: &str) -> bool {
    TO_COME.iter().any(|row| row.key == key)
}

/// Refuses a key of the table above, if it was written.
fn refuse(section: &Section<'_>, key: &str, full_key: &str) {
    if let Some(row) = TO_COME.iter().find(|row| row.key == full_key)
        && section.has(key)
    {
        section.problem(key, format_args!("{} is not in this version; {}", row.feature, row.instead));
    }
}

/// Whole sections, and the keys of `[server]`. Gives whether there are callers.
pub(super) fn check(root: &mut Section<'_>, server: &mut Section<'_>, apps: &HashSet<AppName>) -> bool {
    check_tls(server);
    server.path_value("admin_token_file");
    refuse(server, "admin_token_file", "server.admin_token_file");
    check_callers(root, apps);
    check_fleet(root);
    let mut trace = root.section("trace");
    trace.optional("otlp", text);
    trace.finish();
    for key in ["caller", "fleet", "trace"] {
        refuse(root, key, key);
    }
    root.has("caller")
}

fn check_tls(server: &mut Section<'_>) {
    let mut tls = server.section("tls");
    if server.has("tls") {
        tls.required("cert_file", "cert_file = \"FILE\"", text);
        tls.required("key_file", "key_file = \"FILE\"", text);
    }
    tls.optional("client_ca_file", text);
    tls.finish();
    refuse(server, "tls", "server.tls");
}

const TOKEN: SecretNames = SecretNames { inline: "token", file: "token_file", env: "token_env" };

fn check_callers(root: &mut Section<'_>, apps: &HashSet<AppName>) {
    let mut seen: Vec<(AppName, Place)> = Vec::new();
    for mut caller in root.sections("caller") {
        if let Some(name) = caller.required("name", "name = \"feed\"", parsed::<AppName>) {
            match seen.iter().find(|(other, _)| *other == name) {
                Some((_, first)) => {
                    caller.problem("name", format_args!("is that of another caller{}; give each its own", at(first)));
                }
                None => seen.push((name, caller.place_of("name").clone())),
            }
        }
        caller.secret(&TOKEN, true);
        caller.list("apps", false, 0..=super::APPS_MAX, |node| known_app(node, apps));
        patterns(&mut caller, "allow");
        caller.optional("quota", rate);
        caller.finish();
    }
}

fn known_app(node: &Node, apps: &HashSet<AppName>) -> Reading<()> {
    let name: AppName = parsed(node)?;
    if apps.contains(&name) { Ok(()) } else { Err("names no app that is configured".to_owned()) }
}

fn check_fleet(root: &mut Section<'_>) {
    let mut fleet = root.section("fleet");
    fleet.optional("redis", |node| {
        let url = text(node)?;
        let rest = url.strip_prefix("redis://").or_else(|| url.strip_prefix("rediss://"));
        match rest {
            Some(rest) if rest.contains('@') => {
                Err("must not hold a password; put the whole URL into a file and name that with url_file".to_owned())
            }
            Some(_) => Ok(()),
            None => Err("is not an address of Redis; write \"redis://HOST:PORT\" or \"rediss://HOST:PORT\"".to_owned()),
        }
    });
    fleet.path_value("url_file");
    if fleet.has("redis") && fleet.has("url_file") {
        fleet.problem("url_file", "stands beside redis; write only one of them");
    }
    fleet.optional("prefix", text);
    fleet.optional("share", fraction(0.01..=1.0));
    fleet.finish();
}
