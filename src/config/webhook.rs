//! `[webhook]`: events from Chat.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use super::section::{Reader, SecretNames, Section};
use super::units::{duration, parsed};
use super::{ListenAddr, Server};
use crate::domain::chat::app::AppName;
use crate::domain::chat::webhook::Token;

/// `[webhook]`: where events from Chat come, and who may say so.
#[derive(Debug, Clone)]
pub struct Webhook {
    /// Where Chat posts. It has no default: that others can reach it must be meant.
    pub listen: ListenAddr,
    /// The token of each app whose events are taken; at least one.
    pub tokens: HashMap<AppName, Token>,
    /// How far the time of an event may be from ours, before and after, 1 s to 1 h. Default 60 s.
    pub window: Duration,
}

const WINDOW_DEFAULT: Duration = Duration::from_secs(60);
const APP_TOKEN: SecretNames = SecretNames { inline: "token", file: "file", env: "env" };

/// The section, if it was written. `apps` are the names of all apps.
pub(super) fn webhook(
    reader: &Reader<'_>,
    root: &mut Section<'_>,
    apps: &HashSet<AppName>,
    server: &Server,
) -> Option<Webhook> {
    let written = root.has("webhook");
    let mut section = root.section("webhook");
    if !written {
        section.finish();
        return None;
    }
    let listen = section.required("listen", "listen = \"0.0.0.0:8702\"", parsed::<ListenAddr>);
    if let Some(listen) = &listen
        && server.listen.iter().chain([&server.admin]).any(|other| other.collides_with(listen))
    {
        section.problem("listen", "is the address of another listener; give webhooks one of their own");
    }
    let tokens = tokens(reader, &mut section, apps);
    let mut window = WINDOW_DEFAULT;
    section.read("window", &mut window, duration(Duration::from_secs(1)..=Duration::from_secs(3600)));
    section.finish();
    Some(Webhook { listen: listen?, tokens, window })
}

fn tokens(reader: &Reader<'_>, section: &mut Section<'_>, apps: &HashSet<AppName>) -> HashMap<AppName, Token> {
    let entries = section.entries("app_tokens");
    if entries.is_empty() {
        let what = if section.has("app_tokens") { "names no app" } else { "is missing" };
        section.problem("app_tokens", format_args!("{what}; write app_tokens = {{ main = {{ file = \"FILE\" }} }}"));
    }
    let mut tokens = HashMap::new();
    for entry in entries {
        let name = entry.name.parse::<AppName>().ok().filter(|name| apps.contains(name));
        if name.is_none() {
            reader.problem(entry.key_place, &entry.path, "names no app that is configured");
        }
        let Some(table) = entry.node.table() else {
            let message = "must name where the token is, which must not stand here itself; write { file = \"FILE\" }";
            reader.problem(&entry.node.place, &entry.path, message);
            continue;
        };
        let mut token = Section::below(reader, entry.path, entry.node.place.clone(), table);
        let secret = token.secret(&APP_TOKEN, true).and_then(|secret| Token::new(secret.expose()));
        token.finish();
        tokens.extend(name.zip(secret));
    }
    tokens
}
