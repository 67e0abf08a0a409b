//! One call to the stand-in: judged, counted, written down, carried out, answered or spoilt.

use std::num::NonZeroU32;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::request::Parts;
use http::{Method, StatusCode};
use serde_json::{Map, Value};
use tracing::debug;

use super::auth::{Account, Query};
use super::commands;
use super::faults::{Faults, Kind};
use super::graph::{GraphHandle, SeedGraph};
use super::journal::{self, Call, Journal, Parameter};
use super::link::Link;
use super::rate::Rates;
use super::refusal::Refusal;
use super::skew::SkewedClock;
use super::webhook::{Notice, Webhooks};
use crate::clock;
use crate::domain::chat::command::{CommandName, KnownCommand};
use crate::domain::chat::envelope;

const BAD_HTTP: i64 = 60002;
const BAD_JSON: i64 = 60003;
const RATE_LIMITED: i64 = 60007;
const UNKNOWN_RESOURCE: i64 = 60009;
const GROUP_UNKNOWN_COMMAND: i64 = 10003;

/// Everything that the calls of a sandbox share.
pub(super) struct Chat {
    pub(super) account: Account,
    pub(super) clock: SkewedClock,
    pub(super) graph: GraphHandle,
    faults: Mutex<Faults>,
    journal: Mutex<Journal>,
    rates: Mutex<Rates>,
    latency: Duration,
    seed: SeedGraph,
    webhooks: Option<Webhooks>,
}

/// A call whose head has come.
pub(super) struct Arrival {
    query: Query,
    verdict: Result<&'static KnownCommand, Refusal>,
    at: Duration,
}

/// What the caller gets, and what happens to it on the way.
pub(super) struct Outcome {
    pub(super) status: StatusCode,
    pub(super) content_type: &'static str,
    pub(super) body: Bytes,
    /// `Reset`, `Truncate` or `Drop`; the others have made the answer already.
    pub(super) fault: Option<Kind>,
    pub(super) latency: Duration,
}

impl Chat {
    /// With the administrator and the seed as the first users.
    pub(super) fn new(
        account: Account,
        qps: NonZeroU32,
        latency: Duration,
        seed: SeedGraph,
        clock: SkewedClock,
        webhooks: Option<Webhooks>,
    ) -> Self {
        let chat = Self {
            account,
            clock,
            graph: GraphHandle::default(),
            faults: Mutex::default(),
            journal: Mutex::default(),
            rates: Mutex::new(Rates::new(qps)),
            latency,
            seed,
            webhooks,
        };
        chat.reset();
        chat
    }

    /// Back to how it began: graph, clock, faults, rates and journal.
    pub(super) fn reset(&self) {
        self.clock.set(0);
        self.faults().clear();
        self.rates().reset();
        self.journal().reset();
        let mut fresh = super::graph::Graph::default();
        let first = SeedGraph { users: vec![self.account.identifier.as_str().to_owned()], edges: Vec::new() };
        let at = self.clock.unix_now().as_secs();
        for seed in [&first, &self.seed] {
            // The seed was taken once when the sandbox was bound, so it is taken again.
            let _ = fresh.seed(seed, at);
        }
        *self.graph.lock() = fresh;
    }

    /// Judges and counts a call by its head. Called as soon as the head is there, so that the rate is
    /// that at which calls came, however slow their bodies are.
    pub(super) fn arrive(&self, head: &Parts) -> Arrival {
        let query = Query::read(head.uri.query().unwrap_or_default());
        let verdict = self.judge(head, &query);
        Arrival { query, verdict, at: clock::unix_now() }
    }

