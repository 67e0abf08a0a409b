//! `webhook.forward`: the apps that receive their webhooks from chatgate.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use http::uri::PathAndQuery;

use super::address::{Endpoint, EndpointError, ListenAddr};
use super::caller::UNKNOWN_APP;
use super::section::Section;
use super::units::parsed;
use crate::domain::chat::app::AppName;
use crate::domain::quote::{quoted, with_value};

/// Maximum length of the path in bytes.
const PATH_LEN_MAX: usize = 1024;

/// The URL of an app without its query: `http://HOST:PORT/PATH`, or `https://` for a certificate of a public CA.
///
/// `Display` leaves out the path, because some apps keep a secret in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForwardTarget {
    /// Scheme, host, and port.
    pub endpoint: Endpoint,
    /// Path, from its first slash.
    pub path: String,
}

impl fmt::Display for ForwardTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.endpoint.fmt(f)
    }
}

/// The reason why a string is not the URL of an app.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum ForwardTargetError {
    #[error("not the URL of an app; use \"http://HOST:PORT/PATH\" or \"https://HOST:PORT/PATH\"")]
    Form,
    #[error("must have no user name, query, or fragment; chatgate adds the query that Chat sends")]
    Extra,
    #[error("the path must not exceed 1024 bytes; use a shorter path")]
    TooLong,
}

impl FromStr for ForwardTarget {
    type Err = ForwardTargetError;

    fn from_str(text: &str) -> Result<Self, ForwardTargetError> {
        let (scheme, rest) = text.split_once("://").ok_or(ForwardTargetError::Form)?;
        let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
        if authority.contains('@') || path.contains(['?', '#']) {
            return Err(ForwardTargetError::Extra);
        }
        if path.len() > PATH_LEN_MAX {
            return Err(ForwardTargetError::TooLong);
        }
        let path = if path.is_empty() { "/" } else { path };
        let endpoint = Endpoint::parse_any(&format!("{scheme}://{authority}")).map_err(|error| match error {
            EndpointError::Extra => ForwardTargetError::Extra,
            EndpointError::Form | EndpointError::ClearText => ForwardTargetError::Form,
        })?;
        let is_visible = path.bytes().all(|byte| byte.is_ascii_graphic());
        if !is_visible || path.parse::<PathAndQuery>().is_err() {
            return Err(ForwardTargetError::Form);
        }
        Ok(Self { endpoint, path: path.to_owned() })
    }
}

impl ForwardTarget {
    /// Whether a listener of this address certainly receives what is sent to the target.
    fn reaches(&self, listener: &ListenAddr) -> bool {
        let ListenAddr::Tcp(listener) = listener else { return false };
        let host = self.endpoint.host.trim_matches(['[', ']']);
        let ip = host.parse::<IpAddr>().ok().map(|ip| ip.to_canonical());
        let is_loopback = host == "localhost" || ip.is_some_and(|ip| ip.is_loopback());
        let listens_on = listener.ip().to_canonical();
        let is_same_host = ip == Some(listens_on)
            || (is_loopback && listens_on.is_unspecified())
            || (host == "localhost" && listens_on.is_loopback());
        self.endpoint.port == listener.port() && is_same_host
    }
}

