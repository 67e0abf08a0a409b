//! The gateway's side, event by event.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use super::chat::{Chat, FAULTS_END, may_be_applied};
use super::counts::EventCounts;
use super::watch::Watch;
use super::{Random, holds};
use crate::domain::chat::app::{SdkAppId, SecretKey};
use crate::domain::chat::command::{CommandKind, CommandName, FOLLOW_CHECK};
use crate::domain::policy::call::{CallSession, ResponseSeen, RetryDecision};
use crate::domain::policy::connect::{ConnectSession, ConnectStep};
use crate::domain::policy::failover::{Failover, Side};
use crate::domain::policy::outcome::{AttemptOutcome, Effect, allows_stale};
use crate::domain::policy::parking::Parking;
use crate::domain::policy::proxy::{ConnectFailure, ProxyFailure};
use crate::domain::policy::retry_budget::RetryBudget;
use crate::domain::policy::stale_gate::StaleGate;
use crate::domain::tick::Tick;
use crate::limits::{AdaptiveLimit, pace};
use crate::upstream::signer::{Signature, Signer};

const TIMEOUT: Duration = Duration::from_secs(5);
const ATTEMPT_TIMEOUT: Duration = Duration::from_millis(3500);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
const ATTEMPTS: u32 = 3;
/// The part of a request's time that is reserved for its call.
const RESERVE: Duration = Duration::from_millis(250);
const PER_SECOND: u32 = 20;
/// After this time the faults have no effect any more: a lockout lasts a minute, everything else less.
const HEALED: Duration = Duration::from_secs(FAULTS_END.as_secs() + 66);
const END: Duration = Duration::from_secs(HEALED.as_secs() + 20);
const COMMANDS: [&str; 3] = ["openim/sendmsg", "openim/querystate", "profile/portrait_get"];

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ResponseKind {
    /// With the outcome of its last attempt.
    Outcome(AttemptOutcome),
    Parked,
    /// It got no connection or no permit before the deadline.
    Late,
    /// Stale pairs answered it.
    Stale,
}

struct Request {
    name: CommandName<'static>,
    deadline: Tick,
    session: CallSession<'static>,
    /// The search for a connection of the current attempt.
    connect: Option<ConnectSession>,
    /// The failures of that search so far, in order.
    failures: Vec<ConnectFailure>,
    last: Option<AttemptOutcome>,
    /// Whether its signature was renewed.
    renewed: bool,
    calls: u32,
    /// How often Chat has applied it.
    applied: u32,
    response: Option<ResponseKind>,
}

#[derive(Clone)]
enum Event {
    Arrive,
    StartAttempt(usize),
    /// The pause before connecting has ended.
    Paused(usize),
    Connected {
        id: usize,
        side: Side,
        reused: bool,
    },
    NotConnected(usize, ConnectFailure),
    /// The time for connecting has ended.
    GiveUp(usize),
    Permit(usize, Side),
    AttemptEnded {
        id: usize,
        side: Side,
        signature: Arc<Signature>,
        outcome: AttemptOutcome,
        sent: Tick,
    },
    Probed(Result<(), ConnectFailure>),
}

pub(super) struct World {
    now: Tick,
    begin: Tick,
    random: Random,
    chat: Chat,
    /// Future events by time, then by number.
    events: BTreeMap<(Tick, u64), Event>,
    next_number: u64,
    requests: Vec<Request>,
    parking: Parking,
    failover: Failover,
    stale_gate: StaleGate,
    budget: RetryBudget,
    adaptive: AdaptiveLimit,
    next_permit: Tick,
    signer: Signer,
    /// Whether there is an idle connection to a side.
    idle: [bool; 2],
    watch: Watch,
    counts: EventCounts,
    trace: Option<String>,
}

