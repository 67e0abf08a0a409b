//! The gateway's side, event by event, and what must hold.

use std::collections::{BTreeMap, VecDeque};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use super::Random;
use super::chat::{Chat, FAULTS_END};
use super::figures::Totals;
use crate::domain::chat::app::{SdkAppId, SecretKey};
use crate::domain::chat::command::{CommandKind, CommandName, FOLLOW_CHECK};
use crate::domain::policy::call::{CallSession, ResponseSeen, RetryDecision};
use crate::domain::policy::failover::{Failover, Side};
use crate::domain::policy::outcome::{AttemptOutcome, Effect, allows_stale};
use crate::domain::policy::parking;
use crate::domain::policy::parking::{Parking, ParkingChange};
use crate::domain::policy::retry_budget::RetryBudget;
use crate::domain::policy::stale_gate;
use crate::domain::policy::stale_gate::StaleGate;
use crate::domain::tick::Tick;
use crate::limits::{AdaptiveLimit, pace};
use crate::upstream::signer::{Signature, Signer};

const TIMEOUT: Duration = Duration::from_secs(5);
const ATTEMPT_TIMEOUT: Duration = Duration::from_millis(3500);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
const ATTEMPTS: u32 = 3;
const RESERVE: Duration = Duration::from_millis(250);
const PER_SECOND: u32 = 20;
/// From then on nothing of the faults may be felt: silence is a minute, all else shorter.
const HEALED: Duration = Duration::from_secs(FAULTS_END.as_secs() + 66);
const END: Duration = Duration::from_secs(HEALED.as_secs() + 20);

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Seen(AttemptOutcome),
    Parked,
    /// No permit, or no connection, before the deadline.
    Late,
    /// An older fact stood in.
    Stale,
}

struct Request {
    name: CommandName<'static>,
    deadline: Tick,
    session: CallSession<'static>,
    last: Option<AttemptOutcome>,
    calls: u32,
    carried_out: u32,
    end: Option<End>,
}

#[derive(Clone)]
enum Event {
    Arrive,
    /// Parked or not, pause or not, then a connection.
    Way(usize),
    Connect(usize),
    /// Where to, and whether on a new connection; `None`: nowhere.
    Connected(usize, Option<(Side, bool)>),
    Permit(usize, Side),
    Done(usize, Side, Arc<Signature>, AttemptOutcome, Tick),
    Probed(bool),
}

pub(super) struct World {
    now: Tick,
    begin: Tick,
    random: Random,
    chat: Chat,
    events: BTreeMap<(Tick, u64), Event>,
    numbers: u64,
    requests: Vec<Request>,
    parking: Parking,
    failover: Failover,
    sickness: StaleGate,
    budget: RetryBudget,
    learned: AdaptiveLimit,
    next_permit: Tick,
    signer: Signer,
    /// Whether a connection to a side is kept.
    kept: [bool; 2],
    watch: Watch,
    figures: Totals,
    trace: Option<String>,
}

/// What the promises are judged by.
#[derive(Default)]
struct Watch {
    /// The calls of the last second.
    recent: VecDeque<Tick>,
    /// Since when the app is parked, and when it was last probed.
    app_parked: Option<Tick>,
    /// The same of each command.
    command_parked: BTreeMap<String, Tick>,
    silent_until: Option<Tick>,
    /// While sick: when somebody who could do without last asked.
    sick_probe: Option<Tick>,
}

const COMMANDS: [&str; 3] = ["openim/sendmsg", "openim/querystate", "profile/portrait_get"];