/// Reads `forward`: the target of each app. `apps` are the names of all apps, `with_token` those in `app_tokens`, and
/// `listeners` chatgate's own addresses.
pub(super) fn read_targets(
    section: &mut Section<'_>,
    apps: &HashSet<AppName>,
    with_token: &HashSet<AppName>,
    listeners: &[&ListenAddr],
) -> HashMap<AppName, ForwardTarget> {
    let mut targets = HashMap::new();
    for entry in section.named_entries("forward") {
        let name = entry.name.parse::<AppName>().ok().filter(|name| apps.contains(name));
        match &name {
            None => section.problem_at(entry.key_location, &entry.path, with_value(UNKNOWN_APP, &quoted(entry.name))),
            // Without any token, the missing app_tokens are the problem.
            Some(name) if !with_token.is_empty() && !with_token.contains(name) => {
                let message = "no webhook of this app is accepted; add its token to webhook.app_tokens";
                section.problem_at(entry.key_location, &entry.path, message);
            }
            Some(_) => {}
        }
        let problem = |message: &str| section.problem_at(&entry.node.location, &entry.path, message);
        match parsed::<ForwardTarget>(entry.node) {
            Err(message) => problem(&message),
            Ok(target) if listeners.iter().any(|listener| target.reaches(listener)) => {
                problem("this is a listener of chatgate itself; use the address of the app");
            }
            Ok(target) => targets.extend(name.map(|name| (name, target))),
        }
    }
    targets
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_have_scheme_host_port_and_path() {
        for (text, shown, path) in [
            ("http://127.0.0.1:8080/im", "http://127.0.0.1:8080", "/im"),
            ("https://App.internal", "https://app.internal", "/"),
            ("http://[::1]:80/", "http://[::1]", "/"),
            ("http://app:8080/a/b%20c/;d=1/@x:y", "http://app:8080", "/a/b%20c/;d=1/@x:y"),
        ] {
            let target: ForwardTarget = text.parse().expect(text);
            assert_eq!((target.to_string().as_str(), target.path.as_str()), (shown, path), "{text}");
        }
    }

    #[test]
    fn targets_without_a_plain_url_are_rejected() {
        let parse = |text: &str| text.parse::<ForwardTarget>().map(|target| target.to_string());
        for text in [
            "",
            "127.0.0.1:8080/im",
            "ftp://a/",
            "http://",
            "http:///im",
            "http://a:0/",
            "http://a/\u{e9}",
            "http://a/ b",
        ] {
            assert_eq!(parse(text), Err(ForwardTargetError::Form), "{text:?}");
        }
        for text in ["http://a/im?x=1", "http://a?x", "http://a/im#x", "http://user@a/im", "http://user:password@a"] {
            assert_eq!(parse(text), Err(ForwardTargetError::Extra), "{text:?}");
        }
        let path = |len: usize| format!("http://a/{}", "x".repeat(len - 1));
        assert!(parse(&path(PATH_LEN_MAX)).is_ok());
        assert_eq!(parse(&path(PATH_LEN_MAX + 1)), Err(ForwardTargetError::TooLong));
    }

    #[test]
    fn own_listener_is_recognized_where_that_is_certain() {
        let reaches = |target: &str, listener: &str| {
            target.parse::<ForwardTarget>().expect(target).reaches(&listener.parse().expect(listener))
        };
        for (target, listener) in [
            ("http://127.0.0.1:8702/im", "127.0.0.1:8702"),
            ("http://127.0.0.1:8702/", "0.0.0.0:8702"),
            ("http://[::1]:8702/", "[::]:8702"),
            ("https://localhost:8702/", "0.0.0.0:8702"),
            ("http://localhost:8702/", "127.0.0.1:8702"),
            ("http://10.0.0.7:8702/", "10.0.0.7:8702"),
            ("http://127.0.0.1:8702/", "[::ffff:127.0.0.1]:8702"),
        ] {
            assert!(reaches(target, listener), "{target} at {listener}");
        }
        for (target, listener) in [
            ("http://127.0.0.1:8703/", "127.0.0.1:8702"),
            ("http://127.0.0.1:8702/", "10.0.0.7:8702"),
            ("http://10.0.0.7:8702/", "0.0.0.0:8702"),
            ("http://app:8702/", "0.0.0.0:8702"),
            ("http://127.0.0.1:8702/", "unix:/run/hooks.sock"),
            ("http://127.0.0.1:8702/", "127.0.0.1:0"),
        ] {
            assert!(!reaches(target, listener), "{target} at {listener}");
        }
    }
}
