//! What is asked of the targets.

use std::net::SocketAddr;
use std::sync::Arc;

use super::load::Load;
use super::targets::Target;

const MEGABYTE: usize = 1024 * 1024;
/// Users who ask, each about contacts of its own.
const ASKERS: usize = 500;
/// Requests a second of the open loop: about half of what a bare server on one processor takes at most.
const OPEN_RATE: f64 = 10_000.0;

/// One kind of requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Work {
    /// A call that is handed on, signed.
    Relay,
    /// The same, over TLS.
    RelayTls,
    /// The same with a megabyte of body, in plain.
    RelayMegabyte,
    /// `follow_check` of so many accounts that are all known.
    Hits(usize),
    /// The same of 10 accounts, at a fixed rate.
    HitsOpen,
}

impl Work {
    pub(crate) const ALL: [Work; 6] =
        [Work::Relay, Work::RelayTls, Work::Hits(10), Work::Hits(100), Work::HitsOpen, Work::RelayMegabyte];

    pub(crate) fn name(self) -> String {
        match self {
            Work::Relay => "relay of a small call".to_owned(),
            Work::RelayTls => "relay of a small call, TLS to Chat".to_owned(),
            Work::RelayMegabyte => "relay of 1 MiB".to_owned(),
            Work::Hits(accounts) => format!("follow_check of {accounts} accounts, all known"),
            Work::HitsOpen => format!("follow_check of 10 accounts, all known, {OPEN_RATE} a second"),
        }
    }

    /// A bare server relays nothing, and haproxy keeps nothing.
    pub(crate) fn is_for(self, target: Target) -> bool {
        match self {
            Work::Relay | Work::RelayTls | Work::RelayMegabyte => true,
            Work::Hits(_) | Work::HitsOpen => target != Target::Haproxy,
        }
    }

    pub(crate) fn is_over_tls(self) -> bool {
        self == Work::RelayTls
    }

    pub(crate) fn connections(self) -> usize {
        if self == Work::RelayMegabyte { 8 } else { 64 }
    }

    /// Requests a second, if that is fixed.
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

    /// What a bare server answers: as much as the others do.
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
        let question = |asker: usize| {
            let to: Vec<_> = (0..self.accounts()).map(|at| format!("\"{}\"", contact(asker, at))).collect();
            let body = format!(r#"{{"From_Account":"user{asker:08}","To_Account":[{}]}}"#, to.join(","));
            request("/v4/follow/follow_check", &body)
        };
        let requests = match self {
            Work::Relay | Work::RelayTls => relayed(&"x".repeat(100)),
            Work::RelayMegabyte => relayed(&"x".repeat(MEGABYTE - 14)),
            Work::Hits(_) | Work::HitsOpen => (0..ASKERS).map(question).collect(),
        };
        Load { requests: Arc::new(requests), expected: b"\"ErrorCode\":0" }
    }
}

/// Ids of 12 bytes.
fn contact(asker: usize, at: usize) -> String {
    format!("user{:08}", 10_000 + asker * 100 + at)
}
