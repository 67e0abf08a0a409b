//! `[webhook]`: the listener for webhooks from Chat.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use super::address::ListenAddr;
use super::caller::UNKNOWN_APP;
use super::forward::{ForwardTarget, read_targets};
use super::section::{SecretNames, Section};
use super::server::Server;
use super::tls::Tls;
use super::units::{duration, millis, parsed};
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
    /// The apps that receive their webhooks. Every other app's webhooks end at chatgate.
    pub forward: HashMap<AppName, ForwardTarget>,
    /// Timeout of a forwarded webhook, its connection and the response of the app included, 10 ms to 2 s. Default
    /// 1.5 s.
    pub forward_timeout: Duration,
    /// TLS of a TCP address in `listen`; `None`: plain TCP.
    pub tls: Option<Tls>,
}

const WINDOW_DEFAULT: Duration = Duration::from_secs(60);
const FORWARD_TIMEOUT_DEFAULT: Duration = Duration::from_millis(1500);
/// Chat waits for a response for 2 s (vendor page "Webhook Overview", 1047/34354).
const FORWARD_TIMEOUT_MAX: Duration = Duration::from_secs(2);
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
        let (tokens, named) = read_tokens(&mut section, apps);
        let mut window = WINDOW_DEFAULT;
        section.read("window", &mut window, duration(Duration::from_secs(1)..=Duration::from_secs(3600)));
        let mut forward_timeout = FORWARD_TIMEOUT_DEFAULT;
        section.read("forward_timeout", &mut forward_timeout, duration(millis(10)..=FORWARD_TIMEOUT_MAX));
        let listeners: Vec<&ListenAddr> = server.listen.iter().chain([&server.admin]).chain(&listen).collect();
        let forward = read_targets(&mut section, apps, &named, &listeners);
        let has_tcp = matches!(listen, None | Some(ListenAddr::Tcp(_)));
        let (tls, _) = Tls::read(&mut section, has_tcp, "Chat rejects it");
        section.finish();
        Some(Self { listen: listen?, tokens, window, forward, forward_timeout, tls })
    }
}

/// Returns the valid tokens, and the apps that are named, also those with an invalid token.
fn read_tokens(section: &mut Section<'_>, apps: &HashSet<AppName>) -> (HashMap<AppName, Token>, HashSet<AppName>) {
    let entries = section.named_entries("app_tokens");
    if entries.is_empty() {
        let cause = if section.has("app_tokens") { "empty" } else { "missing" };
        section.problem("app_tokens", format_args!("{cause}; set app_tokens = {{ main = {{ file = \"FILE\" }} }}"));
    }
    let (mut tokens, mut named) = (HashMap::new(), HashSet::new());
    for entry in entries {
        let name = entry.name.parse::<AppName>().ok().filter(|name| apps.contains(name));
        if name.is_none() {
            section.problem_at(entry.key_location, &entry.path, with_value(UNKNOWN_APP, &quoted(entry.name)));
        }
        named.extend(name.clone());
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
    (tokens, named)
}
