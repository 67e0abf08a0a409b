//! From a file to a [`Config`], all problems at once.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::time::Duration;

use super::address::host_name;
use super::overlay::lay_over;
use super::problem::in_order;
use super::section::{Findings, Reader, SecretNames, Section, shown_path};
use super::suggest::closest;
use super::tree::{Node, Place, Table, parse};
use super::units::{Reading, boolean, count, duration, fraction, parsed, show_duration, size};
use super::{
    Access, Cache, Caller, Config, Env, FILE_LEN_MAX, FollowCheck, ListenAddr, Log, LogFormat, LogRequests,
    PATH_DEFAULT, Problem, Problems, Server, Source, Upstream, apps, callers, fleet, tls, trace, webhook,
};
use crate::domain::caller::BearerToken;
use crate::domain::chat::command::{CommandPattern, KNOWN_COMMANDS};

pub(super) fn load(path: &Path, env: &Env) -> Result<Config, Problems> {
    let file = shown_path(path);
    let whole = |line, message| Problem { file, line, column: None, key: String::new(), message };
    let text = read_file(path).map_err(|(line, message)| Problems::one(whole(line, message)))?;
    load_text(path, text, env)
}

pub(super) fn load_text(path: &Path, text: String, env: &Env) -> Result<Config, Problems> {
    let reader = Reader::new(path, env);
    let mut table = parse(reader.file(), &text).map_err(Problems::one)?;
    lay_over(&mut table, env, &reader);
    let built = build(&reader, &table);
    let Findings { problems, mut warnings, files } = reader.into_findings();
    in_order(&mut warnings);
    match Problems::of(problems) {
        Some(problems) => Err(problems),
        None => Ok(Config { warnings, source: Source { text, files }, ..built }),
    }
}

