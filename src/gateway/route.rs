//! What a request names: the command by its path, and the app by a prefix of it. Nothing is decoded or normalized.

use http::request::Parts;
use http::uri::Scheme;
use http::{HeaderName, HeaderValue, Method, Uri, Version};

use crate::domain::chat::app::AppName;
use crate::domain::chat::command::CommandName;
use crate::error::GatewayError;
use crate::http::headers::{HEAD_LEN_MAX, HEAD_LINES_MAX, RequestHeaders};
use crate::http::host::{Hosts, check_host};
use crate::http::peer::Peer;

/// Maximum length of a request target, in bytes.
pub const TARGET_LEN_MAX: usize = 8 * 1024;

/// The header that names an app.
pub const APP_HEADER: HeaderName = HeaderName::from_static("chatgate-app");

/// The parts of a path.
#[derive(Debug, PartialEq, Eq)]
pub struct Route<'a> {
    /// `NAME` of `/apps/NAME/v4/...`.
    pub app: Option<&'a str>,
    /// The command.
    pub name: CommandName<'a>,
}

/// Splits a path.
///
/// # Errors
/// `not_found` for anything but `/v4/SERVICE/COMMAND` with or without the prefix.
pub fn path(path: &str) -> Result<Route<'_>, GatewayError> {
    let (app, rest) = match path.strip_prefix("/apps/") {
        Some(rest) => {
            let (app, rest) = rest.split_once('/').ok_or(GatewayError::NotFound)?;
            // A prefix that cannot be an app's name is an unknown path, not an unknown app.
            app.parse::<AppName>().map_err(|_| GatewayError::NotFound)?;
            (Some(app), rest.strip_prefix("v4/"))
        }
        None => (None, path.strip_prefix("/v4/")),
    };
    let name = rest.and_then(|rest| CommandName::parse(rest).ok()).ok_or(GatewayError::NotFound)?;
    Ok(Route { app, name })
}

/// Reads the path of a request, and checks its method: path before method.
///
/// # Errors
/// `not_found` or `method_not_allowed`.
pub fn read<'h>(head: &'h Parts, headers: &RequestHeaders<'_>, is_tls: bool) -> Result<Route<'h>, GatewayError> {
    if head.method == Method::CONNECT {
        return Err(GatewayError::ConnectMethod);
    }
    if head.version < Version::HTTP_2 && head.uri.authority().is_some() {
        check_absolute_form(&head.uri, headers, is_tls)?;
    }
    let path = path(head.uri.path())?;
    if head.method != Method::POST {
        return Err(GatewayError::MethodNotAllowed);
    }
    Ok(path)
}

/// Checks that a target in absolute form names the listener that it arrived at (RFC 9112 section 3.2.2): the scheme of
/// the connection, and the host of the Host header, which has been checked.
fn check_absolute_form(target: &Uri, headers: &RequestHeaders<'_>, is_tls: bool) -> Result<(), GatewayError> {
    let own_scheme = if is_tls { Scheme::HTTPS } else { Scheme::HTTP };
    let host = headers.host.single().map(HeaderValue::as_bytes);
    let names_host = target
        .authority()
        .zip(host)
        .is_some_and(|(authority, host)| host.eq_ignore_ascii_case(authority.as_str().as_bytes()));
    if target.scheme() == Some(&own_scheme) && names_host { Ok(()) } else { Err(GatewayError::NotOwnAddress) }
}

/// Rejects requests of browsers, and requests for a host name that is not chatgate's.
///
/// # Errors
/// `forbidden`.
pub fn check_origin_and_host(
    head: &Parts,
    headers: &RequestHeaders<'_>,
    hosts: &Hosts,
    peer: Peer,
) -> Result<(), GatewayError> {
    check_origin(headers)?;
    check_host(head, headers, hosts, peer)
}

