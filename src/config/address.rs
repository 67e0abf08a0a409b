//! Addresses: of listeners, and of the servers that chatgate calls.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

use rustls::pki_types::ServerName;

use crate::platform::UNIX_PATH_LEN_MAX;

/// The address of a listener: `127.0.0.1:8700`, or `unix:/run/chatgate/chatgate.sock`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ListenAddr {
    /// An IP address and a port; port 0 means any free one.
    Tcp(SocketAddr),
    /// The absolute path of a Unix socket.
    Unix(PathBuf),
}

impl ListenAddr {
    /// Returns whether only this machine can reach it: loopback or a Unix socket.
    pub fn is_local(&self) -> bool {
        match self {
            ListenAddr::Tcp(address) => address.ip().to_canonical().is_loopback(),
            ListenAddr::Unix(_) => true,
        }
    }

    /// Returns whether two listeners cannot have these addresses at once. Addresses with port 0 never collide.
    pub fn collides_with(&self, other: &ListenAddr) -> bool {
        match self {
            ListenAddr::Tcp(address) if address.port() == 0 => false,
            _ => self == other,
        }
    }
}

impl fmt::Display for ListenAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ListenAddr::Tcp(address) => address.fmt(f),
            ListenAddr::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// The reason why a string is not the address of a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum ListenError {
    #[error("not an address; use IP:PORT as in \"127.0.0.1:8700\" or \"[::1]:8700\", or \"unix:/path\"")]
    Form,
    #[error("must be an address without a scheme; leave the scheme out, as in \"127.0.0.1:8700\"")]
    Scheme,
    #[error("host names are not supported; use an IP address, \"127.0.0.1:PORT\" for this machine")]
    Name,
    #[error("the path must be absolute; use \"unix:/run/chatgate/chatgate.sock\"")]
    Relative,
    #[error("the path of a Unix socket must not exceed {UNIX_PATH_LEN_MAX} bytes; use a shorter path")]
    TooLong,
    #[error("contains a control character; remove it")]
    Control,
}

impl FromStr for ListenAddr {
    type Err = ListenError;

    fn from_str(text: &str) -> Result<Self, ListenError> {
        let Some(path) = text.strip_prefix("unix:") else {
            return match text.parse() {
                Ok(address) => Ok(ListenAddr::Tcp(address)),
                Err(_) if text.contains("://") => Err(ListenError::Scheme),
                Err(_) if starts_with_name(text) => Err(ListenError::Name),
                Err(_) => Err(ListenError::Form),
            };
        };
        if !path.starts_with('/') || path.ends_with('/') {
            return Err(ListenError::Relative);
        }
        if path.len() > UNIX_PATH_LEN_MAX {
            return Err(ListenError::TooLong);
        }
        // A NUL would cut the path; a line feed would break the log line that names it.
        if path.chars().any(char::is_control) {
            return Err(ListenError::Control);
        }
        Ok(ListenAddr::Unix(path.into()))
    }
}

fn starts_with_name(text: &str) -> bool {
    text.split_once(':').is_some_and(|(host, _)| host.starts_with(|first: char| first.is_ascii_alphabetic()))
}

/// The address of a server: `https://host[:port]`, or `http://`, which an app may use for this machine only.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// Whether the connection uses TLS. Without TLS, the host of an app's endpoint is loopback.
    pub tls: bool,
    /// Name in lower case, or IP address; IPv6 in brackets, as in a `Host` header.
    pub host: String,
    /// Port. Default 443 with TLS, else 80.
    pub port: u16,
}

impl Endpoint {
    /// Returns the TLS endpoint of a domain at the default port.
    pub fn https(host: &str) -> Self {
        Self { tls: true, host: host.to_owned(), port: 443 }
    }

    /// Returns the authority for a URI or a `Host` header: the host, and the port unless it is the default.
    pub fn authority(&self) -> String {
        if self.port == default_port(self.tls) { self.host.clone() } else { format!("{}:{}", self.host, self.port) }
    }

    /// Returns whether the host is this machine: `localhost` or a loopback address.
    pub fn is_loopback(&self) -> bool {
        normalize_host(&self.host).is_some_and(|(_, loopback)| loopback)
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", if self.tls { "https" } else { "http" }, self.authority())
    }
}

