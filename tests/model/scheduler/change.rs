//! Random writes and events, with bodies that the gateway's own readers read.

use serde_json::json;

use super::Simulation;
use super::chat::{PAIRS, USERS, pair_index};
use crate::domain::chat::command::CommandName;
use crate::domain::pairs::scope::{Scope, ScopeKeys};
use crate::domain::relation::{KINDS, changes};

/// Indexes of the relations.
const FOLLOW: usize = 0;
const FRIEND: usize = 1;
const BLACKLIST: usize = 2;

/// A write or event, as the gateway reads it, and what it changes in Chat.
pub(super) struct Change {
    pub(super) scope: ScopeKeys,
    /// The pairs that it changes. All of them are in the scope.
    pub(super) effects: Vec<Effect>,
}

/// One pair of one relation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Effect {
    /// The index of the relation.
    pub(super) relation: usize,
    pub(super) pair: usize,
}

/// Writes that name one user and another, and the relations that they change.
const WRITES: [(&str, &[usize]); 8] = [
    ("follow/follow_add", &[FOLLOW]),
    ("follow/follow_delete", &[FOLLOW]),
    ("sns/friend_add", &[FRIEND]),
    ("sns/friend_import", &[FRIEND]),
    ("sns/friend_delete", &[FRIEND]),
    // A block ends the friendship.
    ("sns/black_list_add", &[BLACKLIST, FRIEND]),
    ("sns/black_list_delete", &[BLACKLIST]),
    ("sns/made_up", &[FRIEND]),
];

/// Events, and the relations that they report as changed.
const EVENTS: [(&str, &[usize]); 6] = [
    ("Follow.CallbackAfterFollowAdd", &[FOLLOW]),
    ("Follow.CallbackAfterFollowDelete", &[FOLLOW]),
    ("Sns.CallbackFriendAdd", &[FRIEND]),
    ("Sns.CallbackFriendDelete", &[FRIEND]),
    ("Sns.CallbackBlackListAdd", &[BLACKLIST, FRIEND]),
    ("Sns.CallbackBlackListDelete", &[BLACKLIST]),
];

impl Simulation {
    /// Returns a random change: an event, or a write.
    pub(super) fn change(&mut self, is_event: bool) -> Change {
        let pair = self.below(PAIRS.len());
        // Either user may come first.
        let (from, to) = if self.below(2) == 0 { PAIRS[pair] } else { (PAIRS[pair].1, PAIRS[pair].0) };
        let (scope, effects) = match (is_event, self.below(8)) {
            (true, _) => self.event_of(from, to),
            (false, 0) => {
                let body = json!({"DeleteItem": [{"UserID": USERS[from]}]});
                let all: Vec<Effect> = (0..KINDS.len()).flat_map(|relation| pairs_of(relation, from)).collect();
                (written("im_open_login_svc/account_delete", &body.to_string()), all)
            }
            (false, 1) => {
                let body = json!({"From_Account": USERS[from]});
                (written("sns/friend_delete_all", &body.to_string()), pairs_of(FRIEND, from).collect())
            }
            (false, _) => self.write_of(from, to),
        };
        Change { scope: ScopeKeys::new(&scope, &self.hasher), effects }
    }

    fn write_of(&mut self, from: usize, to: usize) -> (Scope, Vec<Effect>) {
        let (command, relations) = WRITES[self.below(WRITES.len())];
        let (list, items) = match command {
            "follow/follow_add" => ("FollowItem", json!([{"To_Account": USERS[to]}])),
            "sns/friend_add" | "sns/friend_import" => ("AddFriendItem", json!([{"To_Account": USERS[to]}])),
            _ => ("To_Account", json!([USERS[to]])),
        };
        let body = json!({"From_Account": USERS[from], list: items}).to_string();
        let body = self.spoiled(body);
        (written(command, &body), effects(relations, &[pair_index(from, to)]))
    }

    fn event_of(&mut self, from: usize, to: usize) -> (Scope, Vec<Effect>) {
        let (command, relations) = EVENTS[self.below(EVENTS.len())];
        let mut pairs = vec![pair_index(from, to)];
        let body = match command {
            "Follow.CallbackAfterFollowAdd" => {
                json!({"From_Account": USERS[from], "FollowList": [{"To_Account": USERS[to]}]})
            }
            "Follow.CallbackAfterFollowDelete" => json!({"From_Account": USERS[from], "To_Account": [USERS[to]]}),
            _ => {
                let listed = |(from, to): (usize, usize)| json!({"From_Account": USERS[from], "To_Account": USERS[to]});
                let other = self.below(PAIRS.len());
                pairs.push(other);
                json!({"PairList": [listed((from, to)), listed((to, from)), listed(PAIRS[other])]})
            }
        };
        let body = self.spoiled(body.to_string());
        let scope = changes::of_event(&KINDS, command, body.as_bytes()).expect("an event of a relation");
        (scope, effects(relations, &pairs))
    }

    /// Makes some bodies hard or impossible to read.
    fn spoiled(&mut self, body: String) -> String {
        match self.below(12) {
            0 => body.replace("To_Account", "To_account"),
            1 => body.replacen("From_Account", "from_account", 1),
            2 => format!("{body} x"),
            _ => body,
        }
    }
}

fn written(command: &str, body: &str) -> Scope {
    let name = CommandName::parse(command).expect("a name");
    changes::of_write(&KINDS, name, body.as_bytes()).expect("a write of a relation")
}

fn effects(relations: &[usize], pairs: &[usize]) -> Vec<Effect> {
    relations.iter().flat_map(|relation| pairs.iter().map(|pair| Effect { relation: *relation, pair: *pair })).collect()
}

fn pairs_of(relation: usize, user: usize) -> impl Iterator<Item = Effect> {
    let pairs = (0..PAIRS.len()).filter(move |pair| PAIRS[*pair].0 == user || PAIRS[*pair].1 == user);
    pairs.map(move |pair| Effect { relation, pair })
}