/// Checks the shape of a request: headers and target within their bounds, and one unambiguous body length.
///
/// # Errors
/// `head_too_large`, `uri_too_long` or `bad_request`.
pub fn check_shape(head: &Parts, headers: &RequestHeaders<'_>) -> Result<(), GatewayError> {
    // RFC 9113 section 8.3.1: a request has a scheme, which begins with a letter (RFC 3986 section 3.1).
    let begins_with_letter = |scheme: &str| scheme.starts_with(|first: char| first.is_ascii_alphabetic());
    if head.version >= Version::HTTP_2
        && head.uri.authority().is_some()
        && !head.uri.scheme_str().is_some_and(begins_with_letter)
    {
        return Err(GatewayError::BadRequest("its :scheme is empty or does not begin with a letter"));
    }
    check_head_size(headers)?;
    check_framing(headers)?;
    let target_len = head.uri.path_and_query().map_or(0, |target| target.as_str().len());
    if target_len > TARGET_LEN_MAX { Err(GatewayError::UriTooLong) } else { Ok(()) }
}

/// Checks the size of HTTP/2 headers, which hyper has unpacked. Those of HTTP/1 were measured on the wire.
fn check_head_size(headers: &RequestHeaders<'_>) -> Result<(), GatewayError> {
    // Measured as HTTP/1 writes them: with the 32 bytes a line that RFC 9113 section 6.5.2 adds, headers that are
    // allowed over HTTP/1 would be rejected over HTTP/2.
    let is_too_large = headers.count > HEAD_LINES_MAX || headers.len > HEAD_LEN_MAX;
    if is_too_large { Err(GatewayError::HeadTooLarge) } else { Ok(()) }
}

/// Checks that the body has one length. hyper accepts more than that, and a proxy in front of chatgate may read such
/// a request differently (RFC 9112 section 11.2).
fn check_framing(headers: &RequestHeaders<'_>) -> Result<(), GatewayError> {
    let (length, codings) = (headers.content_length, headers.transfer_encoding);
    let is_chunked = codings.single().is_some_and(|coding| coding.as_bytes().eq_ignore_ascii_case(b"chunked"));
    // h2 accepts an empty length.
    let is_length = length.first().is_none_or(|length| !length.is_empty()) && !length.is_repeated();
    let is_clear = if codings.is_present() { is_chunked && !length.is_present() } else { is_length };
    if is_clear { Ok(()) } else { Err(GatewayError::BadRequest("the length of its body is given twice or unclear")) }
}