/// The reason why a string is not an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum EndpointError {
    #[error("not an endpoint; use \"https://host\" or \"https://host:port\"")]
    Form,
    #[error("must have only scheme, host, and port; use \"https://host:port\"")]
    Extra,
    #[error("plain HTTP would expose the signature; use \"https://\" (\"http://\" is allowed for loopback only)")]
    ClearText,
}

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, EndpointError> {
        let endpoint = Self::parse_any(text)?;
        let (_, loopback) = normalize_host(&endpoint.host).ok_or(EndpointError::Form)?;
        if endpoint.tls || loopback { Ok(endpoint) } else { Err(EndpointError::ClearText) }
    }
}

impl Endpoint {
    /// Parses an endpoint that may use `http://` for any machine, because it receives no secrets.
    pub(super) fn parse_any(text: &str) -> Result<Self, EndpointError> {
        let (tls, rest) = match text.split_once("://") {
            Some(("https", rest)) => (true, rest),
            Some(("http", rest)) => (false, rest),
            _ => return Err(EndpointError::Form),
        };
        let authority = rest.strip_suffix('/').unwrap_or(rest);
        if authority.contains(['/', '?', '#', '@']) {
            return Err(EndpointError::Extra);
        }
        let (host, port) = split_port(authority).ok_or(EndpointError::Form)?;
        let (host, _) = normalize_host(host).ok_or(EndpointError::Form)?;
        Ok(Self { tls, host, port: port.unwrap_or(default_port(tls)) })
    }
}

const fn default_port(tls: bool) -> u16 {
    if tls { 443 } else { 80 }
}

/// Splits host and port. A colon inside brackets belongs to an IPv6 address.
pub(super) fn split_port(authority: &str) -> Option<(&str, Option<u16>)> {
    let name_end = authority.rfind(']').map_or(0, |at| at + 1);
    let Some(colon) = authority[name_end..].find(':') else {
        return Some((authority, None));
    };
    let (host, port) = authority.split_at(name_end + colon);
    let digits = &port[1..];
    let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    let port: u16 = digits.parse().ok().filter(|port| plain && *port != 0)?;
    Some((host, Some(port)))
}

/// Normalizes a host. Also returns whether it is loopback; RFC 6761, section 6.3, reserves `localhost` for that.
pub(super) fn normalize_host(host: &str) -> Option<(String, bool)> {
    let inner = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let name = inner.unwrap_or(host);
    match (ServerName::try_from(name).ok()?, name.parse::<IpAddr>()) {
        (ServerName::IpAddress(_), Ok(IpAddr::V6(ip))) if inner.is_some() => {
            Some((format!("[{ip}]"), ip.is_loopback()))
        }
        (ServerName::IpAddress(_), Ok(IpAddr::V4(ip))) if inner.is_none() => Some((ip.to_string(), ip.is_loopback())),
        (ServerName::DnsName(_), Err(_)) if inner.is_none() => {
            let name = name.to_ascii_lowercase();
            let loopback = name == "localhost";
            Some((name, loopback))
        }
        _ => None,
    }
}