    /// Carries a call out, or not, and writes it down.
    pub(super) fn answer(&self, head: &Parts, body: &Bytes, arrival: Arrival, link: &Link) -> Outcome {
        let Arrival { query, verdict, at } = arrival;
        let checked = verdict.and_then(|known| object(body).map(|object| (known.name, object)));
        let name = command_of(head);
        let hit = name.and_then(|name| self.faults().take(name, checked.is_err(), fastrand::f64()));
        let fault = hit.and_then(|hit| hit.kind);
        let (error_code, body_out) = match (checked, fault) {
            (Err(refusal), _) => (Some(refusal.code), envelope::write(refusal.code, &refusal.info)),
            (Ok(_), Some(Kind::ErrorCode(code))) => (Some(code), envelope::write(code, "a fault on order")),
            (Ok(_), Some(Kind::Status(_))) => (None, b"<html><body>a fault on order</body></html>\n".to_vec()),
            (Ok((name, object)), _) => match self.carry_out(name, &object, link) {
                Ok(body) => (Some(0), body),
                Err(refusal) => (Some(refusal.code), envelope::write(refusal.code, &refusal.info)),
            },
        };
        debug!(command = %name.map(|name| name.to_string()).unwrap_or_default(), error_code, fault = fault.map(Kind::name), "call");
        self.journal().push(Call {
            service: name.map(|name| name.service().to_owned()),
            command: name.map(|name| name.command().to_owned()),
            method: head.method.to_string(),
            path: query.mask(head.uri.path()),
            error_code,
            fault: fault.map(Kind::name).or(hit.map(|_| "latency_ms")),
            sdkappid: query.sdkappid.value.as_ref().map(|text| Parameter::read(text)),
            identifier: query.identifier.value.as_ref().map(|text| text.as_str().to_owned()),
            random: query.random.value.as_ref().map(|text| Parameter::read(text)),
            body: journal::Body::read(query.mask(&String::from_utf8_lossy(body))),
            body_bytes: body.len(),
            body_sha256: journal::sha256(body),
            headers: headers(head, &query),
            protocol: format!("{:?}", head.version),
            connection: link.id,
            at_ms: u64::try_from(at.as_millis()).unwrap_or(u64::MAX),
        });
        let (status, content_type) = match fault {
            Some(Kind::Status(status)) if error_code.is_none() => (status, "text/html"),
            _ => (StatusCode::OK, "application/json"),
        };
        let fault = fault.filter(|kind| matches!(kind, Kind::Reset | Kind::Truncate | Kind::Drop));
        let latency = self.latency + hit.map_or(Duration::ZERO, |hit| hit.latency);
        Outcome { status, content_type, body: body_out.into(), fault, latency }
    }

    pub(super) fn faults(&self) -> MutexGuard<'_, Faults> {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn journal(&self) -> MutexGuard<'_, Journal> {
        self.journal.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn rates(&self) -> MutexGuard<'_, Rates> {
        self.rates.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn judge(&self, head: &Parts, query: &Query) -> Result<&'static KnownCommand, Refusal> {
        let name = command_of(head);
        let known = name.and_then(|name| name.known());
        if let Some(known) = known {
            let mut journal = self.journal();
            // Read under the lock, so that times never go back.
            journal.count(known.name, clock::now());
        }
        if head.method != Method::POST {
            return Err(Refusal::new(BAD_HTTP, "only POST is understood"));
        }
        let Some(known) = known else {
            return Err(match name {
                Some(name) if name.service() == "group_open_http_svc" => {
                    Refusal::new(GROUP_UNKNOWN_COMMAND, "no such command")
                }
                Some(_) => Refusal::new(UNKNOWN_RESOURCE, "no such service or command"),
                None => Refusal::new(UNKNOWN_RESOURCE, "the path is not /v4/SERVICE/COMMAND"),
            });
        };
        query.check(&self.account, self.clock.unix_now().as_secs())?;
        let (admission, limit) = {
            let mut rates = self.rates();
            (rates.admit(known.name, clock::now()), rates.limit())
        };
        if let (Some(count), Some(webhooks)) = (admission.alarm, &self.webhooks) {
            webhooks.post(Notice::of_rate(known.name, count, limit));
        }
        if !admission.admitted {
            return Err(Refusal::new(RATE_LIMITED, format!("{} was called over {limit} times a second", known.name)));
        }
        Ok(known)
    }

    fn carry_out(&self, name: CommandName<'_>, body: &Map<String, Value>, link: &Link) -> Result<Vec<u8>, Refusal> {
        let now = self.clock.unix_now();
        let mut graph = self.graph.lock();
        let reply = commands::carry_out(name, &mut graph, body, now.as_secs())?;
        if let (Some(event), Some(webhooks)) = (&reply.event, &self.webhooks) {
            // Still under the lock: webhooks leave in the order of the changes they tell of.
            webhooks.post(Notice::of_event(event, link.peer.ip(), now));
        }
        Ok(reply.body)
    }
}

/// The command that a path names, known or not.
fn command_of(head: &Parts) -> Option<CommandName<'_>> {
    CommandName::parse(head.uri.path().strip_prefix("/v4/")?).ok()
}

fn object(body: &[u8]) -> Result<Map<String, Value>, Refusal> {
    serde_json::from_slice(body).map_err(|_| Refusal::new(BAD_JSON, "the body is not a JSON object"))
}

/// Headers as text, repeats joined; over HTTP/2 the authority stands as `host`.
fn headers(head: &Parts, query: &Query) -> std::collections::BTreeMap<String, String> {
    let mut headers = std::collections::BTreeMap::<String, String>::new();
    if let Some(authority) = head.uri.authority() {
        headers.insert("host".into(), query.mask(authority.as_str()));
    }
    for (name, value) in &head.headers {
        let value = query.mask(&String::from_utf8_lossy(value.as_bytes()));
        let joined = headers.entry(name.to_string()).or_default();
        if !joined.is_empty() {
            joined.push_str(", ");
        }
        joined.push_str(&value);
    }
    headers
}
