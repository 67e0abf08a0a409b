//! A seeded simulation of the real code: callers, writers and a Chat under one scripted clock. Each
//! seed is one interleaving, and a failing seed replays exactly. It is larger and longer than what
//! [`model`](super::model) goes through, and tries far less of it.

use std::collections::BTreeMap;

use super::super::cache::CachedPair;
use super::super::fence::Fence;
use super::super::pair::Relation;
use super::tests::{at, pair};
use super::*;
use crate::domain::follow::response::parse_items;

/// A Chat, callers and writers under one scripted clock; the seed decides every step.
struct Simulation {
    random: u64,
    now: u64,
    pending: LookupScheduler,
    fence: Fence,
    /// Kept facts, as a table without a bound, with the version of the pair they are from.
    facts: BTreeMap<usize, (CachedPair, u64)>,
    /// What Chat has: the relation of each pair, and how many writes it has carried out on it.
    chat: Vec<(u8, u64)>,
    /// For each pair: how many writes have been answered to their callers.
    answered: Vec<u64>,
    /// Writes under way, and what they made of each of their pairs once carried out.
    writes: Vec<(Scope, Option<Versions>)>,
    /// Calls under way, with what Chat read for them once it did.
    calls: Vec<(Batch, Option<Reading>)>,
    /// Requests that wait.
    requests: BTreeMap<Ticket, Request>,
    fault: Option<Fault>,
    /// Accounts that one call may carry.
    call_max: usize,
    answered_readers: u64,
}

/// What a write is about.
#[derive(Debug, Clone, Copy)]
enum Scope {
    Pair(usize),
    /// An account deleted: all its pairs.
    User(usize),
    /// A body nobody can read. It changes the pair.
    All(usize),
}

/// A gateway that must be found out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    NoSecondMark,
    /// What is there early is not judged again when the rest is.
    JudgedOnce,
}

/// A reader that waits, as `answer_question` in `src/gateway/follow.rs` has it.
struct Request {
    terms: JoinOptions,
    from: usize,
    slots: Vec<Slot>,
    /// How many slots are not settled.
    left: usize,
}

/// One pair of it, and what it has: when that was sent and from which version it is.
#[derive(Clone, Copy)]
struct Slot {
    to: usize,
    known: Option<(Tick, u64)>,
}

/// Pairs, and how many writes each includes.
type Versions = Vec<(usize, u64)>;
/// For each account of a call: the relation, and how many writes it includes.
type Reading = Vec<(u8, u64)>;

const USERS: [&str; 4] = ["ann", "bob", "cyd", "dan"];

fn ends(index: usize) -> (usize, usize) {
    [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)][index]
}

fn index(a: &str, b: &str) -> usize {
    let at = |name: &str| USERS.iter().position(|user| *user == name).expect("a user");
    let (a, b) = (at(a).min(at(b)), at(a).max(at(b)));
    (0..6).find(|index| ends(*index) == (a, b)).expect("a pair")
}

impl Simulation {
    fn new(seed: u64, fault: Option<Fault>) -> Self {
        Self {
            random: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            now: 1,
            pending: LookupScheduler::new(!seed.is_multiple_of(5)),
            fence: Fence::default(),
            facts: BTreeMap::new(),
            chat: vec![(0, 0); 6],
            answered: vec![0; 6],
            writes: Vec::new(),
            calls: Vec::new(),
            requests: BTreeMap::new(),
            fault,
            call_max: if seed.is_multiple_of(2) { 2 } else { 100 },
            answered_readers: 0,
        }
    }

