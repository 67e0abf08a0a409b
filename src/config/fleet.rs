//! `[fleet]`: what replicas share.

use std::fmt;
use std::sync::Arc;

use redis::IntoConnectionInfo as _;
use rustls::ClientConfig;
use zeroize::Zeroizing;

use super::secret::read_ca_file;
use super::section::{SecretNames, Section};
use super::tls::{certificate, certified, client_config, file, read_chain, read_key};
use super::units::{fraction, parsed, text};

/// `[fleet]`: where replicas share quota, facts and evictions, and what one does alone.
#[derive(Debug, Clone, PartialEq)]
pub struct Fleet {
    /// Redis or Valkey.
    pub redis: RedisUrl,
    /// How it is spoken to; `None`: in the clear.
    pub tls: Option<FleetTls>,
    /// What the names of all keys and of the channel begin with. Default `chatgate`.
    pub prefix: String,
    /// The part of each quota that a replica uses while Redis is away, 0.01 to 1. Default 0.25.
    pub share: f64,
}

impl Fleet {
    /// With the public roots, if the address has TLS.
    pub fn new(redis: RedisUrl, prefix: &str, share: f64) -> Self {
        let public = || client_config(&[], None).expect("nothing is added to the public roots");
        let tls = redis.has_tls().then(|| FleetTls(Arc::new(public())));
        Self { redis, tls, prefix: prefix.to_owned(), share }
    }
}

/// Whom TLS to Redis trusts, and the certificate that it shows if it is asked for one. `Debug` shows no key.
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

/// An address of Redis, which may hold a password: it has no `Display`, `Debug` shows nothing of it, and
/// its memory is wiped when it goes.
#[derive(Clone, PartialEq, Eq)]
pub struct RedisUrl(Zeroizing<String>);

impl RedisUrl {
    /// The address, for the code that connects and for nothing else.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Where it is and who we are there, without whether over TLS.
    ///
    /// # Errors
    /// If the client cannot read it.
    pub fn connection_info(&self) -> redis::RedisResult<redis::ConnectionInfo> {
        connection_info(&self.0)
    }

    /// Whether it is spoken to over TLS.
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
        let long_enough = host.is_some_and(|rest| !rest.is_empty() && rest.len() <= 4096);
        // What the client cannot read is found here, and not when it is too late.
        if !long_enough || connection_info(url).is_err() {
            return Err("is not an address of Redis; write \"redis://HOST:PORT\" or \"rediss://HOST:PORT\"");
        }
        if url.contains('#') {
            return Err("has a # in it; there is no TLS without looking at certificates here");
        }
        Ok(Self(Zeroizing::new(url.to_owned())))
    }
}

/// TLS is not the client's business, so it is not told of it.
fn connection_info(url: &str) -> redis::RedisResult<redis::ConnectionInfo> {
    let plain = Zeroizing::new(url.replacen("rediss://", "redis://", 1));
    plain.as_str().into_connection_info()
}

/// The default of `fleet.prefix`.
pub const PREFIX_DEFAULT: &str = "chatgate";
/// The default of `fleet.share`.
pub const SHARE_DEFAULT: f64 = 0.25;
const CA: &str = "ca_file";
const CERT: &str = "cert_file";
const KEY: &str = "key_file";
const URL: SecretNames = SecretNames { inline: "url", file: "url_file", env: "url_env" };

/// The section, if it was written.
pub(super) fn fleet(root: &mut Section<'_>) -> Option<Fleet> {
    let written = root.has("fleet");
    let mut section = root.section("fleet");
    let plain = section.optional("redis", |node| {
        let url = text(node)?;
        if url.contains('@') {
            return Err(
                "must not hold a password; put the whole URL into a file and name that with url_file".to_owned()
            );
        }
        parsed::<RedisUrl>(node)
    });
    let hidden = section.secret(&URL, false).and_then(|secret| {
        let url = secret.expose().parse::<RedisUrl>();
        url.map_err(|problem| section.problem("url_file", format_args!("what it names {problem}"))).ok()
    });
    let of_file = section.has(URL.file) || section.has(URL.env);
    if section.has("redis") && of_file {
        section.problem("redis", "stands beside url_file or url_env; write only one of them");
    } else if written && !section.has("redis") && !of_file && !section.has(URL.inline) {
        section
            .problem("redis", "is missing; write redis = \"redis://HOST:PORT\", or url_file for one with a password");
    }
    let (mut prefix, mut share) = (PREFIX_DEFAULT.to_owned(), SHARE_DEFAULT);
    section.read("prefix", &mut prefix, |node| {
        let prefix = text(node)?;
        let known = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte);
        let good = (1..=64).contains(&prefix.len()) && prefix.bytes().all(known);
        if good { Ok(prefix) } else { Err("must be 1 to 64 of a-z, A-Z, 0-9 and \"-_.:\"".to_owned()) }
    });
    section.read("share", &mut share, fraction(0.01..=1.0));
    let redis = plain.or(hidden);
    let tls = tls(&mut section, redis.as_ref());
    section.finish();
    Some(Fleet { tls, redis: redis?, prefix, share })
}

/// What TLS trusts and shows. Files that are no good are noted, also if the address is.
fn tls(section: &mut Section<'_>, redis: Option<&RedisUrl>) -> Option<FleetTls> {
    let shows = section.has(CERT) || section.has(KEY);
    let extra = file(section, CA, false, read_ca_file);
    let chain = file(section, CERT, shows, read_chain);
    let key = file(section, KEY, shows, read_key);
    if let Some((_, Some(remark))) = &key {
        section.warning(KEY, remark);
    }
    if let Some(first) = chain.as_ref().and_then(|chain| chain.first()) {
        let _ = certificate(section, first, "Redis refuses it");
    }
    let redis = redis?;
    if !redis.has_tls() {
        if let Some(key) = [CA, CERT, KEY].into_iter().find(|key| section.has(key)) {
            section.problem(key, "is for TLS, and the address begins with redis://; write rediss://, or leave it out");
        }
        return None;
    }
    let shown = match chain.zip(key).map(|(chain, (key, _))| certified(chain, &key)).transpose() {
        Ok(shown) => shown,
        Err((key, message)) => {
            section.problem(key, message);
            None
        }
    };
    let config = client_config(&extra.unwrap_or_default(), shown);
    let config =
        config.map_err(|error| section.problem(CA, format_args!("has a certificate that is no good: {error}")));
    Some(FleetTls(Arc::new(config.ok()?)))
}
