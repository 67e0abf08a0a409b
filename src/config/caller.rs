//! `[[caller]]`: a service with its own proofs of identity, permissions, and quota.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::num::NonZeroU32;

use super::access::{ALLOWS_NOTHING, Access, allow_default, read_patterns};
use super::address::ListenAddr;
use super::app::{APPS_MAX, App};
use super::section::{NamedSecret, SecretNames, Section};
use super::server::{Server, uid};
use super::tree::{Location, Node};
use super::units::{ParseResult, boolean, parsed, rate};
use crate::domain::caller::{BearerToken, CallerName, CertificateName, Class, TokenDigest};
use crate::domain::chat::app::{AppName, SecretKey};
use crate::domain::chat::command::CommandPattern;
use crate::domain::quote::{quoted, with_value};

/// Maximum number of callers. Each request's token is compared with the tokens of all callers.
pub const CALLERS_MAX: usize = 1000;
/// Maximum number of tokens of a caller: enough to add a new one before the old one goes.
pub const TOKENS_MAX: usize = 4;
/// Minimum length of a key without a warning, in bytes. A UserSig is enough to try keys on.
const KEY_LEN_SAFE: usize = 16;
/// Maximum number of entries in `certificates` and in `unix_uids`.
const ENTRIES_MAX: usize = 100;

const TOKEN: SecretNames = SecretNames { inline: "token", file: "token_file", env: "token_env" };
const USERSIG_KEY: SecretNames =
    SecretNames { inline: "usersig_key", file: "usersig_key_file", env: "usersig_key_env" };

/// `[[caller]]`: a service with its own proofs of identity, permissions, and quota. It has at least one token, key,
/// certificate, or Unix user.
#[derive(Debug, Clone)]
pub struct Caller {
    /// Name in logs and metrics, and the identifier that its SDK signs for.
    pub name: CallerName,
    /// Digests of its tokens, up to [`TOKENS_MAX`]. The tokens themselves are not kept.
    pub tokens: Vec<TokenDigest>,
    /// Key with which its SDK signs; `None`: it has no such SDK.
    pub usersig_key: Option<SecretKey>,
    /// Names in its client certificates, up to 100.
    pub certificates: Vec<CertificateName>,
    /// Users of its processes, over a Unix socket, up to 100.
    pub unix_uids: Vec<u32>,
    /// Apps it may use, at least one; `None`: all.
    pub apps: Option<Vec<AppName>>,
    /// Commands it may use, up to 1000 patterns. Default: only `follow/follow_check`.
    pub allow: Vec<CommandPattern>,
    /// Whether commands that are not listed are forwarded and logged. Default `access.report_only`.
    pub report_only: bool,
    /// Whose calls go first. Default interactive.
    pub class: Class,
    /// Calls per second that it may cause, across all apps and commands; `None`: no quota of its own.
    pub quota: Option<NonZeroU32>,
}

/// Reads all callers and returns the valid ones. `app_names` are the names of all apps, `apps` the valid apps.
pub(super) fn read_callers(
    root: &mut Section<'_>,
    app_names: &HashSet<AppName>,
    apps: &[App],
    access: &Access,
    listeners: &Listeners<'_>,
) -> Vec<Caller> {
    let sections = root.sections("caller");
    if sections.len() > CALLERS_MAX {
        root.problem("caller", format_args!("more than {CALLERS_MAX} callers; remove some"));
        return Vec::new();
    }
    let app_keys = apps.iter().map(|app| app.secret_key.expose()).collect();
    let mut unique = UniqueCallers { app_keys, ..UniqueCallers::default() };
    let sections = sections.into_iter().enumerate();
    sections
        .filter_map(|(number, section)| Caller::read(section, number, app_names, access, listeners, &mut unique))
        .collect()
}

/// What the proofs of callers depend on.
pub(super) struct Listeners<'a> {
    /// `[server]`.
    pub(super) server: &'a Server,
    /// Whether callers need a client certificate, even if the TLS settings are invalid.
    pub(super) requires_client_cert: bool,
}

