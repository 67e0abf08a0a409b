//! The configuration: what an operator may say, read once and checked whole.
//!
//! ```text
//! file ──> tree (values and their places) ──> environment laid over it ──> Config
//! ```
//!
//! Every problem is found in one reading and reported with file, line and key; nothing that is written is
//! ignored. Past this module there are only checked values: no text that is still to be parsed, no number
//! out of bounds, no name that means nothing. `config/chatgate.toml` explains every key.

mod address;
mod apps;
mod build;
mod callers;
mod fleet;
mod overlay;
mod problem;
mod quota;
mod secret;
mod section;
mod source;
mod suggest;
mod tls;
mod trace;
mod tree;
mod units;
mod webhook;

use std::path::Path;
use std::time::Duration;

use rustls::pki_types::CertificateDer;

pub use self::address::{Endpoint, EndpointError, ListenAddr, ListenError, UNIX_PATH_LEN_MAX};
pub use self::callers::{CALLERS_MAX, Caller};
pub use self::fleet::{Fleet, FleetTls, PREFIX_DEFAULT, RedisUrl, SHARE_DEFAULT};
pub use self::overlay::{Env, PREFIX};
pub use self::problem::{Problem, Problems};
pub use self::quota::{Quota, lower_limit};
pub use self::secret::{CA_LEN_MAX, Remark, SECRET_LEN_MAX, SecretError, SecretText, read_secret_file};
pub use self::source::{NamedFile, Source};
pub use self::tls::{Certificate, Tls, client_config};
pub use self::trace::{ATTRIBUTES_MAX, SAMPLE_DEFAULT, Trace};
pub use self::units::{RATE_MAX, parse_duration, parse_rate, parse_size, show_duration, show_size};
pub use self::webhook::Webhook;
use crate::domain::caller::BearerToken;
use crate::domain::chat::app::{AppName, Identifier, SdkAppId, SecretKey};
use crate::domain::chat::command::{CommandPattern, FOLLOW_CHECK};
use crate::domain::chat::region::Region;

/// Where the configuration is looked for if nobody says where.
pub const PATH_DEFAULT: &str = "/etc/chatgate/chatgate.toml";

/// Largest configuration file. One with hundreds of apps has under 100 KiB.
pub const FILE_LEN_MAX: usize = 1024 * 1024;

/// Most apps of one gateway. Each has a cache, a quota and a pool of connections of its own.
pub const APPS_MAX: usize = 256;

/// Reads the configuration and every file it names, with the environment laid over it.
///
/// # Errors
/// Every problem there is, never none.
pub fn load(path: &Path, env: &Env) -> Result<Config, Problems> {
    build::load(path, env)
}

/// A level of the log by its word: `error` to `trace`, in lower case.
pub fn parse_level(word: &str) -> Option<tracing::Level> {
    build::parse_level(word)
}

/// Reads every file that this text names, as if it stood in the file at `path`.
///
/// # Errors
/// As [`load`].
pub fn load_text(path: &Path, text: String, env: &Env) -> Result<Config, Problems> {
    build::load_text(path, text, env)
}

/// Everything an operator may say. `Debug` shows no secret.
#[derive(Debug, Clone)]
pub struct Config {
    /// Listeners and what they bear.
    pub server: Server,
    /// The apps that calls are made for: at least one, at most [`APPS_MAX`], no two of one name or number.
    pub apps: Vec<App>,
    /// What callers may do.
    pub access: Access,
    /// Callers with a token: at most [`CALLERS_MAX`], no two of one name or token. Without any, nobody
    /// is asked who they are.
    pub callers: Vec<Caller>,
    /// How long pairs are remembered.
    pub cache: Cache,
    /// How `follow/follow_check` is answered.
    pub follow_check: FollowCheck,
    /// Calls to Chat.
    pub upstream: Upstream,
    /// Events from Chat; `None`: none are taken.
    pub webhook: Option<Webhook>,
    /// What is shared with other replicas; `None`: there are none.
    pub fleet: Option<Fleet>,
    /// What is logged.
    pub log: Log,
    /// Where traces go; `None`: there are none.
    pub trace: Option<Trace>,
    /// What is doubtful but no reason to refuse.
    pub warnings: Vec<Problem>,
    /// What it was read from.
    pub source: Source,
}

impl Config {
    /// Refuses listeners that other machines reach where nobody is asked who they are and that is not
    /// said to be meant: for a configuration whose listeners were put in place of those it was read with.
    ///
    /// # Errors
    /// A problem for each of them.
    pub fn refuse_open_listeners(&self) -> Result<(), Problems> {
        let asks_callers = !self.callers.is_empty();
        let asks = asks_callers || self.server.asks_for_certificates();
        let admin_asks = asks_callers || self.server.admin_token.is_some();
        let data = self.server.listen.iter().map(|address| ("server.listen", address, asks));
        let all = data.chain([("server.admin", &self.server.admin, admin_asks)]);
        let open = all.filter(|(_, address, asks)| !self.access.open && !asks && !address.is_local());
        let problem = |(key, ..): (&str, &ListenAddr, bool)| Problem {
            file: String::new(),
            line: None,
            column: None,
            key: key.to_owned(),
            message: "other machines reach the address that it has until a restart, and nobody would be asked who \
                      they are; restart, or give each [[caller]] a token"
                .to_owned(),
        };
        Problems::of(open.map(problem).collect()).map_or(Ok(()), Err)
    }

