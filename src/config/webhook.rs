//! `[webhook]`: the listener for webhooks from Chat.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use super::address::ListenAddr;
use super::caller::UNKNOWN_APP;
use super::section::{SecretNames, Section};
use super::server::Server;
use super::units::{duration, parsed};
use crate::domain::chat::app::AppName;
use crate::domain::chat::webhook::Token;
use crate::domain::quote::{quoted, with_value};

/// `[webhook]`: the listener for webhooks from Chat.
#[derive(Debug, Clone)]
pub struct Webhook {
    /// Address of the listener. It has no default, because it is usually open to other machines.
    pub listen: ListenAddr,
    /// Token per app; at least one. Webhooks of other apps are rejected.
    pub tokens: HashMap<AppName, Token>,
    /// Maximum difference between the time of a webhook and the current time, in both directions, 1 s to 1 h. Default
    /// 60 s.
    pub window: Duration,
}

const WINDOW_DEFAULT: Duration = Duration::from_secs(60);
const APP_TOKEN: SecretNames = SecretNames { inline: "token", file: "file", env: "env" };

impl Webhook {
    /// Reads the section if it is present. `apps` are the names of all apps.
    pub(super) fn read(root: &mut Section<'_>, apps: &HashSet<AppName>, server: &Server) -> Option<Self> {
        let is_present = root.has("webhook");
        let mut section = root.section("webhook");
        if !is_present {
            section.finish();
            return None;
        }
        let listen = section.required("listen", "listen = \"0.0.0.0:8702\"", parsed::<ListenAddr>);
        if let Some(listen) = &listen
            && server.listen.iter().chain([&server.admin]).any(|other| other.collides_with(listen))
        {
            section.wrong_value("listen", "another listener has this address; give webhooks their own address");
        }
        let tokens = read_tokens(&mut section, apps);
        let mut window = WINDOW_DEFAULT;
        section.read("window", &mut window, duration(Duration::from_secs(1)..=Duration::from_secs(3600)));
        section.finish();
        Some(Self { listen: listen?, tokens, window })
    }
}

fn read_tokens(section: &mut Section<'_>, apps: &HashSet<AppName>) -> HashMap<AppName, Token> {
    let entries = section.named_entries("app_tokens");
    if entries.is_empty() {
        let cause = if section.has("app_tokens") { "empty" } else { "missing" };
        section.problem("app_tokens", format_args!("{cause}; set app_tokens = {{ main = {{ file = \"FILE\" }} }}"));
    }
    let mut tokens = HashMap::new();
    for entry in entries {
        let name = entry.name.parse::<AppName>().ok().filter(|name| apps.contains(name));
        if name.is_none() {
            section.problem_at(entry.key_location, &entry.path, with_value(UNKNOWN_APP, &quoted(entry.name)));
        }
        let Some(table) = entry.node.table() else {
            let message = "must be a table that names the token, not the token itself; use { file = \"FILE\" }";
            section.problem_at(&entry.node.location, &entry.path, message);
            continue;
        };
        let mut reference = section.below(entry.path, entry.node.location.clone(), table);
        let secret = reference.secret(&APP_TOKEN, true).and_then(|secret| Token::new(secret.expose()));
        reference.finish();
        tokens.extend(name.zip(secret));
    }
    tokens
}
