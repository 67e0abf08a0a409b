//! Where Redis is: URLs, logins, and the three forms in which Redis runs.

use std::fmt;

use redis::IntoConnectionInfo as _;
use zeroize::Zeroizing;

/// Maximum length of a URL in bytes.
const URL_LEN_MAX: usize = 4096;

/// The form in which Redis runs, and its addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RedisForm {
    /// One primary under one address.
    Primary(RedisUrl),
    /// A primary that sentinels name. Replicas follow a failover to another address.
    Sentinel {
        /// URLs of the sentinels.
        sentinels: Vec<RedisUrl>,
        /// The name by which they know the primary.
        master: String,
        /// The login at the sentinels.
        login: RedisLogin,
    },
    /// A Redis Cluster, by the URLs of some of its nodes.
    Cluster(Vec<RedisUrl>),
}

impl RedisForm {
    /// Returns the name that `/status` shows: `primary`, `sentinel`, or `cluster`.
    pub const fn name(&self) -> &'static str {
        match self {
            RedisForm::Primary(_) => "primary",
            RedisForm::Sentinel { .. } => "sentinel",
            RedisForm::Cluster(_) => "cluster",
        }
    }

    /// Returns whether all connections use TLS.
    pub fn has_tls(&self) -> bool {
        self.urls().iter().all(RedisUrl::has_tls)
    }

    /// Returns all URLs, at least one.
    pub(super) fn urls(&self) -> &[RedisUrl] {
        match self {
            RedisForm::Primary(url) => std::slice::from_ref(url),
            RedisForm::Sentinel { sentinels: urls, .. } | RedisForm::Cluster(urls) => urls,
        }
    }
}

/// A user and a password. `Debug` hides both, and the password is wiped on drop.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct RedisLogin {
    /// The user; `None` means Redis' default user.
    pub username: Option<String>,
    /// The password; `None` means no login.
    pub(crate) password: Option<Zeroizing<String>>,
}

impl fmt::Debug for RedisLogin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RedisLogin(hidden)")
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

    /// Returns whether the URL contains a password.
    pub(super) fn has_password(&self) -> bool {
        self.connection_info().is_ok_and(|info| info.redis_settings().password().is_some())
    }

    /// Returns whether the URL contains nothing but scheme, host, and port.
    pub(super) fn is_bare(&self) -> bool {
        let rest = self.0.split_once("://").map_or("", |(_, rest)| rest);
        !rest.strip_suffix('/').unwrap_or(rest).contains(['/', '?', '@'])
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bare_urls_have_only_host_and_port() {
        for (url, is_bare) in [
            ("redis://h", true),
            ("rediss://h:1/", true),
            ("redis://[::1]:7000", true),
            ("redis://h/2", false),
            ("redis://h?protocol=resp2", false),
            ("redis://u:p@h", false),
        ] {
            assert_eq!(url.parse::<RedisUrl>().expect("a URL").is_bare(), is_bare, "{url}");
        }
    }
}