    /// The app of calls that name none: the only one, or the one marked as default.
    pub fn default_app(&self) -> Option<&App> {
        match self.apps.as_slice() {
            [only] => Some(only),
            apps => apps.iter().find(|app| app.default),
        }
    }
}

/// `[server]`: listeners and what they bear.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// Where callers come: 1 to 16 addresses. Default 127.0.0.1:8700.
    pub listen: Vec<ListenAddr>,
    /// Where operators come. Default 127.0.0.1:8701.
    pub admin: ListenAddr,
    /// Mode of the Unix sockets, 0 to 0o777. Default 0o660.
    pub unix_mode: u32,
    /// Users whose processes may call over a Unix socket, at most 100; empty: all that its mode lets in.
    pub unix_uids: Vec<u32>,
    /// What operators must send with an order; `None`: orders are taken from this machine only.
    pub admin_token: Option<BearerToken>,
    /// Names accepted in `Host` beside loopback names and the listen addresses: lower case, no port,
    /// IPv6 in brackets. At most 100.
    pub hosts: Vec<String>,
    /// Largest body of a request in bytes, 1 KiB to 64 MiB. Default 1 MiB.
    pub max_body: usize,
    /// Connections at one time, 1 to 1,000,000; further ones are closed. Default 4096.
    pub max_connections: usize,
    /// Requests worked on at one time, 1 to 1,000,000. Default 2048.
    pub max_requests: usize,
    /// Bytes of bodies and answers held at one time, 1 KiB to 64 GiB. Default 256 MiB.
    pub max_buffered: usize,
    /// For a TLS handshake, 10 ms to 1 h. Default 10 s.
    pub handshake_timeout: Duration,
    /// For the head of a request, 10 ms to 1 h. Default 10 s.
    pub head_timeout: Duration,
    /// For the whole body of a request, 10 ms to 1 h. Default 30 s.
    pub body_timeout: Duration,
    /// For a caller to take its answer, 10 ms to 1 h. Default 30 s.
    pub write_timeout: Duration,
    /// How long a connection may stand without a request, 10 ms to 24 h. Default 75 s.
    pub idle_timeout: Duration,
    /// After SIGTERM go on as usual for so long, up to 1 h. Default 0.
    pub drain_delay: Duration,
    /// Then finish what is there for at most so long, up to 1 h. Default 25 s.
    pub drain_timeout: Duration,
    /// Whether `Chatgate-Explain` is answered. Default false.
    pub explain: bool,
    /// TLS of the TCP listeners of `listen`; `None`: they are plain.
    pub tls: Option<Tls>,
}

impl Server {
    /// Whether callers over TCP must show a certificate.
    pub fn asks_for_certificates(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.asks_callers)
    }
}

impl Default for Server {
    fn default() -> Self {
        let loopback = |port| ListenAddr::Tcp(([127, 0, 0, 1], port).into());
        Self {
            listen: vec![loopback(8700)],
            admin: loopback(8701),
            unix_mode: 0o660,
            unix_uids: Vec::new(),
            admin_token: None,
            hosts: Vec::new(),
            max_body: 1 << 20,
            max_connections: 4096,
            max_requests: 2048,
            max_buffered: 256 << 20,
            handshake_timeout: Duration::from_secs(10),
            head_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_secs(30),
            write_timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_secs(75),
            drain_delay: Duration::ZERO,
            drain_timeout: Duration::from_secs(25),
            explain: false,
            tls: None,
        }
    }
}

/// `[[app]]`: an app of Chat and who signs for it.
#[derive(Debug, Clone)]
pub struct App {
    /// What callers and metrics call it.
    pub name: AppName,
    /// Its number.
    pub sdkappid: SdkAppId,
    /// Its data centre. If `endpoint` was written and `region` was not, this is [`Region::Singapore`]
    /// and means nothing.
    pub region: Region,
    /// Where its calls go.
    pub endpoint: Endpoint,
    /// Where they go while the endpoint cannot be reached. Default: the region's second domain, `None` if
    /// the endpoint was written.
    pub standby: Option<Endpoint>,
    /// Certificates trusted for this app beside the public roots.
    pub extra_roots: Vec<CertificateDer<'static>>,
    /// The administrator that signs. Default `administrator`.
    pub identifier: Identifier,
    /// The app's key.
    pub secret_key: SecretKey,
    /// How long a signature is good: whole seconds, 10 s to 180 days. Default 24 h.
    pub usersig_lifetime: Duration,
    /// Whether calls that name no app are for this one.
    pub default: bool,
    /// Its calls a second.
    pub quota: Quota,
}

