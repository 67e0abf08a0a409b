//! The configuration: read once, validated as a whole.
//!
//! ```text
//! file ──> tree (values with their locations) ──> overrides of the environment ──> sections ──> Config
//! ```
//!
//! One load finds all problems and reports each with file, line, and key. Unknown keys are problems too. The rest of
//! the program receives only validated values: no unparsed strings, no numbers out of range, no unknown names.
//!
//! Each section of the file has a module with its type, its defaults, and its parser. `config/chatgate.toml` explains
//! every key.

mod access;
mod address;
mod app;
mod cache;
mod caller;
mod exposure;
mod fleet;
mod forward;
mod log;
mod no_proxy;
mod overlay;
mod pem;
mod problem;
mod proxy;
mod quota;
mod redis_form;
mod relation;
mod secret;
mod section;
mod server;
mod source;
mod suggest;
mod tls;
mod trace;
mod tree;
mod units;
mod upstream;
mod webhook;

use std::fs::File;
use std::io::Read;
use std::path::Path;

pub use self::access::Access;
pub use self::address::{Endpoint, EndpointError, ListenAddr, ListenError};
pub use self::app::{APPS_MAX, App};
pub(crate) use self::app::{USERSIG_LIFETIME_DEFAULT, USERSIG_LIFETIME_MAX};
pub use self::cache::Cache;
pub use self::caller::{CALLERS_MAX, Caller, TOKENS_MAX};
pub use self::fleet::{Fleet, FleetTls, PREFIX_DEFAULT, SHARE_DEFAULT};
pub use self::forward::{ForwardTarget, ForwardTargetError};
pub use self::log::{Log, LogFormat, LogRequests, parse_level};
pub use self::no_proxy::Bypass;
pub use self::overlay::{Env, PREFIX};
pub use self::problem::{Problem, Problems};
pub use self::proxy::{Proxy, ProxyAuth, ProxyProtocol};
pub use self::quota::{Quota, lower_limit};
pub use self::redis_form::{RedisForm, RedisLogin, RedisUrl};
pub use self::relation::Relation;
pub(crate) use self::secret::PEM_KEY;
pub use self::secret::{SecretError, SecretText, SecretWarning, read_secret_file};
pub(crate) use self::section::quoted_path;
pub use self::server::Server;
pub use self::source::{NamedFile, Source};
pub use self::tls::{Certificate, Tls, client_config};
pub use self::trace::{ATTRIBUTES_MAX, HEADERS_MAX, OtlpUrl, SAMPLE_DEFAULT, TRACES_PATH, Trace};
pub use self::units::{parse_duration, parse_rate, parse_size, show_duration, show_size};
pub use self::upstream::Upstream;
pub use self::webhook::Webhook;

use self::caller::Listeners;
use self::exposure::Authentication;
use self::overlay::apply_overrides;
use self::problem::{NOT_UTF8, sort_by_place};
use self::section::{Findings, LoadContext, Section, shown_path};
use self::server::ServerReading;
use self::tree::{Table, parse};

/// Default path of the configuration file.
pub const PATH_DEFAULT: &str = "/etc/chatgate/chatgate.toml";

/// Maximum size of the configuration file in bytes. A file with hundreds of apps has less than 100 KiB.
const FILE_LEN_MAX: usize = 1024 * 1024;

/// The whole configuration. `Debug` shows no secret.
#[derive(Debug, Clone)]
pub struct Config {
    /// Listeners and their limits.
    pub server: Server,
    /// Apps that calls are made for: 1 to [`APPS_MAX`], with unique names and SDKAppIDs.
    pub apps: Vec<App>,
    /// Permissions if no callers are configured.
    pub access: Access,
    /// Callers: up to [`CALLERS_MAX`], with unique names and proofs of identity. If empty, requests are not
    /// authenticated.
    pub callers: Vec<Caller>,
    /// Cache of pairs.
    pub cache: Cache,
    /// Checks of relations.
    pub relation: Relation,
    /// Calls to Chat.
    pub upstream: Upstream,
    /// Listener for webhooks from Chat; `None`: disabled.
    pub webhook: Option<Webhook>,
    /// State shared with other replicas; `None`: a single replica.
    pub fleet: Option<Fleet>,
    /// Logging.
    pub log: Log,
    /// Export of traces; `None`: disabled.
    pub trace: Option<Trace>,
    /// Suspicious settings that are accepted.
    pub warnings: Vec<Problem>,
    /// Text and files that the configuration was read from.
    pub source: Source,
}

