//! `[fleet]`: state that replicas share through Redis.

use std::fmt;
use std::sync::Arc;

use rustls::ClientConfig;
use zeroize::Zeroizing;

use super::pem::{certified, read_cas, read_chain, read_key, read_named};
use super::redis_form::{RedisForm, RedisLogin, RedisUrl};
use super::section::{SecretNames, Section};
use super::tls::{client_config, read_certificate};
use super::tree::Node;
use super::units::{ParseResult, fraction, parsed, text};

/// `[fleet]`: the Redis through which replicas share quota, cached pairs, and invalidations.
#[derive(Debug, Clone, PartialEq)]
pub struct Fleet {
    /// The form and the addresses of Redis or Valkey.
    pub redis: RedisForm,
    /// The login at Redis, in addition to what a URL contains.
    pub login: RedisLogin,
    /// TLS of all connections; `None`: plain TCP.
    pub tls: Option<FleetTls>,
    /// Prefix of all keys and of the channel. Default `chatgate`.
    pub prefix: String,
    /// Fraction of each quota that a disconnected replica uses, 0.01 to 1. Default 0.25.
    pub share: f64,
}

impl Fleet {
    /// Creates a fleet that trusts the public roots, if its URLs have TLS.
    pub fn new(redis: RedisForm, prefix: &str, share: f64) -> Self {
        let public = || client_config(&[], None).expect("the public roots are valid");
        let tls = redis.has_tls().then(|| FleetTls(Arc::new(public())));
        Self { redis, login: RedisLogin::default(), tls, prefix: prefix.to_owned(), share }
    }
}

/// TLS of the connection to Redis: trusted roots and the client certificate. `Debug` shows no key.
#[derive(Clone)]
pub struct FleetTls(pub Arc<ClientConfig>);

impl fmt::Debug for FleetTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FleetTls").field("shows_certificate", &self.0.client_auth_cert_resolver.has_certs()).finish()
    }
}