impl World {
    /// Runs a schedule to its end, or says what does not hold, with all that happened before if wanted.
    pub(super) fn run(seed: u64, trace: bool) -> Result<Totals, String> {
        let mut world = Self::new(seed, trace);
        let result = world.go();
        result.map_err(|broken| format!("{broken}\n{}", world.trace.unwrap_or_default()))?;
        Ok(world.figures)
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
            numbers: 1,
            requests: Vec::new(),
            parking: Parking::default(),
            failover: Failover::new(!random.one_in(4)),
            sickness: StaleGate::default(),
            budget: RetryBudget::new(0.1),
            learned: AdaptiveLimit::new(PER_SECOND),
            next_permit: Tick::NEVER,
            signer,
            kept: [false; 2],
            watch: Watch::default(),
            figures: Totals { schedules: 1, ..Totals::default() },
            trace: trace.then(String::new),
            random,
        }
    }

    fn go(&mut self) -> Result<(), String> {
        while let Some(((at, _), event)) = self.events.pop_first() {
            self.now = at;
            self.happen(event)?;
        }
        if let Some(open) = self.requests.iter().position(|request| request.end.is_none()) {
            return Err(format!("request {open} was never answered"));
        }
        let retries = self.figures.requests / 10 + 10;
        holds(self.figures.tried_again <= retries, || format!("{} further attempts", self.figures.tried_again))?;
        holds(self.failover.side() == Side::Primary, || "the standby serves for ever".to_owned())
    }

    fn at(&mut self, after: Duration, event: Event) {
        self.events.insert((self.now.after(after), self.numbers), event);
        self.numbers += 1;
    }

    fn say(&mut self, what: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            *trace += &format!("{:>9.3} s  {}\n", self.now.since(self.begin).as_secs_f64(), what());
        }
    }

    fn happen(&mut self, event: Event) -> Result<(), String> {
        match event {
            Event::Arrive => self.arrive(),
            Event::Way(id) => self.set_out(id),
            Event::Connect(id) => self.connect(id),
            Event::Connected(id, None) => {
                self.failover.on_failed(self.now);
                self.over(id, AttemptOutcome::NotSent, None)
            }
            Event::Connected(id, Some((side, is_new))) => {
                if is_new {
                    self.failover.on_connected(side, self.now);
                }
                self.wait_for_permit(id, side)
            }
            Event::Permit(id, side) => self.send(id, side),
            Event::Done(id, side, signature, seen, sent) => {
                if matches!(seen, AttemptOutcome::Answer(_)) {
                    self.kept[side as usize] = true;
                }
                self.heed(id, seen, sent)?;
                self.over(id, seen, Some(signature))
            }
            Event::Probed(answered) => {
                if self.failover.on_probe(answered) {
                    self.say(|| "back to the primary".to_owned());
                }
                Ok(())
            }
        }
    }

    fn arrive(&mut self) -> Result<(), String> {
        let since = self.now.since(self.begin);
        // Dense while things go wrong, sparse while they heal.
        let pause = if since < FAULTS_END { 20 + self.random.below(5000) } else { 2500 };
        if since < END {
            self.at(Duration::from_millis(pause), Event::Arrive);
        }
        let burst = if since < FAULTS_END && self.random.one_in(16) { 24 } else { 1 };
        for _ in 0..burst {
            let is_check = self.random.one_in(3);
            let name = match is_check {
                true => FOLLOW_CHECK,
                false => CommandName::parse(COMMANDS[self.random.below(3) as usize]).expect("a name"),
            };
            let session = CallSession::new(name, name.kind(), ATTEMPTS, &self.budget);
            let deadline = self.now.after(TIMEOUT);
            // A lookup that an older fact could answer.
            let has_older = is_check && self.random.one_in(2);
            let request = Request { name, deadline, session, last: None, calls: 0, carried_out: 0, end: None };
            self.requests.push(request);
            self.figures.requests += 1;
            let id = self.requests.len() - 1;
            if has_older {
                let was_sick = self.watch.sick_probe.is_some();
                if self.sickness.should_serve_stale(self.now) {
                    self.figures.answered_from_older_facts += 1;
                    self.end(id, End::Stale)?;
                    continue;
                }
                if was_sick {
                    let last = self.watch.sick_probe.replace(self.now).unwrap_or(Tick::NEVER);
                    self.figures.probes_of_the_sick += 1;
                    holds(self.now.since(last) >= stale_gate::PROBE_EVERY, || "a sick Chat is not spared".to_owned())?;
                }
            }
            self.set_out(id)?;
        }
        Ok(())
    }

    fn latest(&self, id: usize) -> Tick {
        Tick::from_micros(self.requests[id].deadline.micros() - RESERVE.as_micros() as u64)
    }

    /// As `Worker::way` begins.
    fn set_out(&mut self, id: usize) -> Result<(), String> {
        if self.requests[id].session.check(&self.parking, self.now).is_err() {
            return self.hindered(id, End::Parked);
        }
        if self.failover.start_probe(self.now) {
            let (answered, after) = self.chat.connect(Side::Primary, self.now, CONNECT_TIMEOUT);
            self.at(after, Event::Probed(answered));
        }
        let pause = self.failover.pause(self.now);
        if self.now.after(pause) > self.latest(id) {
            return self.hindered(id, End::Late);
        }
        self.at(pause, Event::Connect(id));
        Ok(())
    }

    /// As `Upstream::connect`: this side, then the other.
    fn connect(&mut self, id: usize) -> Result<(), String> {
        let (mut side, mut took) = (self.failover.side(), Duration::ZERO);
        let mut found = None;
        for _ in 0..if self.failover.has_standby() { 2 } else { 1 } {
            let moment = self.now.after(took);
            let (is_there, after) = self.chat.connect(side, moment, CONNECT_TIMEOUT);
            if self.kept[side as usize] && is_there {
                found = Some((side, false));
                break;
            }
            self.kept[side as usize] = false;
            took += after;
            if is_there {
                found = Some((side, true));
                break;
            }
            side = side.other();
        }
        let latest = self.latest(id);
        if self.now.after(took) > latest {
            let left = latest.since(self.now);
            self.now = self.now.after(left);
            return self.hindered(id, End::Late);
        }
        self.at(took, Event::Connected(id, found));
        Ok(())
    }

    fn wait_for_permit(&mut self, id: usize, side: Side) -> Result<(), String> {
        let wait = self.next_permit.since(self.now);
        if self.now.after(wait) > self.latest(id) {
            return self.hindered(id, End::Late);
        }
        // Taken now, so that nobody else takes it: a line with one place.
        self.learned.on_tick(self.now);
        let limit = NonZeroU32::new(self.learned.limit()).ok_or("a limit of 0")?;
        holds(limit.get() <= PER_SECOND, || format!("a limit of {limit}"))?;
        let (burst, interval) = pace(limit);
        let credit = interval.saturating_mul(burst.get() - 1);
        let earliest = Tick::from_micros(self.now.micros().saturating_sub(credit.as_micros() as u64));
        self.next_permit = self.next_permit.max(earliest).after(interval);
        self.at(wait, Event::Permit(id, side));
        Ok(())
    }

    /// As `Worker::travel` from the permit to the socket.
    fn send(&mut self, id: usize, side: Side) -> Result<(), String> {
        let name = self.requests[id].name;
        if self.requests[id].session.admit(&mut self.parking, self.now).is_err() {
            return self.hindered(id, End::Parked);
        }
        self.watch_call(name)?;
        if side == Side::Standby {
            self.figures.served_by_standby += 1;
        }
        let signature = self.signer.current(Duration::from_micros(self.now.micros()));
        let fate = self.chat.call(&signature, self.now, &mut self.random);
        let request = &mut self.requests[id];
        request.calls += 1;
        request.carried_out += u32::from(fate.carried_out);
        let bound = ATTEMPT_TIMEOUT.min(request.deadline.since(self.now));
        let (seen, after) =
            if fate.after < bound { (fate.seen, fate.after) } else { (AttemptOutcome::TimedOut, bound) };
        let (calls, is_write) = (request.calls, name.kind() == CommandKind::Write);
        let carried_out = request.carried_out;
        self.say(|| format!("request {id} {name}: call {calls} to {side:?}, in {after:?} {seen:?}"));
        holds(calls <= ATTEMPTS + 1, || format!("request {id} became {calls} calls"))?;
        holds(!is_write || carried_out <= 1, || format!("write {id} was carried out {carried_out} times"))?;
        self.at(after, Event::Done(id, side, signature, seen, self.now));
        Ok(())
    }

    /// What must hold of a call that leaves.
    fn watch_call(&mut self, name: CommandName<'static>) -> Result<(), String> {
        let (now, watch) = (self.now, &mut self.watch);
        self.figures.calls += 1;
        watch.recent.retain(|at| now.since(*at) <= Duration::from_secs(1));
        watch.recent.push_back(now);
        holds(watch.recent.len() <= PER_SECOND as usize, || format!("{} calls in a second", watch.recent.len()))?;
        holds(watch.silent_until.is_none_or(|until| now >= until), || "the silence was broken".to_owned())?;
        let own = watch.command_parked.get_mut(&name.to_string());
        for last in watch.app_parked.iter_mut().chain(own) {
            let gap = now.since(*last);
            holds(gap >= parking::PROBE_EVERY, || format!("what is parked was asked after {gap:?}"))?;
            *last = now;
            self.figures.probes_of_the_parked += 1;
        }
        Ok(())
    }

    /// As `App::heed`.
    fn heed(&mut self, id: usize, seen: AttemptOutcome, sent: Tick) -> Result<(), String> {
        let AttemptOutcome::Answer(code) = seen else { return Ok(()) };
        let (name, now) = (self.requests[id].name, self.now);
        let session = &self.requests[id].session;
        let effect = session.effect(code);
        if effect == Effect::SlowDown {
            self.learned.on_throttled(now);
            self.next_permit = self.next_permit.max(now.after(pace(NonZeroU32::MIN).1 / self.learned.limit().max(1)));
        }
        let response = ResponseSeen { code, info: "", sent, received: now };
        let change = session.on_response(response, &mut self.parking);
        self.say(|| format!("answer {code} to {name}: {effect:?}, {change:?}"));
        let watch = &mut self.watch;
        match change {
            ParkingChange::None => {}
            ParkingChange::App(_) if effect == Effect::Lockout => {
                watch.silent_until = Some(now.after(parking::LOCKOUT));
                watch.app_parked = None;
            }
            ParkingChange::App(_) => watch.app_parked = Some(now),
            ParkingChange::Command(_) => {
                watch.app_parked = None;
                watch.command_parked.insert(name.to_string(), now);
            }
            ParkingChange::Lifted => {
                watch.app_parked = None;
                watch.command_parked.remove(&name.to_string());
            }
        }
        // Not every change is told: what is over is over.
        watch.app_parked = watch.app_parked.filter(|_| self.parking.app(now).is_some());
        Ok(())
    }

    /// An attempt is over, as in `Worker::travel`.
    fn over(&mut self, id: usize, seen: AttemptOutcome, signature: Option<Arc<Signature>>) -> Result<(), String> {
        let left = self.latest(id).since(self.now);
        let random = self.random.next() as u32;
        self.requests[id].last = Some(seen);
        match self.requests[id].session.on_outcome(seen, left, random, &self.budget) {
            RetryDecision::Return => self.end(id, End::Seen(seen)),
            RetryDecision::RetryWithFreshSignature => {
                let refused = signature.ok_or("nothing was signed, and refused")?;
                let fresh = self.signer.after_rejection(&refused, Duration::from_micros(self.now.micros()));
                let Some(fresh) = fresh else { return self.end(id, End::Seen(seen)) };
                self.figures.signed_again += 1;
                holds(!Arc::ptr_eq(&fresh, &refused), || "the refused signature again".to_owned())?;
                self.set_out(id)
            }
            RetryDecision::RetryAfter(pause) => {
                self.figures.tried_again += 1;
                self.at(pause, Event::Way(id));
                Ok(())
            }
        }
    }

    fn hindered(&mut self, id: usize, why: End) -> Result<(), String> {
        let end = self.requests[id].last.map_or(why, End::Seen);
        self.end(id, end)
    }

    /// The caller has its answer.
    fn end(&mut self, id: usize, end: End) -> Result<(), String> {
        self.say(|| format!("request {id}: {end:?}"));
        let (now, since) = (self.now, self.now.since(self.begin));
        if self.requests[id].name == FOLLOW_CHECK && end != End::Stale {
            let failed = match end {
                End::Seen(AttemptOutcome::Answer(code)) => allows_stale(code),
                _ => true,
            };
            self.sickness.record(failed, now);
            self.watch.sick_probe = failed.then(|| self.watch.sick_probe.unwrap_or(now));
        }
        let request = &mut self.requests[id];
        let again = request.end.replace(end);
        holds(again.is_none(), || format!("request {id} was answered twice"))?;
        holds(now <= request.deadline, || format!("request {id} was answered after its deadline"))?;
        let (is_write, carried_out) = (request.name.kind() == CommandKind::Write, request.carried_out);
        if is_write {
            let fits = match end {
                End::Seen(AttemptOutcome::Answer(0)) => carried_out == 1,
                End::Seen(AttemptOutcome::NotSent) | End::Parked | End::Late | End::Stale => carried_out == 0,
                End::Seen(AttemptOutcome::Answer(code)) if !matches!(code, 60008 | 30006 | 90994 | 123_456) => {
                    carried_out == 0
                }
                End::Seen(_) => {
                    self.figures.carried_out_unknown += u64::from(carried_out);
                    carried_out <= 1
                }
            };
            holds(fits, || format!("write {id}: {end:?}, and it was carried out {carried_out} times"))?;
        }
        self.figures.answered_parked += u64::from(end == End::Parked);
        self.figures.answered_late += u64::from(end == End::Late);
        let is_well = matches!(end, End::Seen(AttemptOutcome::Answer(0)) | End::Stale);
        holds(since < HEALED + TIMEOUT || is_well, || format!("request {id} found it not healed: {end:?}"))
    }
}

fn holds(holds: bool, otherwise: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(otherwise()) }
}