/// Parses an entry of `server.hosts` into the form that is compared: lower case, no port, IPv6 in brackets.
pub(super) fn host_name(text: &str) -> Result<String, &'static str> {
    if text.contains("://") {
        return Err("must be a name without a scheme; remove \"https://\"");
    }
    let bracketed = if text.parse::<std::net::Ipv6Addr>().is_ok() { format!("[{text}]") } else { text.to_owned() };
    match split_port(&bracketed) {
        Some((host, None)) => normalize_host(host)
            .map(|(host, _)| host)
            .ok_or("not a host name; use a name such as \"chatgate.internal\" (patterns are not supported)"),
        Some((_, Some(_))) => Err("must be a name without a port; remove the port, which is not compared"),
        None => Err("not a host name; use a name such as \"chatgate.internal\""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listener_addresses_round_trip_and_errors_are_distinct() {
        for text in ["127.0.0.1:8700", "[::1]:0", "0.0.0.0:1", "unix:/run/chatgate/chatgate.sock"] {
            assert_eq!(text.parse::<ListenAddr>().expect(text).to_string(), text);
        }
        let long = format!("unix:/{}", "x".repeat(UNIX_PATH_LEN_MAX));
        assert!(long[..long.len() - 1].parse::<ListenAddr>().is_ok());
        for (text, error) in [
            ("", ListenError::Form),
            ("8700", ListenError::Form),
            (":8700", ListenError::Form),
            ("127.0.0.1", ListenError::Form),
            ("127.0.0.1:65536", ListenError::Form),
            ("localhost:8700", ListenError::Name),
            ("unix:", ListenError::Relative),
            ("unix:x.sock", ListenError::Relative),
            ("unix:@abstract", ListenError::Relative),
            ("unix:/run/", ListenError::Relative),
            ("unix:/a\0b", ListenError::Control),
            (&long, ListenError::TooLong),
        ] {
            assert_eq!(text.parse::<ListenAddr>(), Err(error), "{text:?}");
        }
    }

    #[test]
    fn only_loopback_and_unix_sockets_are_local() {
        let local = |text: &str| text.parse::<ListenAddr>().expect(text).is_local();
        for text in ["127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "[::ffff:127.0.0.1]:1", "unix:/x"] {
            assert!(local(text), "{text}");
        }
        for text in ["0.0.0.0:1", "[::]:1", "10.0.0.1:1", "[::ffff:10.0.0.1]:1"] {
            assert!(!local(text), "{text}");
        }
    }

    #[test]
    fn equal_addresses_collide_unless_the_port_is_0() {
        let collide =
            |a: &str, b: &str| a.parse::<ListenAddr>().expect(a).collides_with(&b.parse::<ListenAddr>().expect(b));
        assert!(collide("127.0.0.1:1", "127.0.0.1:1") && collide("unix:/a", "unix:/a"));
        assert!(!collide("127.0.0.1:0", "127.0.0.1:0") && !collide("127.0.0.1:1", "127.0.0.1:2"));
    }

    #[test]
    fn endpoints_have_scheme_host_and_optional_port() {
        for (text, shown, authority) in [
            ("https://Example.COM", "https://example.com", "example.com"),
            ("https://example.com:443/", "https://example.com", "example.com"),
            ("https://example.com:8443", "https://example.com:8443", "example.com:8443"),
            ("https://10.0.0.1", "https://10.0.0.1", "10.0.0.1"),
            ("https://[2001:DB8::1]:9", "https://[2001:db8::1]:9", "[2001:db8::1]:9"),
            ("http://127.0.0.1:9700", "http://127.0.0.1:9700", "127.0.0.1:9700"),
            ("http://localhost", "http://localhost", "localhost"),
            ("http://[::1]:80", "http://[::1]", "[::1]"),
        ] {
            let endpoint: Endpoint = text.parse().expect(text);
            assert_eq!((endpoint.to_string().as_str(), endpoint.authority().as_str()), (shown, authority), "{text}");
        }
        for bad in ["", "example.com", "ftp://example.com", "https://", "https://:443", "https://a:0", "https://a:+1"] {
            assert_eq!(bad.parse::<Endpoint>(), Err(EndpointError::Form), "{bad:?}");
        }
        for bad in ["https://a:65536", "https://a b", "https://::1", "https://[1.2.3.4]", "https://[a]", "HTTPS://a"] {
            assert_eq!(bad.parse::<Endpoint>(), Err(EndpointError::Form), "{bad:?}");
        }
        for bad in ["https://a/v4", "https://a//", "https://u:p@a", "https://a?x", "https://a#"] {
            assert_eq!(bad.parse::<Endpoint>(), Err(EndpointError::Extra), "{bad:?}");
        }
        for bad in ["http://example.com", "http://localhost.evil", "http://10.0.0.1", "http://0.0.0.0", "http://[::]"] {
            assert_eq!(bad.parse::<Endpoint>(), Err(EndpointError::ClearText), "{bad:?}");
        }
    }

    #[test]
    fn host_names_have_no_scheme_port_or_path() {
        assert_eq!(host_name("Chatgate.Internal").as_deref(), Ok("chatgate.internal"));
        assert_eq!(host_name("10.0.0.7").as_deref(), Ok("10.0.0.7"));
        assert_eq!(host_name("::1").as_deref(), Ok("[::1]"));
        assert_eq!(host_name("[::1]").as_deref(), Ok("[::1]"));
        for bad in ["", "*", "*.internal", "a:80", "http://a", "a/b", "a b", "[::1]:80"] {
            assert!(host_name(bad).is_err(), "{bad:?}");
        }
    }
}
