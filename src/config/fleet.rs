//! `[fleet]`: what replicas share.

use std::fmt;

use zeroize::Zeroizing;

use super::section::{SecretNames, Section};
use super::units::{fraction, parsed, text};

/// `[fleet]`: where replicas share quota, facts and evictions, and what one does alone.
#[derive(Debug, Clone, PartialEq)]
pub struct Fleet {
    /// Redis or Valkey.
    pub redis: RedisUrl,
    /// What the names of all keys and of the channel begin with. Default `chatgate`.
    pub prefix: String,
    /// The part of each quota that a replica uses while Redis is away, 0.01 to 1. Default 0.25.
    pub share: f64,
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
        if !long_enough || redis::IntoConnectionInfo::into_connection_info(url).is_err() {
            return Err("is not an address of Redis; write \"redis://HOST:PORT\" or \"rediss://HOST:PORT\"");
        }
        Ok(Self(Zeroizing::new(url.to_owned())))
    }
}

/// The default of `fleet.prefix`.
pub const PREFIX_DEFAULT: &str = "chatgate";
/// The default of `fleet.share`.
pub const SHARE_DEFAULT: f64 = 0.25;
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
    section.finish();
    Some(Fleet { redis: plain.or(hidden)?, prefix, share })
}
