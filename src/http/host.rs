//! The Host check, against DNS rebinding: a web page whose name was bound to chatgate's address still sends its own
//! name.

use std::net::IpAddr;

use http::request::Parts;
use http::uri::Authority;
use http::{Method, Version};

use super::headers::RequestHeaders;
use super::peer::Peer;
use crate::error::{GatewayError, NO_FORWARD_PROXY};

/// The names that a request over TCP may use for chatgate: `localhost`, loopback addresses, the address that the
/// connection came in on, and configured names. Case does not matter, nor does a trailing dot, which makes a name
/// absolute (RFC 3986 section 3.2.2).
#[derive(Debug, Clone, Default)]
pub struct Hosts(Vec<String>);

impl Hosts {
    /// Adds the names of `server.hosts`, lower case and without a port.
    pub fn new(configured: &[String]) -> Self {
        Self(configured.to_vec())
    }

    fn allows(&self, host: &str, peer: Peer) -> bool {
        let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(&host);
        match bare.parse::<IpAddr>() {
            Ok(ip) => ip.is_loopback() || peer == Peer::Tcp { local: ip.to_canonical() } || self.0.contains(&host),
            Err(_) => host == "localhost" || self.0.contains(&host),
        }
    }
}

/// Rejects a request whose Host is not one of chatgate's names.
///
/// # Errors
/// `forbidden`, or `bad_request` if it is no name at all (RFC 9112 section 3.2).
pub fn check_host(head: &Parts, headers: &RequestHeaders<'_>, hosts: &Hosts, peer: Peer) -> Result<(), GatewayError> {
    let Some(authority) = parse_host(head, headers, peer)? else { return Ok(()) };
    if hosts.allows(authority.host(), peer) {
        return Ok(());
    }
    // A client with chatgate as its forward proxy names the host that it really wants.
    let is_for_proxy =
        head.method == Method::CONNECT || (head.version < Version::HTTP_2 && head.uri.authority().is_some());
    reject(if is_for_proxy {
        NO_FORWARD_PROXY
    } else {
        "unknown Host header; to accept it, add the name to server.hosts"
    })
}

/// Rejects a request whose Host is no name and port. It need not be one of chatgate's, and may be missing.
///
/// # Errors
/// `bad_request`.
pub fn check_host_syntax(head: &Parts, headers: &RequestHeaders<'_>, peer: Peer) -> Result<(), GatewayError> {
    match parse_host(head, headers, peer) {
        Err(error @ GatewayError::BadRequest(_)) => Err(error),
        Ok(_) | Err(_) => Ok(()),
    }
}

/// Reads the Host; `None` if it may have any value or needs no further look.
fn parse_host(head: &Parts, headers: &RequestHeaders<'_>, peer: Peer) -> Result<Option<Authority>, GatewayError> {
    if headers.host.is_repeated() {
        return reject("the request has more than one Host header; send one");
    }
    let host = match (head.uri.authority(), headers.host.first()) {
        // HTTP/2 has the host in :authority, and may repeat it in Host.
        (Some(authority), repeated) if head.version >= Version::HTTP_2 => {
            if repeated.is_some_and(|repeated| repeated != authority.as_str()) {
                return reject(":authority and Host differ; send the same name in both");
            }
            authority.as_str()
        }
        (_, Some(host)) => host.to_str().unwrap_or_default(),
        (_, None) => return reject("the request has no Host header; send one"),
    };
    // No browser connects to a Unix socket. Clients send any name there, or an empty one, as RFC 9112 section 3.2
    // requires where the target has no authority.
    if is_plainly_local(host) || matches!(peer, Peer::Unix { .. }) {
        return Ok(None);
    }
    if host.is_empty() {
        return reject("the Host header is empty; send the name and port of the listener");
    }
    let authority = host.parse::<Authority>().ok().filter(is_host_and_port);
    authority.map(Some).ok_or(GatewayError::BadRequest("its Host is not NAME or NAME:PORT"))
}