    fn below(&mut self, bound: usize) -> usize {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random % bound as u64) as usize
    }

    /// The promise: what is said of a pair includes every write that was answered.
    fn check(&self, index: usize, version: u64) -> Result<(), String> {
        if version < self.answered[index] {
            return Err(format!("pair {index}: from version {version}, {} answered", self.answered[index]));
        }
        Ok(())
    }

    fn step(&mut self) -> Result<(), String> {
        self.now += self.below(2) as u64;
        match self.below(10) {
            0 | 1 => self.ask()?,
            2 => self.send(),
            3 => self.chat_reads(),
            4 => self.finish()?,
            5 => {
                let scope = self.scope();
                self.mark(scope);
                self.now += 1;
                self.writes.push((scope, None));
            }
            6 => self.chat_writes(),
            7 => self.end_write(),
            8 => self.event(),
            _ => {
                if let Some(ticket) = self.requests.keys().next().copied()
                    && self.below(4) == 0
                {
                    self.pending.cancel(ticket);
                    self.requests.remove(&ticket);
                }
            }
        }
        Ok(())
    }

    fn send(&mut self) {
        if let Some(call) = self.pending.next_batch(self.call_max, at(self.now)) {
            self.now += 1;
            self.calls.push((call, None));
        }
    }

    fn scope(&mut self) -> Scope {
        match self.below(8) {
            0 => Scope::User(self.below(4)),
            1 => Scope::All(self.below(6)),
            _ => Scope::Pair(self.below(6)),
        }
    }

    fn mark(&self, scope: Scope) {
        match scope {
            Scope::Pair(index) => {
                let (a, b) = ends(index);
                self.fence.mark_pair(pair(USERS[a], USERS[b]).key(), at(self.now));
            }
            Scope::User(user) => self.fence.mark_user(pair(USERS[user], USERS[user]).from, at(self.now)),
            Scope::All(_) => self.fence.mark_all(at(self.now)),
        }
    }

    fn ask(&mut self) -> Result<(), String> {
        let from = self.below(4);
        let mut slots: Vec<Slot> = (0..4).filter(|to| *to != from).map(|to| Slot { to, known: None }).collect();
        let keep = 1 + self.below(3);
        slots.truncate(keep);
        let fresh = self.below(6);
        let terms = JoinOptions { caller: QueueKey(self.below(2) as u64), join: fresh > 1, keep: fresh != 0 };
        for slot in slots.iter_mut().filter(|_| terms.join) {
            let (from, to) = (USERS[from], USERS[slot.to]);
            let fact = self.facts.get(&index(from, to));
            let usable = fact.filter(|(fact, _)| self.fence.admits(pair(from, to), fact.sent));
            slot.known = usable.map(|(fact, version)| (fact.sent, *version));
        }
        self.judge(Request { terms, from, slots, left: 0 })
    }

    /// Drops what is void by now, and answers or asks for what is missing.
    fn judge(&mut self, mut request: Request) -> Result<(), String> {
        let from = USERS[request.from];
        for slot in &mut request.slots {
            let admits = |(sent, _): &(Tick, u64)| self.fence.admits(pair(from, USERS[slot.to]), *sent);
            if self.fault != Some(Fault::JudgedOnce) {
                slot.known = slot.known.filter(admits);
            }
        }
        let mut wanted = Vec::new();
        for (number, slot) in request.slots.iter().enumerate() {
            let to = USERS[slot.to];
            if slot.known.is_none() {
                wanted.push(Wanted { pair: pair(from, to), from, to, slot: number });
            }
        }
        if wanted.is_empty() {
            for slot in &request.slots {
                let version = slot.known.map_or(0, |(_, version)| version);
                self.check(index(from, USERS[slot.to]), version)?;
            }
            self.answered_readers += 1;
            return Ok(());
        }
        request.left = wanted.len();
        let fence = &self.fence;
        let new = self.pending.new_among(request.terms, &wanted, |pair| fence.last_mark(pair));
        let (ticket, joined) =
            self.pending.enqueue(request.terms, &wanted, |pair| fence.last_mark(pair)).expect("room");
        assert_eq!(new, joined.iter().filter(|joined| !**joined).count(), "it foretells what is not joined");
        self.requests.insert(ticket, request);
        Ok(())
    }

    fn chat_reads(&mut self) {
        let waiting: Vec<usize> = (0..self.calls.len()).filter(|at| self.calls[*at].1.is_none()).collect();
        if waiting.is_empty() {
            return;
        }
        let which = waiting[self.below(waiting.len())];
        let call = &self.calls[which].0;
        let read = call.to.iter().map(|to| self.chat[index(&call.from, to)]).collect();
        self.calls[which].1 = Some(read);
    }

    fn finish(&mut self) -> Result<(), String> {
        let ready: Vec<usize> = (0..self.calls.len()).filter(|at| self.calls[*at].1.is_some()).collect();
        if ready.is_empty() {
            return Ok(());
        }
        let which = ready[self.below(ready.len())];
        let (call, read) = self.calls.remove(which);
        let read = read.expect("ready");
        let kind = self.below(8);
        let items: Vec<_> = call
            .to
            .iter()
            .zip(&read)
            .map(|(to, (relation, _))| {
                let turned = call.from > *to;
                let relation = Relation::new(i64::from(*relation)).expect("0 to 3");
                let relation = if turned { relation.flipped() } else { relation };
                let code = if kind == 0 && self.random.is_multiple_of(3) { 30003 } else { 0 };
                serde_json::json!({"To_Account": &**to, "ResultCode": code, "FollowType": relation.number()})
            })
            .collect();
        let body = serde_json::json!({"ResultItem": items, "ErrorCode": 0}).to_string();
        let items = parse_items(body.as_bytes()).expect("items");
        let outcome = match kind {
            1 => BatchOutcome::RefusedArguments,
            2 => BatchOutcome::Failed,
            _ => BatchOutcome::Answered(&items),
        };
        let fence = &self.fence;
        let (settlements, kept) = self.pending.complete(call.id, &outcome, |pair| fence.last_mark(pair));
        let version_of = |wanted: Pair| {
            call.to.iter().zip(&read).find_map(|(to, (_, version))| {
                (pair(&call.from, to).key() == wanted.key()).then(|| (index(&call.from, to), *version))
            })
        };
        for CacheablePair { pair, fact, .. } in kept {
            let (index, version) = version_of(pair).expect("asked for");
            self.facts.insert(index, (fact, version));
        }
        let mut refused = Vec::new();
        for WaiterResult { ticket, slot, settled } in settlements {
            // Who was refused just now hears no more.
            if refused.contains(&ticket) {
                continue;
            }
            let request = self.requests.get_mut(&ticket).ok_or("settled after it left")?;
            let from = USERS[request.from];
            let slot = &mut request.slots[slot];
            let wanted = index(from, USERS[slot.to]);
            let read = call.to.iter().zip(&read).find(|(to, _)| index(&call.from, to) == wanted);
            let (_, (_, version)) = read.ok_or("settled by a call that did not ask for it")?;
            if slot.known.is_some() {
                return Err("settled twice".to_owned());
            }
            slot.known = match settled {
                PairResult::Known { fact, .. } => Some((fact.sent, *version)),
                PairResult::Verbatim(_, sent) => Some((sent, *version)),
                PairResult::Malformed | PairResult::Failed => {
                    self.pending.cancel(ticket);
                    self.requests.remove(&ticket);
                    refused.push(ticket);
                    continue;
                }
            };
            request.left -= 1;
            if request.left == 0
                && let Some(request) = self.requests.remove(&ticket)
            {
                self.pending.cancel(ticket);
                self.judge(request)?;
            }
        }
        Ok(())
    }

    fn chat_writes(&mut self) {
        let waiting: Vec<usize> = (0..self.writes.len()).filter(|at| self.writes[*at].1.is_none()).collect();
        if waiting.is_empty() {
            return;
        }
        let which = waiting[self.below(waiting.len())];
        self.writes[which].1 = Some(self.carry_out(self.writes[which].0));
    }

    /// Chat changes pairs; says which, and the version they have then.
    fn carry_out(&mut self, scope: Scope) -> Versions {
        let pairs: Vec<usize> = match scope {
            Scope::Pair(index) | Scope::All(index) => vec![index],
            Scope::User(user) => (0..6).filter(|index| ends(*index).0 == user || ends(*index).1 == user).collect(),
        };
        let mut versions = Vec::new();
        for index in pairs {
            let relation = self.below(4) as u8;
            let (_, version) = self.chat[index];
            self.chat[index] = (relation, version + 1);
            versions.push((index, version + 1));
        }
        versions
    }

    /// What was changed past the gateway, and is then told to it.
    fn event(&mut self) {
        let scope = self.scope();
        let versions = self.carry_out(scope);
        if self.fault != Some(Fault::NoSecondMark) {
            self.mark(scope);
        }
        self.bind(&versions);
    }

    fn end_write(&mut self) {
        if self.writes.is_empty() {
            return;
        }
        let which = self.below(self.writes.len());
        let (scope, versions) = self.writes.remove(which);
        if self.fault != Some(Fault::NoSecondMark) {
            self.mark(scope);
        }
        // A write given up may never have been carried out; one that was, is answered now.
        self.bind(&versions.unwrap_or_default());
    }

    fn bind(&mut self, versions: &[(usize, u64)]) {
        for (index, version) in versions {
            self.answered[*index] = self.answered[*index].max(*version);
        }
    }

    /// Runs to the end of all calls; every request that has not left must be settled.
    fn run(seed: u64, fault: Option<Fault>) -> Result<u64, String> {
        let mut simulation = Self::new(seed, fault);
        for _ in 0..120 {
            simulation.step()?;
        }
        for _ in 0..400 {
            simulation.now += 1;
            simulation.send();
            simulation.chat_reads();
            simulation.finish()?;
        }
        if !simulation.requests.is_empty() || simulation.pending.waiting() > 0 {
            return Err(format!("{} requests were never settled", simulation.requests.len()));
        }
        let pending = simulation.pending;
        let empty = pending.edges.is_empty() && pending.nodes.is_empty() && pending.joinable.is_empty();
        if !empty || !pending.queues.is_empty() || !pending.turns.is_empty() || !pending.calls.is_empty() {
            return Err("something is left behind".to_owned());
        }
        Ok(simulation.answered_readers)
    }
}

#[test]
fn in_thousands_of_interleavings_nobody_is_answered_from_before_an_answered_write() {
    let mut answered = 0;
    for seed in 1..=4000 {
        answered += Simulation::run(seed, None).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    }
    assert!(answered > 40_000, "the simulation answers too few to prove anything: {answered}");
}

#[test]
fn the_simulation_catches_faulty_gateways() {
    for fault in [Fault::NoSecondMark, Fault::JudgedOnce] {
        let caught = (1..=4000).any(|seed| Simulation::run(seed, Some(fault)).is_err());
        assert!(caught, "{fault:?}");
    }
}
