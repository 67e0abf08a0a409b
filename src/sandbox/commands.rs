//! The simulated commands: the follow commands, and the account commands that they need.
//!
//! Shapes and limits follow the vendor pages 1047/70345, 70346, 70347, 70349, 70350 (follow) and 1047/34953 to
//! 34956 (accounts). Where they are silent, the simulator does the following: a failed item leaves the envelope OK,
//! items are in the order of the request including repeats, and a second follow of the same user succeeds.

use serde::Serialize;
use serde_json::{Map, Value};

use super::chat_error::ChatError;
use super::graph::{FollowCounts, FollowError, FollowList, Graph, GraphFull};
use crate::domain::chat::app::check_user_id;
use crate::domain::chat::command::CommandName;
use crate::domain::chat::envelope;

/// Maximum number of targets of `follow_add`, `follow_delete`, and `follow_get_info`.
const TARGETS_MAX: usize = 20;
/// Maximum number of targets of `follow_check`, and of accounts in a batch.
const CHECK_MAX: usize = 100;
/// Maximum page size of `follow_get`.
const PAGE_MAX: u64 = 1000;
const PAGE_DEFAULT: usize = 100;

const RELATION_BAD_PARAMETER: i64 = 30001;
const RELATION_NO_ACCOUNT: i64 = 30003;
const TOO_MANY_FOLLOWED: i64 = 32100;
const USER_ID_NOT_TEXT: i64 = 60015;
const ACCOUNT_NOT_FOUND: i64 = 70107;
const ACCOUNTS_FULL: i64 = 70398;
const ACCOUNT_BAD_PARAMETER: i64 = 70402;

/// The response of a command, and the event for webhooks.
#[derive(Debug)]
pub(super) struct CommandResult {
    pub(super) body: Vec<u8>,
    pub(super) event: Option<FollowEvent>,
}

/// A change for a webhook, with the targets for which the command succeeded.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum FollowEvent {
    Followed { from: String, to: Vec<String> },
    Unfollowed { from: String, to: Vec<String> },
}

/// Executes a command of the built-in table at the time `now_secs`, in Unix seconds. A command that is not simulated
/// answers OK and does nothing.
pub(super) fn execute(
    name: CommandName<'_>,
    graph: &mut Graph,
    body: &Map<String, Value>,
    now_secs: u64,
) -> Result<CommandResult, ChatError> {
    let without_event = |body| CommandResult { body, event: None };
    match (name.service(), name.command()) {
        ("follow", "follow_add") => follow_add(graph, body, now_secs),
        ("follow", "follow_delete") => follow_delete(graph, body),
        ("follow", "follow_check") => follow_check(graph, body).map(without_event),
        ("follow", "follow_get") => follow_get(graph, body).map(without_event),
        ("follow", "follow_get_info") => follow_get_info(graph, body).map(without_event),
        ("im_open_login_svc", "account_import") => account_import(graph, body).map(without_event),
        ("im_open_login_svc", "multiaccount_import") => multiaccount_import(graph, body).map(without_event),
        ("im_open_login_svc", "account_delete") => account_delete(graph, body).map(without_event),
        ("im_open_login_svc", "account_check") => account_check(graph, body).map(without_event),
        _ => Ok(without_event(envelope::write(0, ""))),
    }
}

fn follow_add(graph: &mut Graph, body: &Map<String, Value>, now_secs: u64) -> Result<CommandResult, ChatError> {
    let from = user(body, "From_Account", RELATION_BAD_PARAMETER)?;
    let targets = users_in(body, "FollowItem", "To_Account", TARGETS_MAX, RELATION_BAD_PARAMETER)?;
    require_user(graph, from)?;
    let (items, done) = apply_to_each(&targets, |to| graph.follow(from, to, now_secs));
    let event = (!done.is_empty()).then(|| FollowEvent::Followed { from: from.into(), to: done });
    Ok(CommandResult { body: ok_envelope(&ResultItemsResponse { result_item: items }), event })
}

