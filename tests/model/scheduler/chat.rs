//! The simulated Chat: one relation of a few pairs, and what it has read for calls.

use std::collections::BTreeMap;

use serde_json::json;

use super::super::Batch;
use super::Call;
use crate::domain::pairs::pair::{Relation, Sides};
use crate::domain::relation::RelationKind;
use crate::domain::tick::Tick;

pub(super) const USERS: [&str; 4] = ["ann", "bob", "cyd", "dan"];
/// All pairs of [`USERS`]; the relation of a pair is seen from its first user.
pub(super) const PAIRS: [(usize, usize); 6] = [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)];

/// The state of a pair.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct PairState {
    relation: u8,
    /// The number of writes that Chat has applied to the pair.
    pub version: u64,
}

impl PairState {
    /// Returns the relation seen from one of the pair's users.
    pub(super) fn seen_from(self, from: usize, to: usize) -> Relation {
        let relation = Relation::new(self.relation.into()).expect("two bits");
        if from < to { relation } else { relation.flipped() }
    }
}

#[derive(Default)]
pub(super) struct Chat {
    pairs: [PairState; 6],
    /// What was read, by pair and by the moment when the call was sent. No two calls share a moment.
    readings: BTreeMap<(usize, Tick), PairState>,
}

impl Chat {
    /// Reads the pairs of a call.
    pub(super) fn read(&mut self, batch: &Batch, sent: Tick) {
        for to in &batch.to {
            let pair = pair_index(user(&batch.from), user(to));
            self.readings.insert((pair, sent), self.pairs[pair]);
        }
    }

    /// Returns what was read of a pair for the call that was sent at this moment.
    pub(super) fn reading(&self, pair: usize, sent: Tick) -> Option<PairState> {
        self.readings.get(&(pair, sent)).copied()
    }

    /// Returns the response to a call whose pairs were read. `fails` chooses the accounts whose items are errors.
    pub(super) fn response(&self, kind: &RelationKind, call: &Call, fails: impl Fn(usize) -> bool) -> String {
        let Call { batch, sent, .. } = call;
        let from = user(&batch.from);
        let items = batch.to.iter().enumerate().map(|(account, to)| {
            let to_user = user(to);
            let read = self.readings[&(pair_index(from, to_user), *sent)];
            let number = usize::from(read.seen_from(from, to_user).number());
            match kind.name {
                "follow" if fails(account) => json!({"To_Account": &**to, "ResultCode": 30003}),
                "follow" => json!({"To_Account": &**to, "ResultCode": 0, "FollowType": number}),
                _ => {
                    // A call for one side has only these two texts, and a failed item always the first.
                    let number =
                        if fails(account) { 0 } else { number & if batch.sides == Sides::Both { 3 } else { 2 } };
                    let code = if fails(account) { 30006 } else { 0 };
                    json!({"To_Account": &**to, "Relation": text(kind, number), "ResultCode": code, "ResultInfo": ""})
                }
            }
        });
        let list = match kind.name {
            "follow" => "ResultItem",
            "friend" => "InfoItem",
            _ => "BlackListCheckItem",
        };
        json!({list: items.collect::<Vec<_>>(), "ErrorCode": 0}).to_string()
    }

    /// Changes the relation of a pair, and returns its new version.
    pub(super) fn apply(&mut self, pair: usize, relation: u8) -> u64 {
        let version = self.pairs[pair].version + 1;
        self.pairs[pair] = PairState { relation, version };
        version
    }
}

fn text(kind: &RelationKind, number: usize) -> String {
    match kind.name {
        "friend" => format!("CheckResult_Type_{}", ["NoRelation", "BWithA", "AWithB", "BothWay"][number]),
        _ => format!("BlackCheckResult_Type_{}", ["NO", "BWithA", "AWithB", "BothWay"][number]),
    }
}

pub(super) fn user(name: &str) -> usize {
    USERS.iter().position(|user| *user == name).expect("a user")
}

pub(super) fn pair_index(a: usize, b: usize) -> usize {
    PAIRS.iter().position(|pair| *pair == (a.min(b), a.max(b))).expect("a pair")
}