/// The text of the file, or what is wrong with it and in which line.
fn read_file(path: &Path) -> Result<String, (Option<usize>, String)> {
    let read = || {
        let mut bytes = Vec::new();
        File::open(path)?.take(FILE_LEN_MAX as u64 + 1).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().map_err(|error: std::io::Error| {
        let hint = if path == Path::new(PATH_DEFAULT) {
            "; name another with --config, or write one with `chatgate init`"
        } else {
            ""
        };
        (None, format!("cannot be read: {error}{hint}"))
    })?;
    if bytes.len() > FILE_LEN_MAX {
        return Err((None, "is larger than 1 MiB, so it is not a configuration".to_owned()));
    }
    String::from_utf8(bytes).map_err(|error| {
        let before = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
        (Some(line), "is not UTF-8 text".to_owned())
    })
}

/// Reads all of it. What could not be read has its default in the result, which is only used if
/// there was no problem.
fn build(reader: &Reader<'_>, table: &Table) -> Config {
    let mut root = Section::root(reader, table);
    let mut server_section = root.section("server");
    let (mut server, listen_places) = server(&mut server_section);
    let certificates_asked = tls::tls(&mut server_section, &mut server);
    let (apps, names) = apps::apps(&mut root);
    let mut access_section = root.section("access");
    let access = access(&mut access_section);
    let cache = cache(root.section("cache"));
    let follow_check = follow_check(root.section("follow_check"));
    let upstream = upstream(root.section("upstream"));
    let log = log(root.section("log"));
    let webhook = webhook::webhook(reader, &mut root, &names, &server);
    let fleet = fleet::fleet(&mut root);
    let callers = callers::callers(&mut root, &names, &access);
    let trace = trace::trace(reader, &mut root);
    if !access.open {
        let asks = Authentication {
            callers: root.has("caller"),
            certificates: certificates_asked,
            operators: server.admin_token.is_some(),
        };
        refuse_open_listeners(reader, &server, &listen_places, asks);
    }
    judge_together(&server_section, &access_section, (&server, &access, &callers));
    if server.max_buffered < server.max_body {
        server_section.warning("max_buffered", "is less than max_body: a body larger than this is always refused");
    }
    access_section.finish();
    server_section.finish();
    root.finish();
    Config {
        server,
        apps,
        access,
        callers,
        cache,
        follow_check,
        upstream,
        webhook,
        fleet,
        log,
        trace,
        warnings: Vec::new(),
        source: Source::default(),
    }
}

/// The server, and the places of its listeners: those of `listen` in their order, then that of `admin`.
fn server(section: &mut Section<'_>) -> (Server, Vec<(String, Place)>) {
    let mut server = Server::default();
    let timeout = || duration(millis(10)..=hours(1));
    let admin_place = section.place_of("admin").clone();
    let mut places = vec![("server.listen".to_owned(), section.place_of("listen").clone())];
    if let Some(listen) = section.list("listen", true, 1..=16, parsed::<ListenAddr>) {
        places = listen.iter().map(|(_, place)| ("server.listen".to_owned(), place.clone())).collect();
        server.listen = listen.into_iter().map(|(address, _)| address).collect();
    }
    section.read("admin", &mut server.admin, parsed);
    places.push(("server.admin".to_owned(), admin_place));
    section.read("unix_mode", &mut server.unix_mode, unix_mode);
    if let Some(uids) = section.list("unix_uids", false, 1..=100, uid) {
        server.unix_uids = uids.into_iter().map(|(uid, _)| uid).collect();
    }
    server.admin_token = callers::token(section, &ADMIN_TOKEN, false);
    if let Some(hosts) = section.list("hosts", false, 0..=100, host) {
        server.hosts = hosts.into_iter().map(|(host, _)| host).collect();
    }
    section.read("max_body", &mut server.max_body, size(1 << 10..=64 << 20));
    section.read("max_connections", &mut server.max_connections, count(1..=1_000_000));
    section.read("max_requests", &mut server.max_requests, count(1..=1_000_000));
    section.read("max_buffered", &mut server.max_buffered, size(1 << 10..=64 << 30));
    section.read("handshake_timeout", &mut server.handshake_timeout, timeout());
    section.read("head_timeout", &mut server.head_timeout, timeout());
    section.read("body_timeout", &mut server.body_timeout, timeout());
    section.read("write_timeout", &mut server.write_timeout, timeout());
    section.read("idle_timeout", &mut server.idle_timeout, duration(millis(10)..=hours(24)));
    section.read("drain_delay", &mut server.drain_delay, duration(millis(0)..=hours(1)));
    section.read("drain_timeout", &mut server.drain_timeout, duration(millis(0)..=hours(1)));
    section.read("explain", &mut server.explain, boolean);
    if server.unix_mode & 0o002 != 0 {
        section.warning("unix_mode", "lets every user of this machine call as the administrator of every app");
    }
    refuse_collisions(section, &server);
    (server, places)
}

fn refuse_collisions(section: &Section<'_>, server: &Server) {
    let mut before: Vec<&ListenAddr> = Vec::new();
    for address in &server.listen {
        if before.iter().any(|other| other.collides_with(address)) {
            section.problem("listen", "has one address twice; write each once");
            break;
        }
        before.push(address);
    }
    if before.iter().any(|other| other.collides_with(&server.admin)) {
        let key = if section.has("admin") { "admin" } else { "listen" };
        section.problem(key, "listen and admin have the same address; give admin one of its own");
    }
}

/// The token of operators.
const ADMIN_TOKEN: SecretNames =
    SecretNames { inline: "admin_token", file: "admin_token_file", env: "admin_token_env" };

/// Who is asked who they are.
struct Authentication {
    callers: bool,
    /// Of callers, over TCP, but not of operators.
    certificates: bool,
    operators: bool,
}

/// Whoever reaches a listener acts as administrator, so one that other machines reach must be meant.
fn refuse_open_listeners(reader: &Reader<'_>, server: &Server, places: &[(String, Place)], asks: Authentication) {
    let data = server.listen.iter().map(|address| (address, asks.callers || asks.certificates));
    // What operators may read without a token is no secret; what they may order from afar needs one.
    let addresses = data.chain([(&server.admin, asks.callers || asks.operators)]);
    for ((address, asked), (key, place)) in addresses.zip(places) {
        if address.is_local() || asked {
            continue;
        }
        let certificates = if key == "server.listen" { ", name a server.tls.client_ca_file" } else { "" };
        let message = format_args!(
            "other machines can reach this address, and nobody is asked who they are; listen on 127.0.0.1, [::1] \
             or \"unix:/path\", give each [[caller]] a token{certificates}, or write access.open = true if every \
             machine that can reach it may call"
        );
        reader.problem(place, key, message);
    }
}

/// What only shows when server, access and callers are looked at together.
fn judge_together(
    server_section: &Section<'_>,
    access_section: &Section<'_>,
    (server, access, callers): (&Server, &Access, &[Caller]),
) {
    if access.open
        && callers.is_empty()
        && !server.asks_for_certificates()
        && !server.listen.iter().all(ListenAddr::is_local)
    {
        access_section.warning("open", "lets every machine that can reach server.listen call as administrator");
    }
    if !callers.is_empty() && access_section.has("allow") {
        let message = "is for callers without a token, of whom there are none once a [[caller]] is listed";
        access_section.warning("allow", message);
    }
    if access.report_only && callers.is_empty() {
        access_section.warning("report_only", "lets every command through, whatever allow says");
    }
    let of_operators = server.admin_token.as_ref().map(BearerToken::digest);
    if of_operators.is_some_and(|digest| digest.find_in(callers.iter().map(|caller| &caller.token)).is_some()) {
        let key = if server_section.has(ADMIN_TOKEN.file) { ADMIN_TOKEN.file } else { ADMIN_TOKEN.env };
        let message = "names the token of a caller, who could then stop the gateway; give operators one of their own";
        server_section.problem(key, message);
    }
}

fn access(section: &mut Section<'_>) -> Access {
    let mut access = Access::default();
    if let Some(allow) = patterns(section, "allow") {
        if allow.is_empty() {
            section.warning("allow", "is empty, so every command is refused");
        }
        access.allow = allow;
    }
    section.read("report_only", &mut access.report_only, boolean);
    section.read("require_header", &mut access.require_header, boolean);
    section.read("open", &mut access.open, boolean);
    access
}

/// A list of patterns. One that matches no command of the built-in table is taken, with a warning:
/// the vendor may know commands that the table does not.
pub(super) fn patterns(section: &mut Section<'_>, key: &'static str) -> Option<Vec<CommandPattern>> {
    let patterns = section.list(key, false, 0..=1000, parsed::<CommandPattern>)?;
    for (pattern, place) in &patterns {
        if !KNOWN_COMMANDS.iter().any(|known| pattern.matches(known.name)) {
            section.warning_at(place, &section.path_of(key), unknown_command(&pattern.to_string()));
        }
    }
    Some(patterns.into_iter().map(|(pattern, _)| pattern).collect())
}

/// What to say about a command that the built-in table does not have.
pub(super) fn unknown_command(name: &str) -> String {
    let names: Vec<String> = KNOWN_COMMANDS
        .iter()
        .flat_map(|known| [known.name.to_string(), format!("{}/*", known.name.service())])
        .collect();
    let hint = closest(name, names.iter().map(String::as_str));
    let hint = hint.map(|meant| format!("; did you mean \"{meant}\"?")).unwrap_or_default();
    format!("names no command that chatgate knows{hint}")
}

fn cache(mut section: Section<'_>) -> Cache {
    let mut cache = Cache::default();
    section.read("ttl", &mut cache.ttl, duration(millis(0)..=hours(24)));
    section.read("max_pairs", &mut cache.max_pairs, count(1..=100_000_000));
    section.read("write_settle", &mut cache.write_settle, duration(millis(0)..=millis(300_000)));
    section.read("stale_if_error", &mut cache.stale_if_error, duration(millis(0)..=hours(24)));
    section.finish();
    cache
}

fn follow_check(mut section: Section<'_>) -> FollowCheck {
    let mut follow_check = FollowCheck::default();
    section.read("max_to", &mut follow_check.max_to, count(1..=10_000));
    section.read("flip", &mut follow_check.flip, boolean);
    section.finish();
    follow_check
}

fn upstream(mut section: Section<'_>) -> Upstream {
    let mut upstream = Upstream::default();
    let timeout = || duration(millis(10)..=millis(300_000));
    section.read("timeout", &mut upstream.timeout, timeout());
    section.read("attempt_timeout", &mut upstream.attempt_timeout, timeout());
    section.read("connect_timeout", &mut upstream.connect_timeout, timeout());
    section.read("max_answer", &mut upstream.max_answer, size(1 << 10..=64 << 20));
    section.read("max_in_flight", &mut upstream.max_in_flight, count(1..=10_000));
    section.read("connection_max_age", &mut upstream.connection_max_age, duration(millis(100)..=hours(24)));
    section.read("idle_timeout", &mut upstream.idle_timeout, duration(millis(100)..=hours(1)));
    // Who shortens the whole means its parts too, unless the parts were written.
    let (whole, part) = (upstream.timeout, &mut upstream.attempt_timeout);
    bound(&section, ("attempt_timeout", part), ("timeout", whole));
    let (whole, part) = (upstream.attempt_timeout, &mut upstream.connect_timeout);
    bound(&section, ("connect_timeout", part), ("attempt_timeout", whole));
    let mut attempts = upstream.attempts as usize;
    section.read("attempts", &mut attempts, count(1..=10));
    upstream.attempts = attempts as u32;
    section.read("retry_budget", &mut upstream.retry_budget, fraction(0.0..=1.0));
    section.finish();
    upstream
}

/// Keeps a part within the whole: a default shrinks, what was written is refused.
fn bound(section: &Section<'_>, (part_key, part): (&str, &mut Duration), (whole_key, whole): (&str, Duration)) {
    if *part <= whole {
        return;
    }
    if section.has(part_key) {
        let whole_text = show_duration(whole);
        section
            .problem(part_key, format_args!("is longer than upstream.{whole_key} ({whole_text}); write at most that"));
    }
    *part = whole;
}

fn log(mut section: Section<'_>) -> Log {
    let mut log = Log::default();
    section.read("format", &mut log.format, |node| match node.text() {
        Some("json") => Ok(LogFormat::Json),
        Some("text") => Ok(LogFormat::Text),
        _ => Err("must be \"json\" or \"text\"".to_owned()),
    });
    section.read("level", &mut log.level, |node| {
        let level = node.text().and_then(parse_level);
        level.ok_or_else(|| "must be \"error\", \"warn\", \"info\", \"debug\" or \"trace\"".to_owned())
    });
    section.read("requests", &mut log.requests, |node| match node.text() {
        Some("sampled") => Ok(LogRequests::Sampled),
        Some("all") => Ok(LogRequests::All),
        Some("off") => Ok(LogRequests::Off),
        _ => Err("must be \"sampled\", \"all\" or \"off\"".to_owned()),
    });
    section.finish();
    log
}

/// A level by its word.
pub(super) fn parse_level(word: &str) -> Option<tracing::Level> {
    match word {
        "error" => Some(tracing::Level::ERROR),
        "warn" => Some(tracing::Level::WARN),
        "info" => Some(tracing::Level::INFO),
        "debug" => Some(tracing::Level::DEBUG),
        "trace" => Some(tracing::Level::TRACE),
        _ => None,
    }
}

fn unix_mode(node: &Node) -> Reading<u32> {
    let digits =
        node.text().filter(|text| (3..=4).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit()));
    let mode = digits.and_then(|digits| u32::from_str_radix(digits, 8).ok());
    mode.filter(|mode| *mode <= 0o777).ok_or_else(|| "must be octal digits in quotes, \"000\" to \"0777\"".to_owned())
}

fn uid(node: &Node) -> Reading<u32> {
    let number = node.integer().and_then(|number| u32::try_from(number).ok());
    number.ok_or_else(|| "must be the number of a user, as `id -u` shows it, without quotes".to_owned())
}

fn host(node: &Node) -> Reading<String> {
    host_name(node.text().ok_or("must be a text in quotes")?).map_err(str::to_owned)
}

const fn millis(number: u64) -> Duration {
    Duration::from_millis(number)
}

const fn hours(number: u64) -> Duration {
    Duration::from_secs(number * 3600)
}
