//! One call to the simulator: checked, counted, executed, recorded, and answered, or hit by a fault.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::time::Duration;

use bytes::Bytes;
use http::request::Parts;
use http::{Method, StatusCode};
use parking_lot::{Mutex, MutexGuard};
use serde_json::{Map, Value};
use tracing::debug;

use super::auth::{AppAccount, CallQuery};
use super::chat_error::ChatError;
use super::commands::Simulation;
use super::connection::Connection;
use super::faults::{AppliedFault, FaultKind, Faults, ItemFault};
use super::graph::{Graph, GraphHandle, SeedGraph};
use super::journal::{self, Journal, Parameter, RecordedBody, RecordedCall};
use super::rate_limit::RateLimits;
use super::skew::SkewedClock;
use super::webhook::{EventSource, Webhook, WebhookQueue};
use crate::clock;
use crate::domain::chat::command::{CommandName, KnownCommand};
use crate::domain::chat::envelope;

const BAD_HTTP: i64 = 60002;
const BAD_JSON: i64 = 60003;
const RATE_LIMITED: i64 = 60007;
const UNKNOWN_RESOURCE: i64 = 60009;
const GROUP_UNKNOWN_COMMAND: i64 = 10003;

/// The state that all calls of a simulator share.
pub(super) struct SimulatedChat {
    pub(super) account: AppAccount,
    pub(super) clock: SkewedClock,
    pub(super) graph: GraphHandle,
    faults: Mutex<Faults>,
    journal: Mutex<Journal>,
    rates: Mutex<RateLimits>,
    latency: Duration,
    seed: SeedGraph,
    webhooks: Option<WebhookQueue>,
}

/// What a simulator consists of; `seed` was validated.
pub(super) struct SimulatedChatParts {
    pub(super) account: AppAccount,
    pub(super) qps: NonZeroU32,
    pub(super) latency: Duration,
    pub(super) seed: SeedGraph,
    pub(super) clock: SkewedClock,
    pub(super) webhooks: Option<WebhookQueue>,
}

/// A call whose headers have arrived.
pub(super) struct Arrival {
    query: CallQuery,
    checked: Result<&'static KnownCommand, ChatError>,
    at: Duration,
}

/// A response, and the fault that hits it on its way.
pub(super) struct SimulatedResponse {
    pub(super) status: StatusCode,
    pub(super) content_type: &'static str,
    pub(super) body: Bytes,
    /// `Reset`, `Truncate`, or `Drop`; the other faults are part of the response already.
    pub(super) fault: Option<FaultKind>,
    pub(super) latency: Duration,
}

impl SimulatedChat {
    /// Creates a simulator with the administrator and the seed as its first users.
    pub(super) fn new(parts: SimulatedChatParts) -> Self {
        let SimulatedChatParts { account, qps, latency, seed, clock, webhooks } = parts;
        let chat = Self {
            account,
            clock,
            graph: GraphHandle::default(),
            faults: Mutex::default(),
            journal: Mutex::default(),
            rates: Mutex::new(RateLimits::new(qps)),
            latency,
            seed,
            webhooks,
        };
        chat.reset();
        chat
    }

    /// Restores the initial state of graph, clock, faults, rate limits, and journal.
    pub(super) fn reset(&self) {
        self.clock.set(0);
        self.faults().clear();
        self.rates.lock().reset();
        self.journal().reset();
        let mut fresh = Graph::default();
        let administrator =
            SeedGraph { users: vec![self.account.identifier.as_str().to_owned()], ..SeedGraph::default() };
        let at = self.clock.unix_now().as_secs();
        for seed in [&administrator, &self.seed] {
            // The seed was validated when the sandbox was bound, so this cannot fail.
            let _ = fresh.seed(seed, at);
        }
        *self.graph.lock() = fresh;
    }

    /// Checks and counts a call by its headers. Called as soon as they have arrived, so that a slow body does not
    /// change the measured rate.
    pub(super) fn arrive(&self, head: &Parts) -> Arrival {
        let query = CallQuery::read(head.uri.query().unwrap_or_default());
        let checked = self.check(head, &query);
        Arrival { query, checked, at: clock::unix_now() }
    }

    /// Executes a call unless an error or a fault prevents it, and records it in the journal.
    pub(super) fn answer(
        &self,
        head: &Parts,
        body: &Bytes,
        arrival: Arrival,
        connection: &Connection,
    ) -> SimulatedResponse {
        let Arrival { query, checked, at } = arrival;
        let checked = checked.and_then(|known| object(body).map(|object| (known.name, object)));
        let name = command_of(head);
        let fault = name.and_then(|name| self.faults().take(name, checked.is_err(), fastrand::f64()));
        let kind = fault.as_ref().and_then(|fault| fault.kind.as_ref());
        let (error_code, response) = match (checked, kind) {
            (Err(error), _) => (Some(error.code), error.envelope()),
            (Ok(_), Some(FaultKind::ErrorCode(code))) => (Some(*code), envelope::write(*code, "injected fault")),
            (Ok(_), Some(FaultKind::Status(_))) => (None, b"<html><body>injected fault</body></html>\n".to_vec()),
            (Ok((name, object)), _) => match self.execute(name, &object, item_fault(kind), connection) {
                Ok(body) => (Some(0), body),
                Err(error) => (Some(error.code), error.envelope()),
            },
        };
        self.record(head, body, &query, Recorded { error_code, fault: fault.as_ref(), connection, at });
        let (status, content_type) = match kind {
            Some(FaultKind::Status(status)) if error_code.is_none() => (*status, "text/html"),
            _ => (StatusCode::OK, "application/json"),
        };
        let on_the_way = [FaultKind::Reset, FaultKind::Truncate, FaultKind::Drop];
        SimulatedResponse {
            status,
            content_type,
            body: response.into(),
            fault: kind.filter(|kind| on_the_way.contains(kind)).cloned(),
            latency: self.latency + fault.as_ref().map_or(Duration::ZERO, |fault| fault.latency),
        }
    }

