//! The commands that are carried out: the follow family and the accounts it needs.
//!
//! Shapes and limits: vendor pages 1047/70345, 70346, 70347, 70349, 70350 (follow) and 1047/34953 to
//! 34956 (accounts). Where they are silent: an item that fails leaves the envelope OK, items come in
//! the order of the request with repeats, and following twice is as good as once.

use serde::Serialize;
use serde_json::{Map, Value};

use super::graph::{Counts, Full, Graph, List, NoFollow};
use super::refusal::Refusal;
use crate::domain::chat::app::check_user_id;
use crate::domain::chat::command::CommandName;
use crate::domain::chat::envelope;

/// Most targets of `follow_add`, `follow_delete` and `follow_get_info`.
const TARGETS_MAX: usize = 20;
/// Most targets of `follow_check`, and most accounts of a batch.
const CHECK_MAX: usize = 100;
/// Most rows of a page of `follow_get`.
const PAGE_MAX: u64 = 1000;
const PAGE_DEFAULT: usize = 100;

const RELATION_BAD_PARAMETER: i64 = 30001;
const RELATION_NO_ACCOUNT: i64 = 30003;
const TOO_MANY_FOLLOWED: i64 = 32100;
const USER_ID_NOT_TEXT: i64 = 60015;
const ACCOUNT_NOT_FOUND: i64 = 70107;
const ACCOUNTS_FULL: i64 = 70398;
const ACCOUNT_BAD_PARAMETER: i64 = 70402;

/// What a command answers, and what others are told of it.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) body: Vec<u8>,
    pub(super) event: Option<Event>,
}

/// A change that a webhook reports: only the targets for which it was done.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Event {
    Followed { from: String, to: Vec<String> },
    Unfollowed { from: String, to: Vec<String> },
}

/// Carries out a command of the built-in table at a moment in Unix seconds. Those that the sandbox
/// does not play answer OK and do nothing.
pub(super) fn carry_out(
    name: CommandName<'_>,
    graph: &mut Graph,
    body: &Map<String, Value>,
    now_secs: u64,
) -> Result<Reply, Refusal> {
    let quiet = |body| Reply { body, event: None };
    match (name.service(), name.command()) {
        ("follow", "follow_add") => follow_add(graph, body, now_secs),
        ("follow", "follow_delete") => follow_delete(graph, body),
        ("follow", "follow_check") => follow_check(graph, body).map(quiet),
        ("follow", "follow_get") => follow_get(graph, body).map(quiet),
        ("follow", "follow_get_info") => follow_get_info(graph, body).map(quiet),
        ("im_open_login_svc", "account_import") => account_import(graph, body).map(quiet),
        ("im_open_login_svc", "multiaccount_import") => multiaccount_import(graph, body).map(quiet),
        ("im_open_login_svc", "account_delete") => account_delete(graph, body).map(quiet),
        ("im_open_login_svc", "account_check") => account_check(graph, body).map(quiet),
        _ => Ok(quiet(envelope::write(0, ""))),
    }
}

fn follow_add(graph: &mut Graph, body: &Map<String, Value>, now_secs: u64) -> Result<Reply, Refusal> {
    let from = user(body, "From_Account", RELATION_BAD_PARAMETER)?;
    let targets = users_in(body, "FollowItem", "To_Account", TARGETS_MAX, RELATION_BAD_PARAMETER)?;
    known(graph, from)?;
    let (items, done) = each(&targets, |to| graph.follow(from, to, now_secs));
    let event = (!done.is_empty()).then(|| Event::Followed { from: from.into(), to: done });
    Ok(Reply { body: answer(&ResultItems { result_item: items }), event })
}

fn follow_delete(graph: &mut Graph, body: &Map<String, Value>) -> Result<Reply, Refusal> {
    let from = user(body, "From_Account", RELATION_BAD_PARAMETER)?;
    let targets = users(body, "To_Account", TARGETS_MAX, RELATION_BAD_PARAMETER)?;
    known(graph, from)?;
    let (items, done) = each(&targets, |to| graph.unfollow(from, to));
    let event = (!done.is_empty()).then(|| Event::Unfollowed { from: from.into(), to: done });
    Ok(Reply { body: answer(&ResultItems { result_item: items }), event })
}

fn follow_check(graph: &Graph, body: &Map<String, Value>) -> Result<Vec<u8>, Refusal> {
    let from = user(body, "From_Account", RELATION_BAD_PARAMETER)?;
    let targets = users(body, "To_Account", CHECK_MAX, RELATION_BAD_PARAMETER)?;
    known(graph, from)?;
    let items = targets.iter().map(|to| match graph.exists(to) {
        true => Item { follow_type: Some(graph.follow_type(from, to)), ..Item::ok(to) },
        // A number that must not be believed, as a service that fills in zeros would send it.
        false => Item { follow_type: Some(0), ..Item::failed(to, RELATION_NO_ACCOUNT, "account does not exist") },
    });
    Ok(answer(&ResultItems { result_item: items.collect() }))
}

