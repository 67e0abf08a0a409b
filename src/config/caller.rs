//! `[[caller]]`: a service with its own token, permissions, and quota.

use std::collections::HashSet;
use std::num::NonZeroU32;

use super::access::Access;
use super::access::{ALLOWS_NOTHING, allow_default, read_patterns};
use super::app::APPS_MAX;
use super::section::{SecretNames, Section};
use super::tree::{Location, Node};
use super::units::{ParseResult, boolean, parsed, rate};
use crate::domain::caller::{BearerToken, CallerName, TokenDigest};
use crate::domain::chat::app::AppName;
use crate::domain::chat::command::CommandPattern;

/// Maximum number of callers. Each request's token is compared with the tokens of all callers.
pub const CALLERS_MAX: usize = 1000;

const TOKEN: SecretNames = SecretNames { inline: "token", file: "token_file", env: "token_env" };

/// `[[caller]]`: a service with its own token, permissions, and quota.
#[derive(Debug, Clone)]
pub struct Caller {
    /// Name in logs and metrics.
    pub name: CallerName,
    /// Digest of its token. The token itself is not kept.
    pub token: TokenDigest,
    /// Apps it may use, at least one; `None`: all.
    pub apps: Option<Vec<AppName>>,
    /// Commands it may use, up to 1000 patterns. Default: only `follow/follow_check`.
    pub allow: Vec<CommandPattern>,
    /// Whether commands that are not listed are forwarded and logged. Default `access.report_only`.
    pub report_only: bool,
    /// Calls per second that it may cause, across all apps and commands; `None`: no quota of its own.
    pub quota: Option<NonZeroU32>,
}

/// Reads all callers and returns the valid ones. `apps` are the names of all apps.
pub(super) fn read_callers(root: &mut Section<'_>, apps: &HashSet<AppName>, access: &Access) -> Vec<Caller> {
    let sections = root.sections("caller");
    if sections.len() > CALLERS_MAX {
        root.problem("caller", format_args!("more than {CALLERS_MAX} callers; remove some"));
        return Vec::new();
    }
    let mut unique = UniqueCallers::default();
    sections.into_iter().filter_map(|section| Caller::read(section, apps, access, &mut unique)).collect()
}

/// Values that only one caller may have, with the location of their first use.
#[derive(Default)]
struct UniqueCallers {
    names: Vec<(CallerName, Location)>,
    tokens: Vec<TokenDigest>,
    /// Locations of the tokens, in the same order.
    token_locations: Vec<Location>,
}

impl UniqueCallers {
    fn check_name(&mut self, section: &Section<'_>, name: &CallerName) {
        match self.names.iter().find(|(other, _)| other == name) {
            Some((_, first)) => {
                section.wrong_value("name", format_args!("another caller has this name{first}; choose a unique name"));
            }
            None => self.names.push((name.clone(), section.location_of("name").clone())),
        }
    }

    fn check_token(&mut self, section: &Section<'_>, token: TokenDigest) {
        let key = TOKEN.present_in(section);
        match token.find_in(&self.tokens) {
            Some(index) => {
                let first = &self.token_locations[index];
                section.wrong_value(key, format_args!("another caller has this token{first}; create a separate token"));
            }
            None => {
                self.tokens.push(token);
                self.token_locations.push(section.location_of(key).clone());
            }
        }
    }
}

impl Caller {
    fn read(
        mut section: Section<'_>,
        app_names: &HashSet<AppName>,
        access: &Access,
        unique: &mut UniqueCallers,
    ) -> Option<Self> {
        let name = section.required("name", "name = \"feed\"", parsed::<CallerName>);
        let token = read_token(&mut section, &TOKEN, true).map(|token| token.digest());
        let apps = section.list("apps", false, 1..=APPS_MAX, |node| known_app(node, app_names));
        let allow = read_patterns(&mut section, "allow");
        if allow.as_ref().is_some_and(Vec::is_empty) {
            section.warning("allow", ALLOWS_NOTHING);
        }
        let mut report_only = access.report_only;
        section.read("report_only", &mut report_only, boolean);
        if report_only {
            section.warning("report_only", "every command of this caller is forwarded, even if it is not in allow");
        }
        let quota = section.optional("quota", rate);
        if let Some(name) = &name {
            unique.check_name(&section, name);
        }
        if let Some(token) = token {
            unique.check_token(&section, token);
        }
        section.finish();
        Some(Self {
            name: name?,
            token: token?,
            apps: apps.map(|apps| apps.into_iter().map(|(name, _)| name).collect()),
            allow: allow.unwrap_or_else(allow_default),
            report_only,
            quota,
        })
    }
}

/// Reads a token by reference, like other secrets.
pub(super) fn read_token(section: &mut Section<'_>, names: &SecretNames, required: bool) -> Option<BearerToken> {
    let secret = section.secret(names, required)?;
    BearerToken::new(secret.expose()).map_err(|error| section.wrong_value(names.present_in(section), error)).ok()
}

fn known_app(node: &Node, apps: &HashSet<AppName>) -> ParseResult<AppName> {
    let name: AppName = parsed(node)?;
    if apps.contains(&name) { Ok(name) } else { Err(UNKNOWN_APP.to_owned()) }
}

/// Message for a name that is not the name of an `[[app]]`.
pub(super) const UNKNOWN_APP: &str = "unknown app; use the name of an [[app]]";
