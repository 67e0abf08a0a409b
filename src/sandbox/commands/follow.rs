//! The follow commands (vendor pages 1047/70345, 70346, 70347, 70349, 70350). A second follow of the same user succeeds.

use serde::Serialize;
use serde_json::Value;

use super::fields::{self, Body};
use super::items::{Counts, Details, Field, ItemError, items_response, ok_envelope};
use super::{CommandResult, Event, RELATION_BAD_PARAMETER, RELATION_NO_ACCOUNT, Simulation, from_account};
use crate::sandbox::chat_error::ChatError;
use crate::sandbox::graph::{FollowList, Graph, NICK, RelationError};

/// Maximum number of targets of `follow_add`, `follow_delete`, and `follow_get_info`.
const TARGETS_MAX: usize = 20;
/// Maximum number of targets of `follow_check`.
const CHECK_MAX: usize = 100;
/// Maximum page size of `follow_get`.
const PAGE_MAX: u64 = 1000;
const PAGE_DEFAULT: usize = 100;

const TOO_MANY_FOLLOWED: i64 = 32100;

impl Simulation<'_> {
    pub(super) fn follow_add(&mut self, body: &Body) -> Result<CommandResult, ChatError> {
        let from = from_account(body)?;
        let targets = fields::users_in(body, "FollowItem", "To_Account", TARGETS_MAX, RELATION_BAD_PARAMETER)?;
        let now_secs = self.now_secs;
        let (body, to) = self.change_follows(from, &targets, |graph, to| graph.follow(from, to, now_secs))?;
        let event = (!to.is_empty()).then(|| Event::Followed { from: from.to_owned(), to });
        Ok(CommandResult { body, event })
    }

    pub(super) fn follow_delete(&mut self, body: &Body) -> Result<CommandResult, ChatError> {
        let from = from_account(body)?;
        let targets = fields::users(body, "To_Account", TARGETS_MAX, RELATION_BAD_PARAMETER)?;
        let (body, to) = self.change_follows(from, &targets, |graph, to| graph.unfollow(from, to))?;
        let event = (!to.is_empty()).then(|| Event::Unfollowed { from: from.to_owned(), to });
        Ok(CommandResult { body, event })
    }

    pub(super) fn follow_check(&mut self, body: &Body) -> Result<CommandResult, ChatError> {
        let from = from_account(body)?;
        let targets = fields::users(body, "To_Account", CHECK_MAX, RELATION_BAD_PARAMETER)?;
        self.require_user(from)?;
        let details = |graph: &mut Graph, to: &str| Details {
            follow_type: Some(graph.follow_type(from, to)),
            ..Details::default()
        };
        let mut items = self.relation_items(&targets, |graph, to| Ok(details(graph, to)));
        for item in &mut items {
            // A FollowType next to an error is meaningless. It is here because a service that fills in zeros sends it.
            item.details.follow_type.get_or_insert(0);
        }
        Ok(CommandResult::of(items_response("ResultItem", &items)))
    }

    pub(super) fn follow_get(&mut self, body: &Body) -> Result<CommandResult, ChatError> {
        let bad = |info: &'static str| ChatError::new(RELATION_BAD_PARAMETER, info);
        let from = from_account(body)?;
        let list = match body.get("FollowType").and_then(Value::as_u64) {
            Some(1) => FollowList::Followers,
            Some(2) => FollowList::Following,
            Some(3) => FollowList::Mutual,
            _ => return Err(bad("FollowType must be 1, 2 or 3")),
        };
        // The cursor is the last name of the previous page, so it stays valid while the list changes.
        let after = body.get("StartCursor").and_then(Value::as_str).ok_or(bad("StartCursor must be text"))?;
        let want = match body.get("WantNum").map(Value::as_u64) {
            None => PAGE_DEFAULT,
            Some(Some(want)) if (1..=PAGE_MAX).contains(&want) => want as usize,
            Some(_) => return Err(bad("WantNum must be from 1 to 1000")),
        };
        self.require_user(from)?;
        let page = self.graph.page(from, list, after, want).ok_or(bad("no such list"))?;
        let next_cursor = page.entries.last().filter(|_| page.has_more).map_or("", |entry| &entry.user);
        let follow_item = page.entries.iter().map(|entry| FollowedItem {
            to_account: &entry.user,
            follow_time: entry.since_secs,
            profile_item: entry.nick.iter().map(|nick| Field { tag: NICK, value: nick.clone() }).collect(),
            profile_sequence: 0,
        });
        let page = FollowPage { follow_item: follow_item.collect(), next_cursor };
        Ok(CommandResult::of(ok_envelope(&page)))
    }

    pub(super) fn follow_get_info(&mut self, body: &Body) -> Result<CommandResult, ChatError> {
        let from = from_account(body)?;
        let targets = fields::users(body, "To_Account", TARGETS_MAX, RELATION_BAD_PARAMETER)?;
        self.require_user(from)?;
        let counts = |graph: &mut Graph, to: &str| graph.counts(to).map(Counts::from);
        let details = |counts| Details { counts, ..Details::default() };
        let mut items = self.relation_items(&targets, |graph, to| Ok(details(counts(graph, to))));
        for item in &mut items {
            item.details.counts.get_or_insert_default();
        }
        Ok(CommandResult::of(items_response("FollowInfo", &items)))
    }

    /// Applies a change to each target. Returns the response, and the targets for which the change succeeded.
    fn change_follows(
        &mut self,
        from: &str,
        targets: &[&str],
        mut change: impl FnMut(&mut Graph, &str) -> Result<(), RelationError>,
    ) -> Result<(Vec<u8>, Vec<String>), ChatError> {
        self.require_user(from)?;
        let mut done = Vec::new();
        let items = self.relation_items(targets, |graph, to| {
            change(graph, to).map_err(item_error)?;
            done.push(to.to_owned());
            Ok(Details::default())
        });
        Ok((items_response("ResultItem", &items), done))
    }
}

fn item_error(error: RelationError) -> ItemError {
    let (code, info) = match error {
        RelationError::UnknownUser => (RELATION_NO_ACCOUNT, "account does not exist"),
        RelationError::ListFull => (TOO_MANY_FOLLOWED, "From_Account follows too many accounts"),
        _ => (RELATION_BAD_PARAMETER, "an account cannot follow itself"),
    };
    ItemError { code, info }
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct FollowPage<'a> {
    follow_item: Vec<FollowedItem<'a>>,
    next_cursor: &'a str,
}

#[derive(Serialize)]
struct FollowedItem<'a> {
    #[serde(rename = "To_Account")]
    to_account: &'a str,
    #[serde(rename = "FollowTime")]
    follow_time: u64,
    #[serde(rename = "ProfileItem")]
    profile_item: Vec<Field>,
    /// The vendor's sample has this name in lower case too.
    profile_sequence: u64,
}