/// Values that only one caller may have, each with the caller's number and the location of its first use.
#[derive(Default)]
struct UniqueCallers<'a> {
    names: HashMap<CallerName, Location>,
    tokens: Vec<TokenDigest>,
    /// Owners of the tokens, in the same order.
    token_owners: Vec<(usize, Location)>,
    certificates: HashMap<CertificateName, (usize, Location)>,
    uids: HashMap<u32, (usize, Location)>,
    /// Keys of the callers before.
    keys: Vec<(SecretKey, Location)>,
    app_keys: Vec<&'a [u8]>,
}

impl UniqueCallers<'_> {
    fn check_name(&mut self, section: &Section<'_>, name: &CallerName) {
        match self.names.get(name) {
            Some(first) => {
                section.wrong_value("name", format_args!("another caller has this name{first}; choose a unique name"));
            }
            None => drop(self.names.insert(name.clone(), section.location_of("name").clone())),
        }
    }

    fn check_token(&mut self, section: &Section<'_>, caller: usize, named: &NamedSecret, token: TokenDigest) {
        match token.find_in(&self.tokens) {
            Some(index) if self.token_owners[index].0 == caller => {}
            Some(index) => {
                let first = &self.token_owners[index].1;
                let message = format!("another caller has this token{first}; create a separate token");
                note_token(section, named, &message);
            }
            None => {
                self.tokens.push(token);
                self.token_owners.push((caller, named.location.clone()));
            }
        }
    }

    /// Warns of a key that can be guessed, or with which more than this caller can sign.
    fn check_key(&mut self, section: &Section<'_>, key: &SecretKey) {
        let name = USERSIG_KEY.present_in(section);
        if key.expose().len() < KEY_LEN_SAFE {
            let message = "the key is shorter than 16 characters; generate one with `openssl rand -hex 32`";
            section.warning(name, section.with_value(name, message));
        }
        if self.app_keys.contains(&key.expose()) {
            let message = "an [[app]] has this key, so the caller can sign for Chat itself; create a separate key";
            section.warning(name, section.with_value(name, message));
        }
        match self.keys.iter().find(|(other, _)| other.expose() == key.expose()) {
            Some((_, first)) => {
                let message = format!("another caller has this key{first}, so each can sign as the other");
                section.warning(name, section.with_value(name, format_args!("{message}; create a separate key")));
            }
            None => self.keys.push((key.clone(), section.location_of(name).clone())),
        }
    }
}

/// Records the owner of a value, or notes a problem if another caller has it.
fn claim<T: Hash + Eq>(
    owners: &mut HashMap<T, (usize, Location)>,
    value: T,
    caller: usize,
    location: &Location,
    problem: impl FnOnce(&Location),
) {
    match owners.entry(value) {
        Entry::Occupied(first) if first.get().0 != caller => problem(&first.get().1),
        Entry::Occupied(_) => {}
        Entry::Vacant(entry) => drop(entry.insert((caller, location.clone()))),
    }
}

/// The proofs of one caller.
struct Proofs {
    tokens: Vec<TokenDigest>,
    usersig_key: Option<SecretKey>,
    certificates: Vec<CertificateName>,
    unix_uids: Vec<u32>,
}

impl Proofs {
    fn read(
        section: &mut Section<'_>,
        caller: usize,
        listeners: &Listeners<'_>,
        unique: &mut UniqueCallers<'_>,
    ) -> Self {
        let has_proof = [TOKEN.inline, TOKEN.file, TOKEN.env, USERSIG_KEY.inline, USERSIG_KEY.file, USERSIG_KEY.env]
            .into_iter()
            .chain(["certificates", "unix_uids"])
            .any(|key| section.has(key));
        if !has_proof {
            let message = "missing; set token_file = \"FILE\", usersig_key_file, certificates, or unix_uids";
            section.problem(TOKEN.file, message);
        }
        let usersig_key = section.secret(&USERSIG_KEY, false).and_then(|secret| SecretKey::new(secret.expose()));
        if let Some(key) = &usersig_key {
            unique.check_key(section, key);
        }
        Self {
            tokens: read_tokens(section, caller, unique),
            usersig_key,
            certificates: read_certificates(section, caller, listeners, unique),
            unix_uids: read_uids(section, caller, listeners, unique),
        }
    }
}