fn follow_get(graph: &Graph, body: &Map<String, Value>) -> Result<Vec<u8>, Refusal> {
    let bad = |info: &'static str| Refusal::new(RELATION_BAD_PARAMETER, info);
    let from = user(body, "From_Account", RELATION_BAD_PARAMETER)?;
    let list = match body.get("FollowType").and_then(Value::as_u64) {
        Some(1) => List::Followers,
        Some(2) => List::Following,
        Some(3) => List::Mutual,
        _ => return Err(bad("FollowType must be 1, 2 or 3")),
    };
    // The cursor is the last name of the page before: it stays right while the list changes.
    let after = body.get("StartCursor").and_then(Value::as_str).ok_or(bad("StartCursor must be text"))?;
    let want = match body.get("WantNum").map(Value::as_u64) {
        None => PAGE_DEFAULT,
        Some(Some(want)) if (1..=PAGE_MAX).contains(&want) => want as usize,
        Some(_) => return Err(bad("WantNum must be from 1 to 1000")),
    };
    known(graph, from)?;
    let page = graph.page(from, list, after, want).ok_or(bad("no such list"))?;
    let next_cursor = page.rows.last().filter(|_| page.more).map_or("", |row| &row.user);
    let follow_item = page.rows.iter().map(|row| Followed {
        to_account: &row.user,
        follow_time: row.since_secs,
        profile_item: row.nick.iter().map(|nick| Profile { tag: "Tag_Profile_IM_Nick", value: nick }).collect(),
        profile_sequence: 0,
    });
    Ok(answer(&FollowPage { follow_item: follow_item.collect(), next_cursor }))
}

fn follow_get_info(graph: &Graph, body: &Map<String, Value>) -> Result<Vec<u8>, Refusal> {
    let from = user(body, "From_Account", RELATION_BAD_PARAMETER)?;
    let targets = users(body, "To_Account", TARGETS_MAX, RELATION_BAD_PARAMETER)?;
    known(graph, from)?;
    let infos = targets.iter().map(|to| {
        let counts = graph.counts(to);
        let item = match counts {
            Some(_) => Item::ok(to),
            None => Item::failed(to, RELATION_NO_ACCOUNT, "account does not exist"),
        };
        let counts = counts.unwrap_or(Counts { followers: 0, following: 0, mutual: 0 });
        Info {
            item,
            follower_count: counts.followers,
            following_count: counts.following,
            mutual_following_count: counts.mutual,
        }
    });
    Ok(answer(&Infos { follow_info: infos.collect() }))
}

fn account_import(graph: &mut Graph, body: &Map<String, Value>) -> Result<Vec<u8>, Refusal> {
    // Older pages call the member Identifier.
    let member = if body.contains_key("UserID") { "UserID" } else { "Identifier" };
    let name = user(body, member, ACCOUNT_BAD_PARAMETER)?;
    let nick = nick(body)?;
    graph.import(name, nick).map_err(|Full| Refusal::new(ACCOUNTS_FULL, "the sandbox keeps no more accounts"))?;
    Ok(envelope::write(0, ""))
}

fn multiaccount_import(graph: &mut Graph, body: &Map<String, Value>) -> Result<Vec<u8>, Refusal> {
    // The older form is a list of names, the newer one a list of objects; both are documented.
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
    Ok(answer(&Imported { fail_accounts: failed.collect() }))
}

fn account_delete(graph: &mut Graph, body: &Map<String, Value>) -> Result<Vec<u8>, Refusal> {
    let names = users_in(body, "DeleteItem", "UserID", CHECK_MAX, ACCOUNT_BAD_PARAMETER)?;
    let items = names.iter().map(|name| {
        let (result_code, result_info) =
            if graph.delete(name) { (0, "") } else { (ACCOUNT_NOT_FOUND, "account does not exist") };
        AccountItem { user_id: name, result_code, result_info, account_status: None }
    });
    Ok(answer(&AccountItems { result_item: items.collect() }))
}

fn account_check(graph: &Graph, body: &Map<String, Value>) -> Result<Vec<u8>, Refusal> {
    let names = users_in(body, "CheckItem", "UserID", CHECK_MAX, ACCOUNT_BAD_PARAMETER)?;
    let items = names.iter().map(|name| {
        let status = if graph.exists(name) { "Imported" } else { "NotImported" };
        AccountItem { user_id: name, result_code: 0, result_info: "", account_status: Some(status) }
    });
    Ok(answer(&AccountItems { result_item: items.collect() }))
}

/// Does something for each target: an item each, and the names of those for which it was done.
fn each<'a>(targets: &[&'a str], mut act: impl FnMut(&str) -> Result<(), NoFollow>) -> (Vec<Item<'a>>, Vec<String>) {
    let mut done = Vec::new();
    let items = targets.iter().map(|to| match act(to) {
        Ok(()) => {
            done.push((*to).to_owned());
            Item::ok(to)
        }
        Err(NoFollow::Unknown) => Item::failed(to, RELATION_NO_ACCOUNT, "account does not exist"),
        Err(NoFollow::Itself) => Item::failed(to, RELATION_BAD_PARAMETER, "nobody follows himself"),
        Err(NoFollow::TooMany) => Item::failed(to, TOO_MANY_FOLLOWED, "From_Account follows too many"),
    });
    (items.collect(), done)
}