impl PartialEq for FleetTls {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

/// Default of `fleet.prefix`.
pub const PREFIX_DEFAULT: &str = "chatgate";
/// Default of `fleet.share`.
pub const SHARE_DEFAULT: f64 = 0.25;
/// Maximum number of sentinels, and of listed nodes of a Redis Cluster.
const URLS_MAX: usize = 16;
/// Maximum length of names in bytes: of the primary at its sentinels, and of users.
const NAME_LEN_MAX: usize = 128;
/// Maximum length of the prefix in bytes.
const PREFIX_LEN_MAX: usize = 64;
const CA: &str = "ca_file";
const CERT: &str = "cert_file";
const KEY: &str = "key_file";
const REDIS: &str = "redis";
const SENTINELS: &str = "sentinels";
const MASTER: &str = "master";
const URL: SecretNames = SecretNames { inline: "url", file: "url_file", env: "url_env" };
const PASSWORD: SecretNames = SecretNames { inline: "password", file: "password_file", env: "password_env" };
const SENTINEL_PASSWORD: SecretNames =
    SecretNames { inline: "sentinel_password", file: "sentinel_password_file", env: "sentinel_password_env" };

impl Fleet {
    /// Reads the section if it is present.
    pub(super) fn read(root: &mut Section<'_>) -> Option<Self> {
        let is_present = root.has("fleet");
        let mut section = root.section("fleet");
        let redis = read_form(&mut section, is_present);
        let login = read_login(&mut section, "username", &PASSWORD);
        if login.password.is_some() && matches!(&redis, Some(RedisForm::Primary(url)) if url.has_password()) {
            section
                .problem(PASSWORD.present_in(&section), "conflicts with the password in the URL; set only one of them");
        }
        let (mut prefix, mut share) = (PREFIX_DEFAULT.to_owned(), SHARE_DEFAULT);
        section.read("prefix", &mut prefix, parse_prefix);
        section.read("share", &mut share, fraction(0.01..=1.0));
        let tls = read_tls(&mut section, redis.as_ref());
        section.finish();
        Some(Self { tls, redis: redis?, login, prefix, share })
    }
}

/// Reads the form of Redis from the keys that are set: `sentinels` and `master`, or `redis`, or a URL with a password.
fn read_form(section: &mut Section<'_>, is_present: bool) -> Option<RedisForm> {
    let sentinels = read_sentinels(section);
    let form = match section.is_list(REDIS) {
        true => read_urls(section, REDIS).map(RedisForm::Cluster),
        false => section.optional(REDIS, parse_url).map(RedisForm::Primary),
    };
    let secret = section.secret(&URL, false).and_then(|secret| {
        let url = secret.expose().parse::<RedisUrl>();
        url.map_err(|message| section.wrong_value(URL.present_in(section), message)).ok()
    });
    let has_secret = section.has(URL.file) || section.has(URL.env);
    if section.has(REDIS) && has_secret {
        section.problem(REDIS, "conflicts with url_file or url_env; set only one of them");
    } else if section.has(SENTINELS) && (section.has(REDIS) || has_secret) {
        section.problem(SENTINELS, "conflicts with redis, url_file, or url_env; set only one of them");
    } else if is_present && ![REDIS, SENTINELS, URL.inline].iter().any(|key| section.has(key)) && !has_secret {
        section.problem(
            REDIS,
            "missing; set redis = \"redis://HOST:PORT\", url_file for a URL with a password, a list for a Redis \
             Cluster, or sentinels",
        );
    }
    sentinels.or(form).or(secret.map(RedisForm::Primary))
}

/// Reads `sentinels` with `master`, and the login at the sentinels.
fn read_sentinels(section: &mut Section<'_>) -> Option<RedisForm> {
    let is_present = section.has(SENTINELS);
    let sentinels = read_urls(section, SENTINELS);
    let master = section.optional(MASTER, parse_name);
    let login = read_login(section, "sentinel_username", &SENTINEL_PASSWORD);
    let with_sentinels = [MASTER, SENTINEL_PASSWORD.file, SENTINEL_PASSWORD.env, "sentinel_username"];
    if is_present && !section.has(MASTER) {
        section.problem(MASTER, "missing; set master to the name that the sentinels monitor");
    } else if let Some(key) = with_sentinels.into_iter().find(|key| !is_present && section.has(key)) {
        section.problem(key, "requires sentinels; set sentinels = [\"redis://HOST:PORT\", ...], or remove this key");
    }
    Some(RedisForm::Sentinel { sentinels: sentinels?, master: master?, login })
}

/// Reads a list of URLs without passwords and databases, with one scheme.
fn read_urls(section: &mut Section<'_>, key: &'static str) -> Option<Vec<RedisUrl>> {
    let parse = |node: &Node| {
        let url = parse_url(node)?;
        url.is_bare().then_some(url).ok_or_else(|| "must be only \"redis://HOST:PORT\" in a list".to_owned())
    };
    let urls: Vec<RedisUrl> = section.list(key, false, 1..=URLS_MAX, parse)?.into_iter().map(|(url, _)| url).collect();
    if urls.iter().any(|url| url.has_tls() != urls[0].has_tls()) {
        section.problem(key, "must have one scheme for all; use either redis:// or rediss://");
        return None;
    }
    (!urls.is_empty()).then_some(urls)
}

fn read_login(section: &mut Section<'_>, username: &'static str, password: &SecretNames) -> RedisLogin {
    let secret = section.secret(password, false).map(|secret| Zeroizing::new(secret.expose().to_owned()));
    if section.has(username) && !section.has(password.file) && !section.has(password.env) {
        section.problem(username, format_args!("requires a password; set {} or {}", password.file, password.env));
    }
    RedisLogin { username: section.optional(username, parse_name), password: secret }
}

fn parse_url(node: &Node) -> ParseResult<RedisUrl> {
    if text(node)?.contains('@') {
        return Err("must not contain a password; put the whole URL into a file and set url_file".to_owned());
    }
    parsed::<RedisUrl>(node)
}

fn parse_name(node: &Node) -> ParseResult<String> {
    let name = text(node)?;
    let is_valid = (1..=NAME_LEN_MAX).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_graphic());
    is_valid.then_some(name).ok_or_else(|| "must be 1 to 128 visible ASCII characters".to_owned())
}

fn parse_prefix(node: &Node) -> ParseResult<String> {
    let prefix = text(node)?;
    let is_valid = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte);
    if prefix.len() <= PREFIX_LEN_MAX && prefix.bytes().all(is_valid) {
        Ok(prefix)
    } else {
        Err("must be 1 to 64 characters from a-z, A-Z, 0-9, and \"-_.:\"".to_owned())
    }
}

/// Reads trusted roots and client certificate. Problems of the files are noted even if the URL is invalid.
fn read_tls(section: &mut Section<'_>, redis: Option<&RedisForm>) -> Option<FleetTls> {
    let has_client_cert = section.has(CERT) || section.has(KEY);
    let extra_roots = read_named(section, CA, false, read_cas);
    let chain = read_named(section, CERT, has_client_cert, read_chain);
    let key = read_named(section, KEY, has_client_cert, read_key);
    if let Some((_, Some(warning))) = &key {
        section.warning(KEY, section.with_value(KEY, warning));
    }
    if let Some(first) = chain.as_ref().and_then(|chain| chain.first()) {
        let _ = read_certificate(section, first, "Redis rejects it");
    }
    if !redis?.has_tls() {
        if let Some(key) = [CA, CERT, KEY].into_iter().find(|key| section.has(key)) {
            section
                .wrong_value(key, "requires TLS, but the URL begins with redis://; use rediss://, or remove this key");
        }
        return None;
    }
    let client_cert = chain.zip(key).and_then(|(chain, (key, _))| {
        certified(chain, &key).map_err(|error| section.wrong_value(error.key, error.message)).ok()
    });
    let config = client_config(&extra_roots.unwrap_or_default(), client_cert).map_err(|error| {
        section.wrong_value(CA, format_args!("cannot use a certificate in the file ({error}); replace it"))
    });
    Some(FleetTls(Arc::new(config.ok()?)))
}
