//! The kinds of requests.

use std::net::SocketAddr;
use std::sync::Arc;

use super::load::Load;
use super::targets::Target;

const MEGABYTE: usize = 1024 * 1024;
/// Users as `From_Account`, each with different contacts.
const USERS: usize = 500;
/// Requests per second of the open loop: about half of the maximum of a bare server on one CPU.
const OPEN_RATE: f64 = 10_000.0;

/// A kind of requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Work {
    /// A small call that is signed and relayed.
    Relay,
    /// A small call that is relayed over TLS.
    RelayTls,
    /// A call with a body of 1 MiB, relayed without TLS.
    RelayMegabyte,
    /// `follow_check` of this many accounts, all cached.
    Hits(usize),
    /// `follow_check` of 10 cached accounts, at a fixed rate.
    HitsOpen,
}

impl Work {
    pub(crate) const ALL: [Work; 6] =
        [Work::Relay, Work::RelayTls, Work::Hits(10), Work::Hits(100), Work::HitsOpen, Work::RelayMegabyte];

    pub(crate) fn name(self) -> String {
        match self {
            Work::Relay => "relay".to_owned(),
            Work::RelayTls => "relay, TLS to Chat".to_owned(),
            Work::RelayMegabyte => "relay, 1 MiB".to_owned(),
            Work::Hits(accounts) => format!("{accounts} cached"),
            Work::HitsOpen => format!("10 cached, {OPEN_RATE}/s"),
        }
    }

    /// Returns whether the target supports this work. haproxy has no cache.
    pub(crate) fn is_for(self, target: Target) -> bool {
        match self {
            Work::Relay | Work::RelayTls | Work::RelayMegabyte => true,
            Work::Hits(_) | Work::HitsOpen => target != Target::Haproxy,
        }
    }

    pub(crate) fn uses_tls(self) -> bool {
        self == Work::RelayTls
    }

    /// Returns whether its instructions are counted: a fixed rate does not change them, and a megabyte is copied by the
    /// kernel for the most part.
    pub(crate) fn is_counted(self) -> bool {
        !matches!(self, Work::HitsOpen | Work::RelayMegabyte)
    }

    pub(crate) fn connections(self) -> usize {
        if self == Work::RelayMegabyte { 8 } else { 64 }
    }

    /// Returns the requests per second, if the rate is fixed.
    pub(crate) fn rate(self) -> Option<f64> {
        (self == Work::HitsOpen).then_some(OPEN_RATE)
    }

    fn accounts(self) -> usize {
        match self {
            Work::Hits(accounts) => accounts,
            Work::HitsOpen => 10,
            Work::Relay | Work::RelayTls | Work::RelayMegabyte => 0,
        }
    }

    /// Returns the response of a bare server, which is as long as the responses of the others.
    pub(crate) fn answer(self) -> String {
        let item = |account| format!(r#"{{"To_Account":"{account}","ResultCode":0,"ResultInfo":"","FollowType":0}}"#);
        let items: Vec<_> = (0..self.accounts()).map(|at| item(contact(0, at))).collect();
        let items = items.join(",");
        format!(r#"{{"ResultItem":[{items}],"ActionStatus":"OK","ErrorCode":0,"ErrorInfo":"","ErrorDisplay":""}}"#)
    }

    pub(crate) fn load(self, address: SocketAddr) -> Load {
        let request = |path: &str, body: &str| {
            let head = format!(
                "POST {path} HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
                body.len()
            );
            [head.as_bytes(), body.as_bytes()].concat()
        };
        let relayed = |text: &str| vec![request("/v4/openim/sendmsg", &format!(r#"{{"MsgText":"{text}"}}"#))];
        let check = |user: usize| {
            let to: Vec<_> = (0..self.accounts()).map(|at| format!("\"{}\"", contact(user, at))).collect();
            let body = format!(r#"{{"From_Account":"user{user:08}","To_Account":[{}]}}"#, to.join(","));
            request("/v4/follow/follow_check", &body)
        };
        let requests = match self {
            Work::Relay | Work::RelayTls => relayed(&"x".repeat(100)),
            Work::RelayMegabyte => relayed(&"x".repeat(MEGABYTE - 14)),
            Work::Hits(_) | Work::HitsOpen => (0..USERS).map(check).collect(),
        };
        Load { requests: Arc::new(requests), expected: b"\"ErrorCode\":0" }
    }
}

/// Returns a UserID of 12 bytes.
fn contact(user: usize, at: usize) -> String {
    format!("user{:08}", 10_000 + user * 100 + at)
}