impl World {
    /// Runs a schedule to its end.
    ///
    /// # Errors
    /// The violation, preceded by all events if `trace` is set.
    pub(super) fn run(seed: u64, trace: bool) -> Result<EventCounts, String> {
        let mut world = Self::new(seed, trace);
        let result = world.run_events();
        result.map_err(|violation| format!("{violation}\n{}", world.trace.unwrap_or_default()))?;
        Ok(world.counts)
    }

    fn new(seed: u64, trace: bool) -> Self {
        let mut random = Random(seed);
        let begin = Tick::from_micros(1_000_000_000);
        let chat = Chat::new(&mut random, begin);
        let app = SdkAppId::new(1_400_000_001).expect("not 0");
        let key = SecretKey::new("a key").expect("not empty");
        let lifetime = Duration::from_secs(24 * 3600);
        let unix_now = Duration::from_micros(begin.micros());
        let signer = Signer::new(app, "administrator".parse().expect("a name"), key, lifetime, unix_now);
        Self {
            now: begin,
            begin,
            chat,
            events: BTreeMap::from([((begin, 0), Event::Arrive)]),
            next_number: 1,
            requests: Vec::new(),
            parking: Parking::default(),
            failover: Failover::new(!random.one_in(4)),
            stale_gate: StaleGate::default(),
            budget: RetryBudget::new(0.1),
            adaptive: AdaptiveLimit::new(PER_SECOND),
            next_permit: Tick::NEVER,
            signer,
            idle: [false; 2],
            watch: Watch::default(),
            counts: EventCounts { schedules: 1, ..EventCounts::default() },
            trace: trace.then(String::new),
            random,
        }
    }

    fn run_events(&mut self) -> Result<(), String> {
        while let Some(((at, _), event)) = self.events.pop_first() {
            self.now = at;
            self.handle(event)?;
        }
        if let Some(open) = self.requests.iter().position(|request| request.response.is_none()) {
            return Err(format!("request {open} never got a response"));
        }
        let EventCounts { requests, retries, .. } = self.counts;
        holds(retries <= requests / 10 + 10, || format!("{retries} retries exceed the budget"))?;
        holds(self.failover.side() == Side::Primary, || "calls never return to the primary domain".to_owned())
    }

    fn schedule(&mut self, after: Duration, event: Event) {
        self.events.insert((self.now.after(after), self.next_number), event);
        self.next_number += 1;
    }

