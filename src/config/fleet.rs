//! `[fleet]`: state that replicas share through Redis.

use std::fmt;
use std::sync::Arc;

use redis::IntoConnectionInfo as _;
use rustls::ClientConfig;
use zeroize::Zeroizing;

use super::pem::{certified, read_cas, read_chain, read_key, read_named};
use super::section::{SecretNames, Section};
use super::tls::{client_config, read_certificate};
use super::tree::Node;
use super::units::{ParseResult, fraction, parsed, text};

/// `[fleet]`: the Redis through which replicas share quota, cached pairs, and invalidations.
#[derive(Debug, Clone, PartialEq)]
pub struct Fleet {
    /// URL of Redis or Valkey.
    pub redis: RedisUrl,
    /// TLS of the connection; `None`: plain TCP.
    pub tls: Option<FleetTls>,
    /// Prefix of all keys and of the channel. Default `chatgate`.
    pub prefix: String,
    /// Fraction of each quota that a disconnected replica uses, 0.01 to 1. Default 0.25.
    pub share: f64,
}

impl Fleet {
    /// Creates a fleet that trusts the public roots, if the URL has TLS.
    pub fn new(redis: RedisUrl, prefix: &str, share: f64) -> Self {
        let public = || client_config(&[], None).expect("the public roots are valid");
        let tls = redis.has_tls().then(|| FleetTls(Arc::new(public())));
        Self { redis, tls, prefix: prefix.to_owned(), share }
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

/// A URL of Redis, which may contain a password. It has no `Display`, `Debug` hides it, and it is wiped on drop.
#[derive(Clone, PartialEq, Eq)]
pub struct RedisUrl(Zeroizing<String>);

impl RedisUrl {
    /// Returns the URL, only for the code that connects.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Returns address and credentials, without TLS.
    ///
    /// # Errors
    /// If the client library cannot parse the URL.
    pub fn connection_info(&self) -> redis::RedisResult<redis::ConnectionInfo> {
        connection_info(&self.0)
    }

    /// Returns whether the connection uses TLS.
    pub fn has_tls(&self) -> bool {
        self.0.starts_with("rediss://")
    }
}

impl fmt::Debug for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RedisUrl(hidden)")
    }
}

impl std::str::FromStr for RedisUrl {
    type Err = &'static str;

    fn from_str(url: &str) -> Result<Self, Self::Err> {
        let host = url.strip_prefix("redis://").or_else(|| url.strip_prefix("rediss://"));
        let has_host = host.is_some_and(|rest| !rest.is_empty() && rest.len() <= URL_LEN_MAX);
        // The client library parses it here already, so that an invalid URL is a configuration problem.
        if !has_host || connection_info(url).is_err() {
            return Err("not a Redis URL; use \"redis://HOST:PORT\" or \"rediss://HOST:PORT\"");
        }
        if url.contains('#') {
            return Err("must not contain '#'; certificate verification cannot be turned off");
        }
        Ok(Self(Zeroizing::new(url.to_owned())))
    }
}

/// Parses a URL as if it had no TLS, because chatgate makes the TLS connection and not the client library.
fn connection_info(url: &str) -> redis::RedisResult<redis::ConnectionInfo> {
    let plain = Zeroizing::new(url.replacen("rediss://", "redis://", 1));
    plain.as_str().into_connection_info()
}

/// Default of `fleet.prefix`.
pub const PREFIX_DEFAULT: &str = "chatgate";
/// Default of `fleet.share`.
pub const SHARE_DEFAULT: f64 = 0.25;
/// Maximum length of the URL in bytes.
const URL_LEN_MAX: usize = 4096;
/// Maximum length of the prefix in bytes.
const PREFIX_LEN_MAX: usize = 64;
const CA: &str = "ca_file";
const CERT: &str = "cert_file";
const KEY: &str = "key_file";
const URL: SecretNames = SecretNames { inline: "url", file: "url_file", env: "url_env" };

impl Fleet {
    /// Reads the section if it is present.
    pub(super) fn read(root: &mut Section<'_>) -> Option<Self> {
        let is_present = root.has("fleet");
        let mut section = root.section("fleet");
        let redis = read_url(&mut section, is_present);
        let (mut prefix, mut share) = (PREFIX_DEFAULT.to_owned(), SHARE_DEFAULT);
        section.read("prefix", &mut prefix, parse_prefix);
        section.read("share", &mut share, fraction(0.01..=1.0));
        let tls = read_tls(&mut section, redis.as_ref());
        section.finish();
        Some(Self { tls, redis: redis?, prefix, share })
    }
}

/// Reads the URL from `redis`, or from the file or variable that holds a URL with a password.
fn read_url(section: &mut Section<'_>, is_present: bool) -> Option<RedisUrl> {
    let inline = section.optional("redis", |node| {
        if text(node)?.contains('@') {
            return Err("must not contain a password; put the whole URL into a file and set url_file".to_owned());
        }
        parsed::<RedisUrl>(node)
    });
    let secret = section.secret(&URL, false).and_then(|secret| {
        let url = secret.expose().parse::<RedisUrl>();
        url.map_err(|message| section.wrong_value(URL.present_in(section), message)).ok()
    });
    let has_secret = section.has(URL.file) || section.has(URL.env);
    if section.has("redis") && has_secret {
        section.problem("redis", "conflicts with url_file or url_env; set only one of them");
    } else if is_present && !section.has("redis") && !has_secret && !section.has(URL.inline) {
        section.problem("redis", "missing; set redis = \"redis://HOST:PORT\", or url_file for a URL with a password");
    }
    inline.or(secret)
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
fn read_tls(section: &mut Section<'_>, redis: Option<&RedisUrl>) -> Option<FleetTls> {
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