fn read_tokens(section: &mut Section<'_>, caller: usize, unique: &mut UniqueCallers<'_>) -> Vec<TokenDigest> {
    let mut tokens = Vec::new();
    for named in section.secrets(&TOKEN, TOKENS_MAX) {
        match BearerToken::new(named.secret.expose()) {
            Ok(token) => {
                unique.check_token(section, caller, &named, token.digest());
                tokens.push(token.digest());
            }
            Err(error) => note_token(section, &named, &error.to_string()),
        }
    }
    tokens
}

/// Notes a problem of one token.
fn note_token(section: &Section<'_>, named: &NamedSecret, message: &str) {
    let path = section.path_of(TOKEN.present_in(section));
    section.problem_at(&named.location, &path, with_value(message, &named.shown));
}

fn read_certificates(
    section: &mut Section<'_>,
    caller: usize,
    listeners: &Listeners<'_>,
    unique: &mut UniqueCallers<'_>,
) -> Vec<CertificateName> {
    const KEY: &str = "certificates";
    let names = section.list(KEY, false, 1..=ENTRIES_MAX, parsed::<CertificateName>).unwrap_or_default();
    if section.has(KEY) && !listeners.requires_client_cert {
        section.problem(KEY, "no client shows a certificate; set server.tls.client_ca_file");
    }
    for (name, location) in &names {
        claim(&mut unique.certificates, name.clone(), caller, location, |first| {
            let message = format!("another caller has this name{first}; list each name under one caller");
            section.problem_at(location, &section.path_of(KEY), with_value(&message, &quoted(&name.to_string())));
        });
    }
    names.into_iter().map(|(name, _)| name).collect()
}

fn read_uids(
    section: &mut Section<'_>,
    caller: usize,
    listeners: &Listeners<'_>,
    unique: &mut UniqueCallers<'_>,
) -> Vec<u32> {
    const KEY: &str = "unix_uids";
    let server = listeners.server;
    let uids = section.list(KEY, false, 1..=ENTRIES_MAX, uid).unwrap_or_default();
    if section.has(KEY) && !server.listen.iter().any(|address| matches!(address, ListenAddr::Unix(_))) {
        section.warning(KEY, "has no effect, because server.listen has no Unix socket; add \"unix:/path\" to it");
    }
    for (uid, location) in &uids {
        if !server.unix_uids.is_empty() && !server.unix_uids.contains(uid) {
            let message = "this user may not use the Unix sockets; add it to server.unix_uids";
            section.warning_at(location, &section.path_of(KEY), with_value(message, &uid.to_string()));
        }
        claim(&mut unique.uids, *uid, caller, location, |first| {
            let message = format!("another caller has this user{first}; list each user under one caller");
            section.problem_at(location, &section.path_of(KEY), with_value(&message, &uid.to_string()));
        });
    }
    uids.into_iter().map(|(uid, _)| uid).collect()
}

impl Caller {
    fn read(
        mut section: Section<'_>,
        number: usize,
        app_names: &HashSet<AppName>,
        access: &Access,
        listeners: &Listeners<'_>,
        unique: &mut UniqueCallers<'_>,
    ) -> Option<Self> {
        let name = section.required("name", "name = \"feed\"", parsed::<CallerName>);
        let proofs = Proofs::read(&mut section, number, listeners, unique);
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
        let mut class = Class::default();
        section.read("class", &mut class, parse_class);
        let quota = section.optional("quota", rate);
        if let Some(name) = &name {
            unique.check_name(&section, name);
        }
        section.finish();
        let Proofs { tokens, usersig_key, certificates, unix_uids } = proofs;
        Some(Self {
            name: name?,
            tokens,
            usersig_key,
            certificates,
            unix_uids,
            apps: apps.map(|apps| apps.into_iter().map(|(name, _)| name).collect()),
            allow: allow.unwrap_or_else(allow_default),
            report_only,
            class,
            quota,
        })
    }
}

fn parse_class(node: &Node) -> ParseResult<Class> {
    match node.text() {
        Some("interactive") => Ok(Class::Interactive),
        Some("batch") => Ok(Class::Batch),
        _ => Err("must be \"interactive\" or \"batch\"".to_owned()),
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