    fn log(&mut self, text: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            *trace += &format!("{:>9.3} s  {}\n", self.now.since(self.begin).as_secs_f64(), text());
        }
    }

    fn handle(&mut self, event: Event) -> Result<(), String> {
        match event {
            Event::Arrive => self.arrive(),
            Event::StartAttempt(id) => self.start_attempt(id),
            Event::Paused(id) => {
                let step = self.requests[id].connect.as_mut().ok_or("no search")?.on_paused(&self.failover);
                self.connect(id, step)
            }
            Event::Connected { id, side, reused } => {
                let connect = self.requests[id].connect.take().ok_or("no search")?;
                if connect.on_connected(reused, &mut self.failover, self.now) {
                    let failures = &self.requests[id].failures;
                    let is_proxy = |failure: &ConnectFailure| matches!(failure, ConnectFailure::Proxy(_));
                    holds(!failures.iter().any(is_proxy), || format!("the proxy moves calls: {failures:?}"))?;
                    self.log(|| format!("calls move to {side:?}"));
                }
                self.wait_for_permit(id, side)
            }
            Event::NotConnected(id, failure) => {
                let request = &mut self.requests[id];
                request.failures.push(failure);
                self.counts.proxy_failures += u64::from(failure != ConnectFailure::Domain);
                let connect = request.connect.as_mut().ok_or("no search")?;
                let step = connect.on_failed(failure, &mut self.failover, self.now);
                self.connect(id, step)
            }
            Event::GiveUp(id) => self.reject(id, ResponseKind::Late),
            Event::Permit(id, side) => self.send(id, side),
            Event::AttemptEnded { id, side, signature, outcome, sent } => {
                if let AttemptOutcome::Answer(code) = outcome {
                    self.idle[side as usize] = true;
                    self.apply_response(id, code, sent);
                }
                self.end_attempt(id, outcome, Some(signature))
            }
            Event::Probed(result) => {
                if self.failover.on_probe(result) {
                    self.log(|| "calls move back to the primary domain".to_owned());
                }
                Ok(())
            }
        }
    }

    /// One request arrives, or a burst of them: many while there are faults, few while they heal.
    fn arrive(&mut self) -> Result<(), String> {
        let since = self.now.since(self.begin);
        let pause = if since < FAULTS_END { 20 + self.random.below(5000) } else { 2500 };
        if since < END {
            self.schedule(Duration::from_millis(pause), Event::Arrive);
        }
        let burst = if since < FAULTS_END && self.random.one_in(16) { 24 } else { 1 };
        (0..burst).try_for_each(|_| self.start_request())
    }

    fn start_request(&mut self) -> Result<(), String> {
        let is_check = self.random.one_in(3);
        let name = match is_check {
            true => FOLLOW_CHECK,
            false => CommandName::parse(COMMANDS[self.random.below(3) as usize]).expect("a name"),
        };
        let has_stale_pairs = is_check && self.random.one_in(2);
        let id = self.requests.len();
        self.requests.push(Request {
            name,
            deadline: self.now.after(TIMEOUT),
            session: CallSession::new(name, name.kind(), ATTEMPTS, &self.budget),
            connect: None,
            failures: Vec::new(),
            last: None,
            renewed: false,
            calls: 0,
            applied: 0,
            response: None,
        });
        self.counts.requests += 1;
        if has_stale_pairs {
            if self.stale_gate.should_serve_stale(self.now) {
                self.counts.stale_responses += 1;
                return self.respond(id, ResponseKind::Stale);
            }
            self.counts.stale_gate_probes += u64::from(self.watch.on_fresh_lookup(self.now)?);
        }
        self.start_attempt(id)
    }

    /// Returns the last moment at which a request may get its permit.
    fn latest_permit(&self, id: usize) -> Tick {
        self.requests[id].deadline.before(RESERVE)
    }

    /// Corresponds to `AppWorker::acquire` in `src/gateway/call.rs`.
    fn start_attempt(&mut self, id: usize) -> Result<(), String> {
        if self.requests[id].session.check(&self.parking, self.now).is_err() {
            return self.reject(id, ResponseKind::Parked);
        }
        let (connect, step) = ConnectSession::start(&mut self.failover, self.now);
        self.requests[id].connect = Some(connect);
        self.requests[id].failures.clear();
        self.connect(id, step)
    }

    /// Takes a step towards a connection, as `Upstream::connect` in `src/upstream/mod.rs` does.
    fn connect(&mut self, id: usize, step: ConnectStep) -> Result<(), String> {
        match step {
            ConnectStep::Probe => {
                let (result, after) = self.chat.connect(Side::Primary, self.now, CONNECT_TIMEOUT);
                self.schedule(after, Event::Probed(result));
                let connect = self.requests[id].connect.as_mut().ok_or("no search")?;
                let step = connect.on_probe_started(&self.failover, self.now);
                self.connect(id, step)
            }
            ConnectStep::Pause(pause) => {
                self.schedule_or_give_up(id, pause, Event::Paused(id));
                Ok(())
            }
            ConnectStep::Connect(side) => {
                let (result, after) = self.chat.connect(side, self.now, CONNECT_TIMEOUT);
                let reused = self.idle[side as usize] && result.is_ok();
                self.idle[side as usize] = reused;
                let after = if reused { Duration::ZERO } else { after };
                let event = match result {
                    Ok(()) => Event::Connected { id, side, reused },
                    Err(failure) => Event::NotConnected(id, failure),
                };
                self.schedule_or_give_up(id, after, event);
                Ok(())
            }
            // As `AttemptError::outcome` in `src/upstream/attempt.rs` says it of the first failure.
            ConnectStep::Fail => match self.requests[id].failures.first() {
                Some(ConnectFailure::Proxy(failure)) if *failure != ProxyFailure::Unreachable => {
                    self.end_attempt(id, AttemptOutcome::ProxyRejected, None)
                }
                _ => self.end_attempt(id, AttemptOutcome::NotSent, None),
            },
        }
    }

    /// Schedules an event, or gives the request up if the event would be too late.
    fn schedule_or_give_up(&mut self, id: usize, after: Duration, event: Event) {
        let left = self.latest_permit(id).since(self.now);
        if after > left {
            self.schedule(left, Event::GiveUp(id));
        } else {
            self.schedule(after, event);
        }
    }

    fn wait_for_permit(&mut self, id: usize, side: Side) -> Result<(), String> {
        let wait = self.next_permit.since(self.now);
        if self.now.after(wait) > self.latest_permit(id) {
            return self.reject(id, ResponseKind::Late);
        }
        // The permit is taken now, so that no other request takes it: a queue of one.
        self.adaptive.on_tick(self.now);
        let limit = NonZeroU32::new(self.adaptive.limit()).ok_or("a limit of 0")?;
        holds(limit.get() <= PER_SECOND, || format!("a limit of {limit}"))?;
        let (burst, interval) = pace(limit);
        let credit = interval.saturating_mul(burst.get() - 1);
        self.next_permit = self.next_permit.max(self.now.before(credit)).after(interval);
        self.schedule(wait, Event::Permit(id, side));
        Ok(())
    }

    /// Sends a call that has its permit. Corresponds to `AppWorker::attempt` in `src/gateway/call.rs`.
    fn send(&mut self, id: usize, side: Side) -> Result<(), String> {
        let name = self.requests[id].name;
        if self.requests[id].session.admit(&mut self.parking, self.now).is_err() {
            return self.reject(id, ResponseKind::Parked);
        }
        self.counts.calls += 1;
        self.counts.standby_calls += u64::from(side == Side::Standby);
        self.counts.parking_probes += self.watch.on_call(name, self.now, PER_SECOND)?;
        let signature = self.signer.current(Duration::from_micros(self.now.micros()));
        let fate = self.chat.call(&signature, self.now, &mut self.random);
        let request = &mut self.requests[id];
        request.calls += 1;
        request.applied += u32::from(fate.applied);
        let (calls, applied) = (request.calls, request.applied);
        let timeout = ATTEMPT_TIMEOUT.min(request.deadline.since(self.now));
        let (outcome, after) =
            if fate.after < timeout { (fate.outcome, fate.after) } else { (AttemptOutcome::TimedOut, timeout) };
        self.log(|| format!("request {id} {name}: call {calls} to {side:?}, after {after:?} {outcome:?}"));
        holds(calls <= ATTEMPTS + 1, || format!("request {id} made {calls} calls"))?;
        let is_write = name.kind() == CommandKind::Write;
        holds(!is_write || applied <= 1, || format!("write {id} was applied {applied} times"))?;
        self.schedule(after, Event::AttemptEnded { id, side, signature, outcome, sent: self.now });
        Ok(())
    }

    /// Corresponds to `App::on_response` in `src/gateway/call.rs`.
    fn apply_response(&mut self, id: usize, code: i64, sent: Tick) {
        let Request { name, session, .. } = &self.requests[id];
        let (name, now, effect) = (*name, self.now, session.effect(code));
        let response = ResponseSeen { code, info: "", sent, received: now };
        let change = session.on_response(response, &mut self.parking);
        if effect == Effect::SlowDown {
            self.adaptive.on_throttled(now);
            let pause = pace(NonZeroU32::MIN).1 / self.adaptive.limit().max(1);
            self.next_permit = self.next_permit.max(now.after(pause));
        }
        self.log(|| format!("response {code} to {name}: {effect:?}, {change:?}"));
        self.watch.on_change(&change, effect, name, now);
        if self.parking.app(now).is_none() {
            self.watch.on_app_not_parked();
        }
    }

    /// Corresponds to the end of the loop of `AppWorker::call` in `src/gateway/call.rs`.
    fn end_attempt(
        &mut self,
        id: usize,
        outcome: AttemptOutcome,
        signature: Option<Arc<Signature>>,
    ) -> Result<(), String> {
        let left = self.latest_permit(id).since(self.now);
        let random = self.random.next() as u32;
        let request = &mut self.requests[id];
        request.last = Some(outcome);
        match request.session.on_outcome(outcome, left, random, &self.budget) {
            RetryDecision::Return => self.respond(id, ResponseKind::Outcome(outcome)),
            RetryDecision::RetryWithFreshSignature => {
                let is_first = !std::mem::replace(&mut request.renewed, true);
                holds(is_first, || format!("request {id} renews its signature twice"))?;
                let rejected = signature.ok_or("a rejected signature, but nothing was signed")?;
                let fresh = self.signer.after_rejection(&rejected, Duration::from_micros(self.now.micros()));
                let Some(fresh) = fresh else { return self.respond(id, ResponseKind::Outcome(outcome)) };
                self.counts.renewed_signatures += 1;
                holds(!Arc::ptr_eq(&fresh, &rejected), || "the rejected signature was used again".to_owned())?;
                self.start_attempt(id)
            }
            RetryDecision::RetryAfter(pause) => {
                self.counts.retries += 1;
                self.schedule(pause, Event::StartAttempt(id));
                Ok(())
            }
        }
    }

    /// Ends a request that may not make another attempt. If it has made one, its caller gets that outcome.
    fn reject(&mut self, id: usize, reason: ResponseKind) -> Result<(), String> {
        let response = self.requests[id].last.map_or(reason, ResponseKind::Outcome);
        self.respond(id, response)
    }

    fn respond(&mut self, id: usize, response: ResponseKind) -> Result<(), String> {
        self.log(|| format!("request {id}: {response:?}"));
        let now = self.now;
        if self.requests[id].name == FOLLOW_CHECK && response != ResponseKind::Stale {
            let failed = match response {
                ResponseKind::Outcome(AttemptOutcome::Answer(code)) => allows_stale(code),
                _ => true,
            };
            self.stale_gate.record(failed, now);
            self.watch.on_lookup(failed, now);
        }
        let request = &mut self.requests[id];
        let earlier = request.response.replace(response);
        holds(earlier.is_none(), || format!("request {id} got two responses"))?;
        holds(now <= request.deadline, || format!("request {id} got its response after its deadline"))?;
        self.counts.parked_responses += u64::from(response == ResponseKind::Parked);
        self.counts.late_responses += u64::from(response == ResponseKind::Late);
        if self.requests[id].name.kind() == CommandKind::Write {
            self.check_write(id, response)?;
        }
        let is_success = matches!(response, ResponseKind::Outcome(AttemptOutcome::Answer(0)) | ResponseKind::Stale);
        let may_fail = now.since(self.begin) < HEALED + TIMEOUT;
        holds(may_fail || is_success, || format!("request {id} fails after the faults have ended: {response:?}"))
    }

    /// Checks that the response to a write does not contradict what Chat did.
    fn check_write(&mut self, id: usize, response: ResponseKind) -> Result<(), String> {
        let applied = self.requests[id].applied;
        let fits = match response {
            ResponseKind::Outcome(AttemptOutcome::Answer(0)) => applied == 1,
            ResponseKind::Outcome(AttemptOutcome::NotSent | AttemptOutcome::ProxyRejected)
            | ResponseKind::Parked
            | ResponseKind::Late
            | ResponseKind::Stale => applied == 0,
            ResponseKind::Outcome(AttemptOutcome::Answer(code)) if !may_be_applied(code) => applied == 0,
            ResponseKind::Outcome(_) => {
                self.counts.writes_applied_with_error += u64::from(applied);
                applied <= 1
            }
        };
        holds(fits, || format!("write {id}: {response:?}, but it was applied {applied} times"))
    }
}