/// `[access]`: what callers may do. The gateway signs as administrator, so what is not allowed is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Access {
    /// Commands that callers without a token may use, at most 1000 patterns. Default `follow/follow_check` alone.
    pub allow: Vec<CommandPattern>,
    /// Whether commands that are not allowed are let through and logged. Default false.
    pub report_only: bool,
    /// Whether every data request must carry `Chatgate: 1`. Default false.
    pub require_header: bool,
    /// Whether listeners that other machines reach are meant, though nobody is asked who they are.
    /// Default false.
    pub open: bool,
}

impl Default for Access {
    fn default() -> Self {
        Self { allow: allow_default(), report_only: false, require_header: false, open: false }
    }
}

/// What is allowed where nothing else is said.
fn allow_default() -> Vec<CommandPattern> {
    vec![CommandPattern::One(FOLLOW_CHECK.service().into(), FOLLOW_CHECK.command().into())]
}

/// `[cache]`: how long pairs are remembered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cache {
    /// How old a pair may be that answers, 0 (never) to 24 h. Default 30 s.
    pub ttl: Duration,
    /// Pairs kept for each app, 1 to 100,000,000. Default 1,000,000.
    pub max_pairs: usize,
    /// For so long past its ttl a pair may answer while Chat fails or quota is out, up to 24 h. Default 0.
    pub stale_if_error: Duration,
    /// For so long after a relayed write answers about its pairs are not kept, up to 5 min. Default 1 s.
    pub write_settle: Duration,
}

impl Default for Cache {
    fn default() -> Self {
        Self {
            ttl: Duration::from_secs(30),
            max_pairs: 1_000_000,
            stale_if_error: Duration::ZERO,
            write_settle: Duration::from_secs(1),
        }
    }
}

/// `[follow_check]`: how it is answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FollowCheck {
    /// Most accounts of one request, 1 to 10,000. Default 1000.
    pub max_to: usize,
    /// Whether pairs may be asked for from their other side. Default true.
    pub flip: bool,
}

impl Default for FollowCheck {
    fn default() -> Self {
        Self { max_to: 1000, flip: true }
    }
}

/// `[upstream]`: calls to Chat.
#[derive(Debug, Clone, PartialEq)]
pub struct Upstream {
    /// For one caller's request, waits and attempts together, 10 ms to 5 min. Default 5 s.
    pub timeout: Duration,
    /// For one attempt, 10 ms to `timeout`. Default 3.5 s (or `timeout`), as upstream's own is 3 s.
    pub attempt_timeout: Duration,
    /// For a connection with its TLS handshake, 10 ms to `attempt_timeout`. Default 1 s (or `attempt_timeout`).
    pub connect_timeout: Duration,
    /// How often one call may be sent, the first time included, 1 to 10. Default 3.
    pub attempts: u32,
    /// How many further attempts a call may cost on average, 0 to 1. Default 0.1.
    pub retry_budget: f64,
    /// Largest answer in bytes, 1 KiB to 64 MiB. Default 8 MiB.
    pub max_answer: usize,
    /// Calls under way at one time for each app, 1 to 10,000. Default 64.
    pub max_in_flight: usize,
    /// How old a connection may get, so that changes of DNS are followed: 100 ms to 24 h. Default 5 min.
    pub connection_max_age: Duration,
    /// How long a connection is kept without a call, 100 ms to 1 h. Default 50 s.
    pub idle_timeout: Duration,
}

impl Default for Upstream {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(5),
            attempt_timeout: Duration::from_millis(3500),
            connect_timeout: Duration::from_secs(1),
            attempts: 3,
            retry_budget: 0.1,
            max_answer: 8 << 20,
            max_in_flight: 64,
            connection_max_age: Duration::from_secs(300),
            idle_timeout: Duration::from_secs(50),
        }
    }
}

/// `[log]`: what is logged, on stderr.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    /// Default JSON.
    pub format: LogFormat,
    /// The least important events that are logged. Default info.
    pub level: tracing::Level,
    /// Which requests are logged. Default sampled.
    pub requests: LogRequests,
}

impl Default for Log {
    fn default() -> Self {
        Self { format: LogFormat::Json, level: tracing::Level::INFO, requests: LogRequests::Sampled }
    }
}

/// Which requests have a line in the log. Failures of chatgate or of what is behind it always have one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogRequests {
    /// A few each second.
    Sampled,
    /// Every one.
    All,
    /// None.
    Off,
}

impl LogRequests {
    /// Its word in the configuration.
    pub const fn word(self) -> &'static str {
        match self {
            LogRequests::Sampled => "sampled",
            LogRequests::All => "all",
            LogRequests::Off => "off",
        }
    }
}

/// How an event is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// One line for people.
    Text,
}

#[cfg(test)]
mod tests;
