//! Request targets and headers: one line each for the path, the query, Host and Cache-Control.

use chatgate::gateway::cache_control;
use chatgate::gateway::query::Query;
use chatgate::gateway::route;
use chatgate::http::headers::RequestHeaders;
use chatgate::http::host::{Hosts, check_host};
use chatgate::http::peer::Peer;
use http::{HeaderMap, HeaderValue, Request};
use percent_encoding::percent_decode_str;

/// Parameters that are never forwarded to Chat.
const OURS: [&str; 5] = ["sdkappid", "identifier", "usersig", "random", "contenttype"];

/// Reads each line with its parser.
pub fn run(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let mut lines = text.split('\n');
    path(lines.next().unwrap_or_default());
    query(lines.next().unwrap_or_default());
    host(lines.next().unwrap_or_default());
    wishes(lines.next().unwrap_or_default());
}

fn path(text: &str) {
    let segment = |text: &str| {
        (1..=64).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
    };
    let app_name = |text: &str| {
        (1..=32).contains(&text.len())
            && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
    };
    let parts: Vec<&str> = text.split('/').collect();
    let sound = match parts.as_slice() {
        ["", "v4", service, command] => segment(service) && segment(command),
        ["", "apps", app, "v4", service, command] => app_name(app) && segment(service) && segment(command),
        _ => false,
    };
    let read = route::path(text);
    assert_eq!(read.is_ok(), sound, "{text:?}");
    if let Ok(read) = read {
        let app = read.app.map_or_else(String::new, |app| format!("/apps/{app}"));
        assert_eq!(format!("{app}/v4/{}", read.name), text);
    }
}

fn query(text: &str) {
    let decode = |text: &str| {
        let decoded = percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned();
        decoded.trim().to_owned()
    };
    let parts = text.split('&').filter(|part| !part.is_empty());
    let pairs: Vec<(String, String)> = parts
        .map(|part| part.split_once('=').unwrap_or((part, "")))
        .map(|(name, value)| (decode(name).to_lowercase(), decode(value)))
        .collect();
    let ours = pairs.iter().all(|(name, _)| OURS.contains(&name.as_str()));
    let read = Query::read(text);
    assert_eq!(read.check().is_ok(), ours, "{text:?}");
    for (name, values) in [("sdkappid", read.sdkappid), ("identifier", read.identifier), ("usersig", read.usersig)] {
        let theirs: Vec<&str> = pairs.iter().filter(|(theirs, _)| theirs == name).map(|(_, value)| &**value).collect();
        assert_eq!(values.iter().map(str::trim).collect::<Vec<_>>(), theirs);
    }
}

fn host(text: &str) {
    let Ok(value) = HeaderValue::from_str(text) else { return };
    let request = Request::post("/v4/follow/follow_check").header("host", value).body(()).expect("a request");
    let (head, ()) = request.into_parts();
    let hosts = Hosts::new(&["gate.internal".to_owned(), "[fd00::7]".to_owned()]);
    let peer = Peer::Tcp { local: std::net::Ipv4Addr::new(10, 1, 2, 3).into() };
    if check_host(&head, &RequestHeaders::of(&head.headers), &hosts, peer).is_err() {
        return;
    }
    // A second reader: an accepted Host is one of these names, with or without a port.
    let (name, port) = match text.rfind(':') {
        Some(colon) if !text.ends_with(']') => (&text[..colon], Some(&text[colon + 1..])),
        _ => (text, None),
    };
    assert!(port.is_none_or(|port| port.parse::<u16>().is_ok()), "{text:?}");
    let name = name.to_ascii_lowercase();
    let bare = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(&name);
    let is_ours = match bare.parse::<std::net::IpAddr>() {
        Ok(ip) => {
            let ip = ip.to_canonical();
            ip.is_loopback() || ip.to_string() == "10.1.2.3" || ip.to_string() == "fd00::7"
        }
        Err(_) => bare == "localhost" || bare == "gate.internal",
    };
    assert!(is_ours, "{text:?} was accepted");
}

fn wishes(text: &str) {
    let Ok(value) = HeaderValue::from_str(text) else { return };
    let read = |headers: &[(&'static str, HeaderValue)]| {
        cache_control::read(&HeaderMap::from_iter(
            headers.iter().map(|(name, value)| (http::HeaderName::from_static(name), value.clone())),
        ))
    };
    let wishes = read(&[("cache-control", value.clone())]);
    // An unreadable directive is ignored, never taken for another.
    let has = |name: &str| text.to_ascii_lowercase().contains(name);
    assert!(!wishes.no_cache || has("no-cache"));
    assert!(!wishes.no_store || has("no-store"));
    assert!(!wishes.only_if_cached || has("only-if-cached"));
    assert!(wishes.max_age.is_none() || has("max-age"));
    assert!(wishes.max_stale.is_none() || has("max-stale"));
    // A directive applies regardless of the order of the lines.
    let no_store = read(&[("cache-control", value), ("cache-control", HeaderValue::from_static("no-store"))]);
    assert!(no_store.no_store && !no_store.may_join());
}