fn reject<T>(text: &str) -> Result<T, GatewayError> {
    Err(GatewayError::Forbidden(text.to_owned()))
}

/// Recognizes without parsing what nearly every request sends: `localhost` or `127.0.0.1`, with or without a port.
fn is_plainly_local(host: &str) -> bool {
    let rest = host.strip_prefix("localhost").or_else(|| host.strip_prefix("127.0.0.1"));
    rest.is_some_and(|rest| rest.is_empty() || rest.strip_prefix(':').is_some_and(is_port))
}

/// A port may be empty (RFC 3986 section 3.2.3).
fn is_port(text: &str) -> bool {
    text.is_empty() || (text.bytes().all(|byte| byte.is_ascii_digit()) && text.parse::<u16>().is_ok())
}

/// Whether an authority has neither user information nor an invalid port.
fn is_host_and_port(authority: &Authority) -> bool {
    match authority.as_str().strip_prefix(authority.host()) {
        Some("") => true,
        // The parser looks for a port after the last colon only, whatever precedes it.
        Some(rest) => rest.strip_prefix(':').is_some_and(is_port),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    const LOCAL: Peer = Peer::Tcp { local: IpAddr::V4(std::net::Ipv4Addr::new(10, 1, 2, 3)) };

    fn is_accepted(hosts: &[&str]) -> bool {
        is_accepted_from(LOCAL, hosts)
    }

    fn is_accepted_from(peer: Peer, hosts: &[&str]) -> bool {
        slug_of(peer, hosts).is_none()
    }

    /// The error of a request with these Hosts, over HTTP/1.1.
    fn slug_of(peer: Peer, hosts: &[&str]) -> Option<&'static str> {
        let request = Request::post("/v4/follow/follow_check");
        let request = hosts.iter().fold(request, |request, host| request.header("host", *host));
        let (head, ()) = request.body(()).expect("a request").into_parts();
        let names = Hosts::new(&["gate.internal".to_owned()]);
        let checked = check_host(&head, &RequestHeaders::of(&head.headers), &names, peer);
        checked.err().map(|error| error.wire().slug.text())
    }

    #[test]
    fn only_own_names_are_accepted_as_host() {
        for host in [
            "localhost",
            "LOCALHOST:8700",
            "localhost:",
            "localhost.",
            "localhost.:8700",
            "127.0.0.1:1",
            "127.0.0.1.",
            "127.9.9.9",
            "[::1]:8700",
            "[::1]:",
            "10.1.2.3",
            "10.1.2.3.:80",
            "gate.internal:99",
            "Gate.Internal.:99",
        ] {
            assert!(is_accepted(&[host]), "{host}");
        }
        for host in ["", "localhost.evil", "evil", "10.1.2.4", "127.0.0.1.evil", "localhost..", ".", "gate.internal.x"]
        {
            assert_eq!(slug_of(LOCAL, &[host]), Some("forbidden"), "{host}");
        }
        assert!(!is_accepted(&[]));
        assert!(!is_accepted(&["localhost", "localhost"]));
    }

    #[test]
    fn value_that_is_no_host_is_a_bad_request() {
        for host in [
            "###",
            "a b",
            "/run/chatgate.sock",
            "x@localhost",
            "localhost@evil",
            "localhost:x",
            "localhost:99999",
            "localhost:+1",
            "localhost:8[::1]:1",
        ] {
            assert_eq!(slug_of(LOCAL, &[host]), Some("bad_request"), "{host}");
        }
    }

    #[test]
    fn any_single_host_is_accepted_over_a_unix_socket() {
        let unix = Peer::Unix { uid: None };
        for host in ["", "unix", "chatgate", "docker", "_", "%2Frun%2Fchatgate.sock", "/run/chatgate.sock", "evil"] {
            assert!(is_accepted_from(unix, &[host]), "{host}");
        }
        assert!(!is_accepted_from(unix, &["localhost", "localhost"]));
    }
}