impl Config {
    /// Returns the app for requests that name none: the only app, or the one with `default = true`.
    pub fn default_app(&self) -> Option<&App> {
        match self.apps.as_slice() {
            [only] => Some(only),
            apps => apps.iter().find(|app| app.default),
        }
    }
}

/// Reads the configuration and every file it names, and applies the overrides of the environment.
///
/// # Errors
/// All problems, at least one.
pub fn load(path: &Path, env: &Env) -> Result<Config, Problems> {
    load_text(path, read_file(path)?, env)
}

/// Reads a configuration from text, as if it were the content of the file at `path`.
///
/// # Errors
/// As [`load`].
pub fn load_text(path: &Path, text: String, env: &Env) -> Result<Config, Problems> {
    let context = LoadContext::new(path, env);
    let mut table = parse(context.file(), &text).map_err(Problems::one)?;
    apply_overrides(&mut table, env, &context);
    let config = read_sections(&context, &table);
    let Findings { problems, mut warnings, files } = context.into_findings();
    sort_by_place(&mut warnings);
    match Problems::of(problems) {
        Some(problems) => Err(problems),
        None => Ok(Config { warnings, source: Source { text, files }, ..config }),
    }
}

/// Reads the text of the configuration file.
fn read_file(path: &Path) -> Result<String, Problems> {
    let problem = |line, message| {
        Problems::one(Problem { file: shown_path(path), line, column: None, key: String::new(), message })
    };
    let read = || {
        let mut bytes = Vec::new();
        File::open(path)?.take(FILE_LEN_MAX as u64 + 1).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().map_err(|error: std::io::Error| {
        let remedy = if path == Path::new(PATH_DEFAULT) {
            "set --config, or create one with `chatgate init`"
        } else {
            "check its path and permissions"
        };
        problem(None, format!("cannot read the file: {error}; {remedy}"))
    })?;
    if bytes.len() > FILE_LEN_MAX {
        return Err(problem(None, "larger than 1 MiB; check that it is a chatgate configuration".to_owned()));
    }
    String::from_utf8(bytes).map_err(|error| {
        let valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = valid.iter().filter(|byte| **byte == b'\n').count() + 1;
        problem(Some(line), NOT_UTF8.to_owned())
    })
}

/// Reads all sections. Invalid values are replaced by their defaults; the result is only used if there are no problems.
fn read_sections(context: &LoadContext<'_>, table: &Table) -> Config {
    let mut root = Section::root(context, table);
    let mut server_section = root.section("server");
    let ServerReading { server, listen_locations, requires_client_cert } = Server::read(&mut server_section);
    let (apps, app_names) = app::read_apps(&mut root);
    let mut access_section = root.section("access");
    let access = Access::read(&mut access_section);
    let cache = Cache::read(root.section("cache"));
    let relation = Relation::read(&mut root);
    let upstream = Upstream::read(root.section("upstream"));
    let log = Log::read(root.section("log"));
    let webhook = Webhook::read(&mut root, &app_names, &server);
    let fleet = Fleet::read(&mut root);
    let listeners = Listeners { server: &server, requires_client_cert };
    let callers = caller::read_callers(&mut root, &app_names, &apps, &access, &listeners);
    let trace = Trace::read(context, &mut root);
    if !access.open {
        // Present but invalid settings count, so that one mistake has one problem.
        let authentication = Authentication {
            callers: root.has("caller"),
            client_certs: requires_client_cert,
            admin_token: server.admin_token.is_some(),
        };
        exposure::check_listeners(&server_section, &server, &listen_locations, authentication);
    }
    access.check_with(&access_section, &server, &callers);
    server.check_with(&server_section, &callers);
    access_section.finish();
    server_section.finish();
    root.check_variables();
    root.finish();
    Config {
        server,
        apps,
        access,
        callers,
        cache,
        relation,
        upstream,
        webhook,
        fleet,
        log,
        trace,
        warnings: Vec::new(),
        source: Source::default(),
    }
}

#[cfg(test)]
#[path = "../../tests/unit/config/mod.rs"]
mod tests;
