//! A seeded simulation of the real code: callers, writers and a Chat under one scripted clock. Each
//! seed is one interleaving, and a failing seed replays exactly.

use std::collections::BTreeMap;

use super::super::facts::Fact;
use super::super::fence::Fence;
use super::super::pair::FollowType;
use super::tests::{at, pair, terms, wanted};
use super::*;
use crate::domain::follow::answer::Items;

/// A Chat, callers and writers under one scripted clock; the seed decides every step.
struct Simulation {
    random: u64,
    now: u64,
    pending: Pending,
    fence: Fence,
    /// Kept facts, as a table without a bound, with the version of the pair they are from.
    facts: BTreeMap<usize, (Fact, u64)>,
    /// What Chat has: the relation of each pair, and how many writes it has carried out on it.
    chat: Vec<(u8, u64)>,
    /// For each pair: how many writes have been answered to their callers.
    answered: Vec<u64>,
    /// Writes under way: pair, version once carried out.
    writes: Vec<(usize, Option<u64>)>,
    /// Calls under way, with what Chat read for them once it did.
    calls: Vec<(Call, Option<Reading>)>,
    /// Requests that wait: how many pairs are left, and which pair each slot is.
    tickets: BTreeMap<Ticket, (usize, Vec<usize>)>,
    second_mark: bool,
    settled: u64,
}

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
    fn new(seed: u64, second_mark: bool) -> Self {
        Self {
            random: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            now: 1,
            pending: Pending::new(!seed.is_multiple_of(5)),
            fence: Fence::default(),
            facts: BTreeMap::new(),
            chat: vec![(0, 0); 6],
            answered: vec![0; 6],
            writes: Vec::new(),
            calls: Vec::new(),
            tickets: BTreeMap::new(),
            second_mark,
            settled: 0,
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
        match self.below(9) {
            0 | 1 => self.ask()?,
            2 => {
                if let Some(call) = self.pending.next_call(2, at(self.now)) {
                    self.now += 1;
                    self.calls.push((call, None));
                }
            }
            3 => self.chat_reads(),
            4 => self.finish()?,
            5 => {
                let index = self.below(6);
                self.mark(index);
                self.now += 1;
                self.writes.push((index, None));
            }
            6 => self.chat_writes(),
            7 => self.end_write(),
            _ => {
                if let Some(ticket) = self.tickets.keys().next().copied()
                    && self.below(4) == 0
                {
                    self.pending.leave(ticket);
                    self.tickets.remove(&ticket);
                }
            }
        }
        Ok(())
    }

    fn mark(&self, index: usize) {
        let (a, b) = ends(index);
        self.fence.mark_pair(pair(USERS[a], USERS[b]).key(), at(self.now));
    }

    fn ask(&mut self) -> Result<(), String> {
        let from = self.below(4);
        let mut names: Vec<&str> = (0..4).filter(|to| *to != from).map(|to| USERS[to]).collect();
        let keep = 1 + self.below(3);
        names.truncate(keep);
        let mut missing = Vec::new();
        for name in names {
            let index = index(USERS[from], name);
            match self.facts.get(&index) {
                Some((fact, version)) if self.fence.admits(pair(USERS[from], name), fact.sent) => {
                    self.check(index, *version)?;
                }
                _ => missing.push(name),
            }
        }
        if !missing.is_empty() {
            let caller = CallerId(self.below(2) as u64);
            let wanted = wanted(USERS[from], &missing);
            let fence = &self.fence;
            let (ticket, _) = self.pending.ask(terms(caller), &wanted, |pair| fence.last_mark(pair)).expect("room");
            let slots = missing.iter().map(|name| index(USERS[from], name)).collect();
            self.tickets.insert(ticket, (missing.len(), slots));
        }
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
                let relation = FollowType::new(i64::from(*relation)).expect("0 to 3");
                let relation = if turned { relation.reversed() } else { relation };
                let code = if kind == 0 && self.random.is_multiple_of(3) { 30003 } else { 0 };
                serde_json::json!({"To_Account": &**to, "ResultCode": code, "FollowType": relation.number()})
            })
            .collect();
        let body = serde_json::json!({"ResultItem": items, "ErrorCode": 0}).to_string();
        let items = Items::read(body.as_bytes()).expect("items");
        let outcome = match kind {
            1 => Outcome::RefusedArguments,
            2 => Outcome::Failed,
            _ => Outcome::Answered(&items),
        };
        let fence = &self.fence;
        let (settlements, kept) = self.pending.finish(call.id, &outcome, |pair| fence.last_mark(pair));
        let version_of = |wanted: Pair| {
            call.to.iter().zip(&read).find_map(|(to, (_, version))| {
                (pair(&call.from, to).key() == wanted.key()).then(|| (index(&call.from, to), *version))
            })
        };
        for (pair, fact) in kept {
            let (index, version) = version_of(pair).expect("asked for");
            self.facts.insert(index, (fact, version));
        }
        for settlement in settlements {
            let waiting = self.tickets.get_mut(&settlement.ticket).ok_or("settled twice, or after it left")?;
            waiting.0 -= 1;
            let (left, wanted) = (waiting.0, waiting.1[settlement.slot]);
            if left == 0 {
                self.tickets.remove(&settlement.ticket);
                self.pending.leave(settlement.ticket);
            }
            self.settled += 1;
            let known = matches!(settlement.settled, Settled::Fact { .. } | Settled::Verbatim(..));
            let read = call.to.iter().zip(&read).find(|(to, _)| index(&call.from, to) == wanted);
            let (_, (_, version)) = read.ok_or("settled by a call that did not ask for it")?;
            if known {
                self.check(wanted, *version)?;
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
        let index = self.writes[which].0;
        let relation = self.below(4) as u8;
        let (_, version) = self.chat[index];
        self.chat[index] = (relation, version + 1);
        self.writes[which].1 = Some(version + 1);
    }

    fn end_write(&mut self) {
        if self.writes.is_empty() {
            return;
        }
        let which = self.below(self.writes.len());
        let (index, version) = self.writes.remove(which);
        if self.second_mark {
            self.mark(index);
        }
        // A write given up may never have been carried out; one that was, is answered now.
        if let Some(version) = version {
            self.answered[index] = self.answered[index].max(version);
        }
    }

    /// Runs to the end of all calls; every request that has not left must be settled.
    fn run(seed: u64, second_mark: bool) -> Result<u64, String> {
        let mut simulation = Self::new(seed, second_mark);
        for _ in 0..120 {
            simulation.step()?;
        }
        for _ in 0..400 {
            simulation.now += 1;
            if let Some(call) = simulation.pending.next_call(2, at(simulation.now)) {
                simulation.now += 1;
                simulation.calls.push((call, None));
            }
            simulation.chat_reads();
            simulation.finish()?;
        }
        if !simulation.tickets.is_empty() || simulation.pending.waiting() > 0 {
            return Err(format!("{} requests were never settled", simulation.tickets.len()));
        }
        let pending = simulation.pending;
        let empty = pending.edges.is_empty() && pending.nodes.is_empty() && pending.joinable.is_empty();
        if !empty || !pending.queues.is_empty() || !pending.turns.is_empty() || !pending.calls.is_empty() {
            return Err("something is left behind".to_owned());
        }
        Ok(simulation.settled)
    }
}

#[test]
fn in_thousands_of_interleavings_nobody_is_answered_from_before_an_answered_write() {
    let mut settled = 0;
    for seed in 1..=4000 {
        settled += Simulation::run(seed, true).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    }
    assert!(settled > 40_000, "the simulation settles too little to prove anything: {settled}");
}

#[test]
fn the_simulation_catches_a_fence_without_the_second_mark() {
    let caught = (1..=4000).filter(|seed| Simulation::run(*seed, false).is_err()).count();
    assert!(caught > 0);
}