fn follow_delete(graph: &mut Graph, body: &Map<String, Value>) -> Result<CommandResult, ChatError> {
    let from = user(body, "From_Account", RELATION_BAD_PARAMETER)?;
    let targets = users(body, "To_Account", TARGETS_MAX, RELATION_BAD_PARAMETER)?;
    require_user(graph, from)?;
    let (items, done) = apply_to_each(&targets, |to| graph.unfollow(from, to));
    let event = (!done.is_empty()).then(|| FollowEvent::Unfollowed { from: from.into(), to: done });
    Ok(CommandResult { body: ok_envelope(&ResultItemsResponse { result_item: items }), event })
}

fn follow_check(graph: &Graph, body: &Map<String, Value>) -> Result<Vec<u8>, ChatError> {
    let from = user(body, "From_Account", RELATION_BAD_PARAMETER)?;
    let targets = users(body, "To_Account", CHECK_MAX, RELATION_BAD_PARAMETER)?;
    require_user(graph, from)?;
    let items = targets.iter().map(|to| match graph.exists(to) {
        true => ResultItem { follow_type: Some(graph.follow_type(from, to)), ..ResultItem::ok(to) },
        // A FollowType next to an error is meaningless. It is here because a service that fills in zeros sends it.
        false => {
            ResultItem { follow_type: Some(0), ..ResultItem::failed(to, RELATION_NO_ACCOUNT, "account does not exist") }
        }
    });
    Ok(ok_envelope(&ResultItemsResponse { result_item: items.collect() }))
}

fn follow_get(graph: &Graph, body: &Map<String, Value>) -> Result<Vec<u8>, ChatError> {
    let bad = |info: &'static str| ChatError::new(RELATION_BAD_PARAMETER, info);
    let from = user(body, "From_Account", RELATION_BAD_PARAMETER)?;
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
    require_user(graph, from)?;
    let page = graph.page(from, list, after, want).ok_or(bad("no such list"))?;
    let next_cursor = page.entries.last().filter(|_| page.has_more).map_or("", |entry| &entry.user);
    let follow_item = page.entries.iter().map(|entry| FollowedItem {
        to_account: &entry.user,
        follow_time: entry.since_secs,
        profile_item: entry.nick.iter().map(|nick| ProfileItem { tag: "Tag_Profile_IM_Nick", value: nick }).collect(),
        profile_sequence: 0,
    });
    Ok(ok_envelope(&FollowPageResponse { follow_item: follow_item.collect(), next_cursor }))
}

fn follow_get_info(graph: &Graph, body: &Map<String, Value>) -> Result<Vec<u8>, ChatError> {
    let from = user(body, "From_Account", RELATION_BAD_PARAMETER)?;
    let targets = users(body, "To_Account", TARGETS_MAX, RELATION_BAD_PARAMETER)?;
    require_user(graph, from)?;
    let infos = targets.iter().map(|to| {
        let counts = graph.counts(to);
        let item = match counts {
            Some(_) => ResultItem::ok(to),
            None => ResultItem::failed(to, RELATION_NO_ACCOUNT, "account does not exist"),
        };
        let counts = counts.unwrap_or(FollowCounts { followers: 0, following: 0, mutual: 0 });
        FollowInfo {
            item,
            follower_count: counts.followers,
            following_count: counts.following,
            mutual_following_count: counts.mutual,
        }
    });
    Ok(ok_envelope(&FollowInfoResponse { follow_info: infos.collect() }))
}

fn account_import(graph: &mut Graph, body: &Map<String, Value>) -> Result<Vec<u8>, ChatError> {
    // Older vendor pages call the member Identifier.
    let member = if body.contains_key("UserID") { "UserID" } else { "Identifier" };
    let name = user(body, member, ACCOUNT_BAD_PARAMETER)?;
    let nick = nick(body)?;
    graph
        .import(name, nick)
        .map_err(|GraphFull| ChatError::new(ACCOUNTS_FULL, "the simulator holds no more accounts"))?;
    Ok(envelope::write(0, ""))
}