/// Rejects requests with a header that only browsers send.
fn check_origin(headers: &RequestHeaders<'_>) -> Result<(), GatewayError> {
    for (lines, name) in [(headers.origin, "origin"), (headers.sec_fetch_site, "sec-fetch-site")] {
        if lines.is_present() {
            return Err(GatewayError::Forbidden(format!("browser requests are rejected: header {name} is present")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    const HERE: Peer = Peer::Tcp { local: std::net::IpAddr::V4(std::net::Ipv4Addr::new(10, 1, 2, 3)) };

    fn slug<T>(result: Result<T, GatewayError>) -> &'static str {
        result.err().map_or("ok", |error| error.wire().slug.text())
    }

    fn checked(method: &str, target: &str, headers: &[(&str, &str)]) -> &'static str {
        let mut request = Request::builder().method(method).uri(target);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let (head, ()) = request.body(()).expect("a request").into_parts();
        let headers = RequestHeaders::of(&head.headers);
        let checked = check_origin_and_host(&head, &headers, &Hosts::new(&["gate.internal".to_owned()]), HERE);
        slug(checked.and_then(|()| check_shape(&head, &headers)).and_then(|()| read(&head, &headers, false).map(drop)))
    }

    #[test]
    fn absolute_form_must_name_the_own_address() {
        let read_with = |target: &str, host: &str, is_tls| {
            let (head, ()) = Request::post(target).header("host", host).body(()).expect("a request").into_parts();
            slug(read(&head, &RequestHeaders::of(&head.headers), is_tls).map(drop))
        };
        let path = "/v4/follow/follow_check";
        for (address, host, is_tls, expected) in [
            ("http://localhost", "localhost", false, "ok"),
            ("http://LocalHost:8700", "localhost:8700", false, "ok"),
            ("https://gate.internal", "gate.internal", true, "ok"),
            ("https://localhost", "localhost", false, "not_found"),
            ("http://localhost", "localhost", true, "not_found"),
            ("ftp://localhost", "localhost", false, "not_found"),
            ("http://localhost:8700", "localhost", false, "not_found"),
            ("http://console.tim.qq.com", "localhost", false, "not_found"),
            ("http://x@localhost", "localhost", false, "not_found"),
        ] {
            assert_eq!(read_with(&format!("{address}{path}"), host, is_tls), expected, "{address} {host} {is_tls}");
        }
        assert_eq!(read_with("http://localhost/other", "localhost", false), "not_found");
    }

    #[test]
    fn paths_are_exact() {
        let read = path("/v4/follow/follow_check").expect("a path");
        assert_eq!((read.app, read.name.to_string().as_str()), (None, "follow/follow_check"));
        assert_eq!(path("/apps/main/v4/follow/follow_check").expect("a path").app, Some("main"));
        for bad in [
            "/",
            "",
            "*",
            "/v4",
            "/v4/",
            "/v4/follow",
            "/v4/follow/",
            "/v4/follow/follow_check/",
            "/v4//follow_check",
            "//v4/follow/follow_check",
            "/v4/follow//follow_check",
            "/v4/../v4/follow/follow_check",
            "/v4/follow/%66ollow_check",
            "/v4/follow/follow_check%00",
            "/v4/follow%2Ffollow_check",
            "/v4/follow/follow_check;x",
            "/V4/follow/follow_check",
            "/v4/follow\\follow_check",
            "/v4/follow/follow_check/x",
            "/apps/main",
            "/apps/main/follow/follow_check",
            "/apps/a/b/v4/follow/follow_check",
            "/apps//apps/main/v4/a/b",
            "/v5/follow/follow_check",
        ] {
            assert_eq!(slug(path(bad)), "not_found", "{bad}");
        }
    }

    #[test]
    fn only_post_and_only_our_own_names() {
        let good = "/v4/follow/follow_check";
        assert_eq!(checked("POST", good, &[("host", "gate.internal:99")]), "ok");
        assert_eq!(checked("POST", good, &[("host", "evil")]), "forbidden");
        assert_eq!(checked("POST", good, &[]), "forbidden");
        assert_eq!(checked("POST", good, &[("host", "localhost"), ("host", "localhost")]), "forbidden");
        assert_eq!(checked("POST", good, &[("host", "localhost"), ("origin", "null")]), "forbidden");
        assert_eq!(checked("POST", good, &[("host", "localhost"), ("sec-fetch-site", "none")]), "forbidden");
        for coding in ["gzip, chunked", "chunked, chunked", "identity", ""] {
            let headers = [("host", "localhost"), ("transfer-encoding", coding)];
            assert_eq!(checked("POST", good, &headers), "bad_request", "{coding}");
        }
        let twice = [("host", "localhost"), ("transfer-encoding", "chunked"), ("content-length", "2")];
        assert_eq!(checked("POST", good, &twice), "bad_request");
        assert_eq!(checked("POST", good, &twice[..2]), "ok");
        let length = |length| checked("POST", good, &[("host", "localhost"), ("content-length", length)]);
        assert_eq!([length("2"), length("")], ["ok", "bad_request"]);
        assert_eq!(checked("GET", good, &[("host", "localhost")]), "method_not_allowed");
        assert_eq!(checked("GET", "/x", &[("host", "localhost")]), "not_found");
        assert_eq!(checked("POST", "http://gate.internal/v4/a/b", &[("host", "localhost")]), "not_found");
        assert_eq!(checked("CONNECT", "gate.internal:443", &[("host", "localhost")]), "method_not_allowed");
        let long = format!("{good}?{}", "x".repeat(TARGET_LEN_MAX));
        assert_eq!(checked("POST", &long, &[("host", "localhost")]), "uri_too_long");
    }
}