fn known(graph: &Graph, from: &str) -> Result<(), Refusal> {
    if graph.exists(from) { Ok(()) } else { Err(Refusal::new(RELATION_NO_ACCOUNT, "From_Account does not exist")) }
}

/// A user name; `bad` is the family's code for a bad parameter.
fn user<'a>(body: &'a Map<String, Value>, member: &str, bad: i64) -> Result<&'a str, Refusal> {
    match body.get(member) {
        Some(value) => user_id(value, member, bad),
        None => Err(Refusal::new(bad, format!("{member} is missing"))),
    }
}

/// An array of user names.
fn users<'a>(body: &'a Map<String, Value>, member: &str, max: usize, bad: i64) -> Result<Vec<&'a str>, Refusal> {
    list(body, member, max, bad)?.iter().map(|value| user_id(value, member, bad)).collect()
}

/// An array of objects with a user name each.
fn users_in<'a>(
    body: &'a Map<String, Value>,
    member: &str,
    inner: &str,
    max: usize,
    bad: i64,
) -> Result<Vec<&'a str>, Refusal> {
    let items = list(body, member, max, bad)?.iter();
    items
        .map(|item| match item.as_object() {
            Some(object) => user(object, inner, bad),
            None => Err(Refusal::new(bad, format!("{member} must hold objects"))),
        })
        .collect()
}

fn list<'a>(body: &'a Map<String, Value>, member: &str, max: usize, bad: i64) -> Result<&'a [Value], Refusal> {
    let list = body.get(member).and_then(Value::as_array);
    let list = list.ok_or_else(|| Refusal::new(bad, format!("{member} must be an array")))?;
    if (1..=max).contains(&list.len()) {
        Ok(list)
    } else {
        Err(Refusal::new(bad, format!("{member} must have 1 to {max} entries")))
    }
}

fn user_id<'a>(value: &'a Value, member: &str, bad: i64) -> Result<&'a str, Refusal> {
    let text = value.as_str().ok_or_else(|| Refusal::new(USER_ID_NOT_TEXT, format!("{member} is not a string")))?;
    check_user_id(text).map_err(|error| Refusal::new(bad, format!("a user in {member} {error}")))?;
    Ok(text)
}

fn nick(account: &Map<String, Value>) -> Result<Option<&str>, Refusal> {
    /// A standard profile field has at most 500 bytes (code 40601).
    const NICK_LEN_MAX: usize = 500;
    match account.get("Nick") {
        None => Ok(None),
        Some(Value::String(text)) if text.len() <= NICK_LEN_MAX => Ok(Some(text)),
        Some(_) => Err(Refusal::new(ACCOUNT_BAD_PARAMETER, "Nick must be text of at most 500 bytes")),
    }
}

/// The members of a command's own, then those that every answer has.
fn answer(own: &impl Serialize) -> Vec<u8> {
    #[derive(Serialize)]
    #[serde(rename_all = "PascalCase")]
    struct Answer<'a, T> {
        #[serde(flatten)]
        own: &'a T,
        action_status: &'static str,
        error_code: i64,
        error_info: &'static str,
        error_display: &'static str,
    }
    let answer = Answer { own, action_status: "OK", error_code: 0, error_info: "", error_display: "" };
    serde_json::to_vec(&answer).expect("texts and numbers always become JSON")
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct ResultItems<'a> {
    result_item: Vec<Item<'a>>,
}

#[derive(Serialize)]
struct Item<'a> {
    #[serde(rename = "To_Account")]
    to_account: &'a str,
    #[serde(rename = "ResultCode")]
    result_code: i64,
    #[serde(rename = "ResultInfo")]
    result_info: &'static str,
    #[serde(rename = "FollowType", skip_serializing_if = "Option::is_none")]
    follow_type: Option<u8>,
}

impl<'a> Item<'a> {
    fn ok(to_account: &'a str) -> Self {
        Self::failed(to_account, 0, "")
    }

    fn failed(to_account: &'a str, result_code: i64, result_info: &'static str) -> Self {
        Self { to_account, result_code, result_info, follow_type: None }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct FollowPage<'a> {
    follow_item: Vec<Followed<'a>>,
    next_cursor: &'a str,
}

#[derive(Serialize)]
struct Followed<'a> {
    #[serde(rename = "To_Account")]
    to_account: &'a str,
    #[serde(rename = "FollowTime")]
    follow_time: u64,
    #[serde(rename = "ProfileItem")]
    profile_item: Vec<Profile<'a>>,
    /// In small letters in the vendor's sample too.
    profile_sequence: u64,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Profile<'a> {
    tag: &'static str,
    value: &'a str,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Infos<'a> {
    follow_info: Vec<Info<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Info<'a> {
    #[serde(flatten)]
    item: Item<'a>,
    follower_count: usize,
    following_count: usize,
    mutual_following_count: usize,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Imported<'a> {
    fail_accounts: Vec<&'a str>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct AccountItems<'a> {
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
mod tests;