fn multiaccount_import(graph: &mut Graph, body: &Map<String, Value>) -> Result<Vec<u8>, ChatError> {
    // Both forms are documented: the older one is a list of names, the newer one a list of objects.
    let accounts: Vec<(&str, Option<&str>)> = if body.contains_key("Accounts") {
        let names = users(body, "Accounts", CHECK_MAX, ACCOUNT_BAD_PARAMETER)?;
        names.into_iter().map(|name| (name, None)).collect()
    } else {
        let names = users_in(body, "AccountList", "UserID", CHECK_MAX, ACCOUNT_BAD_PARAMETER)?;
        let nicks = list(body, "AccountList", CHECK_MAX, ACCOUNT_BAD_PARAMETER)?;
        let nicks = nicks.iter().map(|item| item.as_object().map_or(Ok(None), nick)).collect::<Result<Vec<_>, _>>()?;
        names.into_iter().zip(nicks).collect()
    };
    let failed = accounts.iter().filter(|(name, nick)| graph.import(name, *nick).is_err()).map(|(name, _)| *name);
    Ok(ok_envelope(&ImportResponse { fail_accounts: failed.collect() }))
}

fn account_delete(graph: &mut Graph, body: &Map<String, Value>) -> Result<Vec<u8>, ChatError> {
    let names = users_in(body, "DeleteItem", "UserID", CHECK_MAX, ACCOUNT_BAD_PARAMETER)?;
    let items = names.iter().map(|name| {
        let (result_code, result_info) =
            if graph.delete(name) { (0, "") } else { (ACCOUNT_NOT_FOUND, "account does not exist") };
        AccountItem { user_id: name, result_code, result_info, account_status: None }
    });
    Ok(ok_envelope(&AccountItemsResponse { result_item: items.collect() }))
}

fn account_check(graph: &Graph, body: &Map<String, Value>) -> Result<Vec<u8>, ChatError> {
    let names = users_in(body, "CheckItem", "UserID", CHECK_MAX, ACCOUNT_BAD_PARAMETER)?;
    let items = names.iter().map(|name| {
        let status = if graph.exists(name) { "Imported" } else { "NotImported" };
        AccountItem { user_id: name, result_code: 0, result_info: "", account_status: Some(status) }
    });
    Ok(ok_envelope(&AccountItemsResponse { result_item: items.collect() }))
}

/// Applies a change to each target. Returns an item for each, and the names of those for which it succeeded.
fn apply_to_each<'a>(
    targets: &[&'a str],
    mut act: impl FnMut(&str) -> Result<(), FollowError>,
) -> (Vec<ResultItem<'a>>, Vec<String>) {
    let mut done = Vec::new();
    let items = targets.iter().map(|to| match act(to) {
        Ok(()) => {
            done.push((*to).to_owned());
            ResultItem::ok(to)
        }
        Err(FollowError::UnknownUser) => ResultItem::failed(to, RELATION_NO_ACCOUNT, "account does not exist"),
        Err(FollowError::SelfFollow) => {
            ResultItem::failed(to, RELATION_BAD_PARAMETER, "an account cannot follow itself")
        }
        Err(FollowError::LimitReached) => {
            ResultItem::failed(to, TOO_MANY_FOLLOWED, "From_Account follows too many accounts")
        }
    });
    (items.collect(), done)
}

fn require_user(graph: &Graph, from: &str) -> Result<(), ChatError> {
    if graph.exists(from) { Ok(()) } else { Err(ChatError::new(RELATION_NO_ACCOUNT, "From_Account does not exist")) }
}

/// Returns a member that is a user name. `bad` is the service's code for a bad parameter.
fn user<'a>(body: &'a Map<String, Value>, member: &str, bad: i64) -> Result<&'a str, ChatError> {
    match body.get(member) {
        Some(value) => user_id(value, member, bad),
        None => Err(ChatError::new(bad, format!("{member} is missing"))),
    }
}

/// Returns a member that is an array of 1 to `max` user names.
fn users<'a>(body: &'a Map<String, Value>, member: &str, max: usize, bad: i64) -> Result<Vec<&'a str>, ChatError> {
    list(body, member, max, bad)?.iter().map(|value| user_id(value, member, bad)).collect()
}

