//! `[access]`: permissions of callers.

use super::address::ListenAddr;
use super::caller::Caller;
use super::section::Section;
use super::server::Server;
use super::suggest::closest;
use super::units::{boolean, parsed};
use crate::domain::chat::command::{CommandPattern, FOLLOW_CHECK, KNOWN_COMMANDS};
use crate::domain::quote::quoted;

/// Maximum number of patterns in an allow list.
const PATTERNS_MAX: usize = 1000;

/// Warning for an empty allow list.
pub(super) const ALLOWS_NOTHING: &str = "empty, so every command is rejected; list the allowed commands";

/// `[access]`: permissions of callers. chatgate signs as an administrator, so it rejects every command that is not
/// listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Access {
    /// Commands if no callers are configured, up to 1000 patterns. Default: only `follow/follow_check`.
    pub allow: Vec<CommandPattern>,
    /// Whether commands that are not listed are forwarded and logged. Default false.
    pub report_only: bool,
    /// Whether every data request must have the header `Chatgate: 1`. Default false.
    pub require_header: bool,
    /// Whether listeners may be open to other machines without authentication. Default false.
    pub open: bool,
}

impl Default for Access {
    fn default() -> Self {
        Self { allow: allow_default(), report_only: false, require_header: false, open: false }
    }
}

impl Access {
    pub(super) fn read(section: &mut Section<'_>) -> Self {
        let mut access = Self::default();
        if let Some(allow) = read_patterns(section, "allow") {
            if allow.is_empty() {
                section.warning("allow", ALLOWS_NOTHING);
            }
            access.allow = allow;
        }
        section.read("report_only", &mut access.report_only, boolean);
        section.read("require_header", &mut access.require_header, boolean);
        section.read("open", &mut access.open, boolean);
        access
    }

    /// Warns of settings that have no effect, or more effect than they seem to have, in combination with others.
    pub(super) fn check_with(&self, section: &Section<'_>, server: &Server, callers: &[Caller]) {
        if !callers.is_empty() {
            if section.has("allow") {
                let message = "has no effect, because every [[caller]] has its own allow list; remove it";
                section.warning("allow", message);
            }
            return;
        }
        let is_local = server.listen.iter().all(ListenAddr::is_local);
        if self.open && !server.requires_client_cert() && !is_local {
            let message =
                "every machine that can reach server.listen has administrator rights, limited by access.allow";
            section.warning("open", message);
        }
        if self.report_only {
            section.warning("report_only", "every command is forwarded, even if it is not in access.allow");
        }
    }
}

/// Returns the default allow list.
pub(super) fn allow_default() -> Vec<CommandPattern> {
    vec![CommandPattern::One(FOLLOW_CHECK.service().into(), FOLLOW_CHECK.command().into())]
}

/// Reads a list of patterns. A pattern without a match in the built-in table or among the declared commands only causes
/// a warning, because Chat may have commands that the table lacks.
pub(super) fn read_patterns(section: &mut Section<'_>, key: &'static str) -> Option<Vec<CommandPattern>> {
    let patterns = section.list(key, false, 0..=PATTERNS_MAX, parsed::<CommandPattern>)?;
    for (pattern, location) in &patterns {
        let is_known = KNOWN_COMMANDS.iter().any(|known| pattern.matches(known.name));
        if !is_known && !section.has_declared(|name| pattern.matches(name)) {
            section.warning_at(location, &section.path_of(key), unknown_command(&pattern.to_string()));
        }
    }
    Some(patterns.into_iter().map(|(pattern, _)| pattern).collect())
}

/// Returns the warning for a command that is not in the built-in table.
pub(super) fn unknown_command(name: &str) -> String {
    let names: Vec<String> = KNOWN_COMMANDS
        .iter()
        .flat_map(|known| [known.name.to_string(), format!("{}/*", known.name.service())])
        .collect();
    match closest(name, names.iter().map(String::as_str)) {
        Some(meant) => format!("unknown command: {}; did you mean \"{meant}\"?", quoted(name)),
        None => format!("unknown command: {}; check its spelling", quoted(name)),
    }
}