    pub(super) fn faults(&self) -> MutexGuard<'_, Faults> {
        self.faults.lock()
    }

    pub(super) fn journal(&self) -> MutexGuard<'_, Journal> {
        self.journal.lock()
    }

    fn check(&self, head: &Parts, query: &CallQuery) -> Result<&'static KnownCommand, ChatError> {
        let name = command_of(head);
        let known = name.and_then(|name| name.known());
        if let Some(known) = known {
            let mut journal = self.journal();
            // The clock is read under the lock, so that the times never decrease.
            journal.count(known.name, clock::now());
        }
        if head.method != Method::POST {
            return Err(ChatError::new(BAD_HTTP, "method not allowed; use POST"));
        }
        let Some(known) = known else {
            return Err(match name {
                Some(name) if name.service() == "group_open_http_svc" => {
                    ChatError::new(GROUP_UNKNOWN_COMMAND, "unknown command")
                }
                Some(_) => ChatError::new(UNKNOWN_RESOURCE, "unknown service or command"),
                None => ChatError::new(UNKNOWN_RESOURCE, "the path is not /v4/SERVICE/COMMAND"),
            });
        };
        query.check(&self.account, self.clock.unix_now().as_secs())?;
        let (decision, limit) = {
            let mut rates = self.rates.lock();
            (rates.admit(known.name, clock::now()), rates.limit())
        };
        if let (Some(count), Some(webhooks)) = (decision.alert, &self.webhooks) {
            webhooks.post(Webhook::rate_alert(known.name, count, limit));
        }
        if !decision.admitted {
            return Err(ChatError::new(RATE_LIMITED, format!("{} exceeds {limit} calls per second", known.name)));
        }
        Ok(known)
    }

    fn execute(
        &self,
        name: CommandName<'_>,
        body: &Map<String, Value>,
        item_fault: Option<&ItemFault>,
        connection: &Connection,
    ) -> Result<Vec<u8>, ChatError> {
        let now = self.clock.unix_now();
        let mut graph = self.graph.lock();
        let mut simulation = Simulation { graph: &mut graph, now_secs: now.as_secs(), item_fault };
        let result = simulation.execute(name, body)?;
        if let (Some(event), Some(webhooks)) = (&result.event, &self.webhooks) {
            let administrator = &self.account.identifier;
            let source = EventSource { client_ip: connection.peer.ip(), at: now, administrator };
            // Still under the lock, so that webhooks are sent in the order of the changes.
            webhooks.post(Webhook::event(event, source));
        }
        Ok(result.body)
    }

    fn record(&self, head: &Parts, body: &Bytes, query: &CallQuery, recorded: Recorded<'_>) {
        let name = command_of(head);
        let kind = recorded.fault.and_then(|fault| fault.kind.as_ref()).map(FaultKind::name);
        let error_code = recorded.error_code;
        debug!(command = %name.map(|name| name.to_string()).unwrap_or_default(), error_code, fault = kind, "call");
        self.journal().push(RecordedCall {
            service: name.map(|name| name.service().to_owned()),
            command: name.map(|name| name.command().to_owned()),
            method: head.method.to_string(),
            path: query.redact(head.uri.path()),
            error_code,
            fault: kind.or(recorded.fault.map(|_| "latency_ms")),
            sdkappid: query.sdkappid.value.as_ref().map(|text| Parameter::read(text)),
            identifier: query.identifier.value.as_ref().map(|text| text.as_str().to_owned()),
            random: query.random.value.as_ref().map(|text| Parameter::read(text)),
            body: RecordedBody::read(query.redact(&String::from_utf8_lossy(body))),
            body_bytes: body.len(),
            body_sha256: journal::sha256(body),
            headers: headers(head, query),
            protocol: format!("{:?}", head.version),
            connection: recorded.connection.id,
            at_ms: u64::try_from(recorded.at.as_millis()).unwrap_or(u64::MAX),
        });
    }
}

/// What the journal records of a call in addition to its request.
struct Recorded<'a> {
    error_code: Option<i64>,
    fault: Option<&'a AppliedFault>,
    connection: &'a Connection,
    at: Duration,
}

fn item_fault(kind: Option<&FaultKind>) -> Option<&ItemFault> {
    match kind {
        Some(FaultKind::Items(fault)) => Some(fault),
        _ => None,
    }
}

/// Returns the command that a path names, known or not.
fn command_of(head: &Parts) -> Option<CommandName<'_>> {
    CommandName::parse(head.uri.path().strip_prefix("/v4/")?).ok()
}

fn object(body: &[u8]) -> Result<Map<String, Value>, ChatError> {
    serde_json::from_slice(body).map_err(|_| ChatError::new(BAD_JSON, "the body is not a JSON object"))
}

/// Returns the headers as text, with repeated ones joined. Over HTTP/2 the authority becomes `host`.
fn headers(head: &Parts, query: &CallQuery) -> BTreeMap<String, String> {
    let mut headers = BTreeMap::<String, String>::new();
    if let Some(authority) = head.uri.authority() {
        headers.insert("host".into(), query.redact(authority.as_str()));
    }
    for (name, value) in &head.headers {
        let value = query.redact(&String::from_utf8_lossy(value.as_bytes()));
        let joined = headers.entry(name.to_string()).or_default();
        if !joined.is_empty() {
            joined.push_str(", ");
        }
        joined.push_str(&value);
    }
    headers
}