/// Returns the user names in a member that is an array of 1 to `max` objects, each with the name in `inner`.
fn users_in<'a>(
    body: &'a Map<String, Value>,
    member: &str,
    inner: &str,
    max: usize,
    bad: i64,
) -> Result<Vec<&'a str>, ChatError> {
    let items = list(body, member, max, bad)?.iter();
    items
        .map(|item| match item.as_object() {
            Some(object) => user(object, inner, bad),
            None => Err(ChatError::new(bad, format!("{member} must hold objects"))),
        })
        .collect()
}

fn list<'a>(body: &'a Map<String, Value>, member: &str, max: usize, bad: i64) -> Result<&'a [Value], ChatError> {
    let list = body.get(member).and_then(Value::as_array);
    let list = list.ok_or_else(|| ChatError::new(bad, format!("{member} must be an array")))?;
    if (1..=max).contains(&list.len()) {
        Ok(list)
    } else {
        Err(ChatError::new(bad, format!("{member} must have 1 to {max} entries")))
    }
}

fn user_id<'a>(value: &'a Value, member: &str, bad: i64) -> Result<&'a str, ChatError> {
    let text = value.as_str().ok_or_else(|| ChatError::new(USER_ID_NOT_TEXT, format!("{member} is not a string")))?;
    check_user_id(text).map_err(|error| ChatError::new(bad, format!("a user in {member} {error}")))?;
    Ok(text)
}

fn nick(account: &Map<String, Value>) -> Result<Option<&str>, ChatError> {
    /// A standard profile field has at most 500 bytes (code 40601).
    const NICK_LEN_MAX: usize = 500;
    match account.get("Nick") {
        None => Ok(None),
        Some(Value::String(text)) if text.len() <= NICK_LEN_MAX => Ok(Some(text)),
        Some(_) => Err(ChatError::new(ACCOUNT_BAD_PARAMETER, "Nick must be text of at most 500 bytes")),
    }
}

/// Writes the members of a command followed by the members of every envelope.
fn ok_envelope(members: &impl Serialize) -> Vec<u8> {
    #[derive(Serialize)]
    #[serde(rename_all = "PascalCase")]
    struct OkEnvelope<'a, T> {
        #[serde(flatten)]
        members: &'a T,
        action_status: &'static str,
        error_code: i64,
        error_info: &'static str,
        error_display: &'static str,
    }
    let envelope = OkEnvelope { members, action_status: "OK", error_code: 0, error_info: "", error_display: "" };
    serde_json::to_vec(&envelope).expect("strings and numbers serialize to JSON")
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct ResultItemsResponse<'a> {
    result_item: Vec<ResultItem<'a>>,
}

#[derive(Serialize)]
struct ResultItem<'a> {
    #[serde(rename = "To_Account")]
    to_account: &'a str,
    #[serde(rename = "ResultCode")]
    result_code: i64,
    #[serde(rename = "ResultInfo")]
    result_info: &'static str,
    #[serde(rename = "FollowType", skip_serializing_if = "Option::is_none")]
    follow_type: Option<u8>,
}

impl<'a> ResultItem<'a> {
    fn ok(to_account: &'a str) -> Self {
        Self::failed(to_account, 0, "")
    }

    fn failed(to_account: &'a str, result_code: i64, result_info: &'static str) -> Self {
        Self { to_account, result_code, result_info, follow_type: None }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct FollowPageResponse<'a> {
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
    profile_item: Vec<ProfileItem<'a>>,
    /// The vendor's sample has this name in lower case too.
    profile_sequence: u64,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct ProfileItem<'a> {
    tag: &'static str,
    value: &'a str,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct FollowInfoResponse<'a> {
    follow_info: Vec<FollowInfo<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct FollowInfo<'a> {
    #[serde(flatten)]
    item: ResultItem<'a>,
    follower_count: usize,
    following_count: usize,
    mutual_following_count: usize,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct ImportResponse<'a> {
    fail_accounts: Vec<&'a str>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct AccountItemsResponse<'a> {
    result_item: Vec<AccountItem<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct AccountItem<'a> {
    #[serde(rename = "UserID")]
    user_id: &'a str,
    result_code: i64,
    result_info: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    account_status: Option<&'static str>,
}

#[cfg(test)]
#[path = "../../tests/unit/sandbox_commands.rs"]
mod tests;
