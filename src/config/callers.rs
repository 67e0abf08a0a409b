//! `[[caller]]`: who may call, and what.

use std::collections::HashSet;
use std::num::NonZeroU32;

use super::apps::at;
use super::build::patterns;
use super::section::{SecretNames, Section};
use super::tree::{Node, Place};
use super::units::{Reading, boolean, parsed, rate};
use super::{APPS_MAX, Access, allow_default};
use crate::domain::caller::{BearerToken, CallerName, TokenDigest};
use crate::domain::chat::app::AppName;
use crate::domain::chat::command::CommandPattern;

/// Most callers of one gateway. Each request's token is compared with all of theirs.
pub const CALLERS_MAX: usize = 1000;

const TOKEN: SecretNames = SecretNames { inline: "token", file: "token_file", env: "token_env" };

/// `[[caller]]`: one caller.
#[derive(Debug, Clone)]
pub struct Caller {
    /// What operators call it.
    pub name: CallerName,
    /// What its token is known by. The token itself is not kept.
    pub token: TokenDigest,
    /// The apps it may use, at least one; `None`: all.
    pub apps: Option<Vec<AppName>>,
    /// Commands it may use, at most 1000 patterns. Default `follow/follow_check` alone.
    pub allow: Vec<CommandPattern>,
    /// Whether commands that are not allowed are let through and logged. Default `access.report_only`.
    pub report_only: bool,
    /// Calls a second that it may cause, of all its apps and commands together; `None`: no bound of its own.
    pub quota: Option<NonZeroU32>,
}

/// All callers that could be read. `apps` are the names of all apps.
pub(super) fn callers(root: &mut Section<'_>, apps: &HashSet<AppName>, access: &Access) -> Vec<Caller> {
    let sections = root.sections("caller");
    if sections.len() > CALLERS_MAX {
        root.problem("caller", format_args!("stands more than {CALLERS_MAX} times"));
        return Vec::new();
    }
    let mut seen = Seen::default();
    sections.into_iter().filter_map(|section| caller(section, apps, access, &mut seen)).collect()
}

/// What must not stand twice, and where it stood first.
#[derive(Default)]
struct Seen {
    names: Vec<(CallerName, Place)>,
    tokens: (Vec<TokenDigest>, Vec<Place>),
}

fn caller(mut section: Section<'_>, apps: &HashSet<AppName>, access: &Access, seen: &mut Seen) -> Option<Caller> {
    let name = section.required("name", "name = \"feed\"", parsed::<CallerName>);
    let token = token(&mut section, &TOKEN, true).map(|token| token.digest());
    let list = section.list("apps", false, 1..=APPS_MAX, |node| known_app(node, apps));
    let allow = patterns(&mut section, "allow");
    if allow.as_ref().is_some_and(Vec::is_empty) {
        section.warning("allow", "is empty, so every command is refused");
    }
    let mut report_only = access.report_only;
    section.read("report_only", &mut report_only, boolean);
    if report_only {
        section.warning("report_only", "lets every command of this caller through, whatever allow says");
    }
    let quota = section.optional("quota", rate);

    if let Some(name) = &name {
        let place = section.place_of("name").clone();
        match seen.names.iter().find(|(other, _)| other == name) {
            Some((_, first)) => {
                section.problem("name", format_args!("is that of another caller{}; give each its own", at(first)));
            }
            None => seen.names.push((name.clone(), place)),
        }
    }
    if let Some(token) = token {
        let (tokens, places) = &mut seen.tokens;
        let key = if section.has(TOKEN.file) { TOKEN.file } else { TOKEN.env };
        match token.find_in(&*tokens) {
            Some(first) => {
                let first = at(&places[first]);
                section.problem(key, format_args!("names the token of another caller{first}; give each its own"));
            }
            None => {
                tokens.push(token);
                places.push(section.place_of(key).clone());
            }
        }
    }
    section.finish();
    Some(Caller {
        name: name?,
        token: token?,
        apps: list.map(|list| list.into_iter().map(|(name, _)| name).collect()),
        allow: allow.unwrap_or_else(allow_default),
        report_only,
        quota,
    })
}

/// A token that is named by reference, as other secrets are.
pub(super) fn token(section: &mut Section<'_>, names: &SecretNames, required: bool) -> Option<BearerToken> {
    let secret = section.secret(names, required)?;
    let key = if section.has(names.file) { names.file } else { names.env };
    BearerToken::new(secret.expose()).map_err(|error| section.problem(key, error)).ok()
}

fn known_app(node: &Node, apps: &HashSet<AppName>) -> Reading<AppName> {
    let name: AppName = parsed(node)?;
    if apps.contains(&name) { Ok(name) } else { Err("names no app that is configured".to_owned()) }
}
