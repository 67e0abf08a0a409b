//! The friend commands (vendor pages 1047/34902 to 34908 and 34910).
//!
//! A call takes up to 1000 users, also where its page names no limit. There are no custom fields, because an app must
//! configure them in the console first.

use serde::Serialize;
use serde_json::{Value, json};

use super::fields::{self, Body};
use super::items::{Details, Field, Item, ItemError, items_response_with_failures, ok_envelope};
use super::relation_check::Check;
use super::{CommandResult, Event, EventPair, RELATION_BAD_PARAMETER, RELATION_NO_ACCOUNT, Simulation, from_account};
use crate::domain::chat::envelope;
use crate::sandbox::chat_error::ChatError;
use crate::sandbox::graph::{AddMode, Friend, Graph, RelationError, Sides, known_tag};

/// Maximum number of users in a call.
const TARGETS_MAX: usize = 1000;
/// Maximum number of users of `friend_get_list`.
const GET_LIST_MAX: usize = 100;
/// Number of friends on a page of `friend_get`.
const PAGE_LEN: usize = 500;
/// Limits of the standard fields in bytes, and of the groups of a friend (1047/33521).
const REMARK_LEN_MAX: usize = 96;
const WORDING_LEN_MAX: usize = 256;
const GROUP_LEN_MAX: usize = 30;
const GROUPS_MAX: usize = 32;
const SOURCE_PREFIX: &str = "AddSource_Type_";
const SOURCE_KEYWORD_LEN_MAX: usize = 8;

const ADD_TYPES: [&str; 2] = ["Add_Type_Single", "Add_Type_Both"];
const DELETE_TYPES: [&str; 2] = ["Delete_Type_Single", "Delete_Type_Both"];
const BOTH: usize = 1;

const FRIEND_LIST_FULL: i64 = 30010;
const PEER_LIST_FULL: i64 = 30014;
const BLOCKS_PEER: i64 = 30515;
const PEER_DENIES: i64 = 30516;
const BLOCKED_BY_PEER: i64 = 30525;
const PEER_MUST_CONFIRM: i64 = 30539;
const NOT_FRIENDS: i64 = 31704;

const SOURCE: &str = "Tag_SNS_IM_AddSource";
const REMARK: &str = "Tag_SNS_IM_Remark";
const GROUP: &str = "Tag_SNS_IM_Group";
const ADD_TIME: &str = "Tag_SNS_IM_AddTime";

const CHECK: Check = Check {
    list: "InfoItem",
    check_types: ["CheckResult_Type_Single", "CheckResult_Type_Both"],
    relations: [
        "CheckResult_Type_NoRelation",
        "CheckResult_Type_BWithA",
        "CheckResult_Type_AWithB",
        "CheckResult_Type_BothWay",
    ],
};

impl Simulation<'_> {
    pub(super) fn friend_add(&mut self, body: &Body) -> Result<CommandResult, ChatError> {
        let from = from_account(body)?;
        let friends = self.new_friends(body, one_group)?;
        let both = fields::choice(body, "AddType", ADD_TYPES, Some(BOTH), RELATION_BAD_PARAMETER)? == BOTH;
        let forced = match body.get("ForceAddFlags").map(Value::as_u64) {
            None | Some(Some(0)) => false,
            Some(Some(1)) => true,
            Some(_) => return Err(bad("ForceAddFlags must be 0 or 1")),
        };
        self.require_user(from)?;
        let mut pairs = Vec::new();
        let mode = AddMode { both, forced };
        let items = self.friend_items(friends, |graph, to, friend| {
            let sides = graph.add_friend(from, to, friend, mode).map_err(item_error)?;
            push_pairs(&mut pairs, from, to, sides);
            Ok(Details::default())
        });
        let event = Event::FriendsAdded { initiator: from.to_owned(), forced, pairs: pairs.clone() };
        Ok(result(&items, (!pairs.is_empty()).then_some(event)))
    }

    /// Adds friends on one side, without a webhook.
    pub(super) fn friend_import(&mut self, body: &Body) -> Result<CommandResult, ChatError> {
        let from = from_account(body)?;
        let friends = self.new_friends(body, many_groups)?;
        self.require_user(from)?;
        let items = self.friend_items(friends, |graph, to, friend| {
            graph.import_friend(from, to, friend).map_err(item_error)?;
            Ok(Details::default())
        });
        Ok(result(&items, None))
    }

    pub(super) fn friend_update(&mut self, body: &Body) -> Result<CommandResult, ChatError> {
        let from = from_account(body)?;
        let updates = fields::objects(body, "UpdateItem", TARGETS_MAX, RELATION_BAD_PARAMETER)?;
        let updates = updates.into_iter().map(|update| {
            let to = fields::user(update, "To_Account", RELATION_BAD_PARAMETER)?;
            let changes = fields::objects(update, "SnsItem", GROUPS_MAX, RELATION_BAD_PARAMETER)?;
            Ok((to, changes.into_iter().map(field_change).collect::<Result<Vec<_>, ChatError>>()?))
        });
        let updates: Vec<_> = updates.collect::<Result<_, ChatError>>()?;
        self.require_user(from)?;
        let items = self.friend_items(updates, |graph, to, changes| {
            let apply = |friend: &mut Friend| changes.into_iter().for_each(|change| change.apply(friend));
            graph.update_friend(from, to, apply).map_err(item_error)?;
            Ok(Details::default())
        });
        Ok(result(&items, None))
    }

    pub(super) fn friend_delete(&mut self, body: &Body) -> Result<CommandResult, ChatError> {
        let from = from_account(body)?;
        let targets = fields::users(body, "To_Account", TARGETS_MAX, RELATION_BAD_PARAMETER)?;
        let both = deletes_both(body)?;
        self.require_user(from)?;
        let mut pairs = Vec::new();
        let items = self.relation_items(&targets, |graph, to| {
            let sides = graph.delete_friend(from, to, both).map_err(|error| match error {
                RelationError::Missing => ItemError { code: NOT_FRIENDS, info: "To_Account is not a friend" },
                error => item_error(error),
            })?;
            push_pairs(&mut pairs, from, to, sides);
            Ok(Details::default())
        });
        let event = (!pairs.is_empty()).then_some(Event::FriendsDeleted { pairs });
        Ok(result(&items, event))
    }

    /// Empties a friend list, without a webhook.
    pub(super) fn friend_delete_all(&mut self, body: &Body) -> Result<CommandResult, ChatError> {
        let from = from_account(body)?;
        let both = deletes_both(body)?;
        self.require_user(from)?;
        self.graph.delete_all_friends(from, both);
        Ok(CommandResult::of(envelope::write(0, "")))
    }

    pub(super) fn friend_check(&mut self, body: &Body) -> Result<CommandResult, ChatError> {
        self.check_relation(body, &CHECK, |graph, from, to| graph.friend_type(from, to))
    }

    pub(super) fn friend_get(&mut self, body: &Body) -> Result<CommandResult, ChatError> {
        let from = from_account(body)?;
        let start = fields::number(body, "StartIndex", RELATION_BAD_PARAMETER)?;
        let start = usize::try_from(start).unwrap_or(usize::MAX);
        let known = match body.get("StandardSequence") {
            None => 0,
            Some(_) => fields::number(body, "StandardSequence", RELATION_BAD_PARAMETER)?,
        };
        self.require_user(from)?;
        let (friends, sequence) = (self.graph.friends(from), self.graph.friend_sequence(from));
        // A client that knows the current list gets no entries.
        let len = if known == sequence { 0 } else { friends.len() };
        let end = len.min(start.saturating_add(PAGE_LEN));
        let page = friends.iter().take(end).skip(start).map(|(to, friend)| UserData {
            to_account: to,
            value_item: FRIEND_TAGS.iter().filter_map(|tag| friend_field(friend, tag)).collect(),
        });
        let is_complete = end >= len;
        let page = FriendPage {
            user_data_item: page.collect(),
            standard_sequence: sequence,
            custom_sequence: 0,
            friend_num: friends.len(),
            complete_flag: u8::from(is_complete),
            next_start_index: if is_complete { 0 } else { end },
        };
        Ok(CommandResult::of(ok_envelope(&page)))
    }

    pub(super) fn friend_get_list(&mut self, body: &Body) -> Result<CommandResult, ChatError> {
        let from = from_account(body)?;
        let targets = fields::users(body, "To_Account", GET_LIST_MAX, RELATION_BAD_PARAMETER)?;
        let tags = fields::list(body, "TagList", GET_LIST_MAX, RELATION_BAD_PARAMETER)?;
        let tags: Option<Vec<Tag>> = tags.iter().map(|tag| Tag::parse(tag.as_str()?)).collect();
        let tags = tags.ok_or_else(|| bad("TagList has a tag that does not exist"))?;
        self.require_user(from)?;
        let items = self.relation_items(&targets, |graph, to| {
            let friend = graph.friends(from).get(to);
            let friend =
                friend.ok_or(ItemError { code: RELATION_BAD_PARAMETER, info: "SNS_FRD_GET_LIST_FRD_NO_EXIST" })?;
            let fields = tags.iter().filter_map(|tag| tag.field(graph, to, friend)).collect();
            Ok(Details { sns_profile_item: Some(fields), ..Details::default() })
        });
        Ok(CommandResult::of(items_response_with_failures("InfoItem", &items)))
    }

    /// Returns the users and entries of `AddFriendItem`; `groups` reads `GroupName`.
    fn new_friends<'b>(
        &self,
        body: &'b Body,
        groups: impl Fn(&Body) -> Result<Vec<Box<str>>, ChatError>,
    ) -> Result<Vec<(&'b str, Friend)>, ChatError> {
        let items = fields::objects(body, "AddFriendItem", TARGETS_MAX, RELATION_BAD_PARAMETER)?;
        let friends = items.into_iter().map(|item| {
            let source =
                fields::text(item, "AddSource", SOURCE_PREFIX.len() + SOURCE_KEYWORD_LEN_MAX, RELATION_BAD_PARAMETER)?;
            let keyword = source.strip_prefix(SOURCE_PREFIX).unwrap_or_default();
            if keyword.is_empty() || !keyword.bytes().all(|byte| byte.is_ascii_alphabetic()) {
                return Err(bad("AddSource must be AddSource_Type_ and 1 to 8 letters"));
            }
            fields::text(item, "AddWording", WORDING_LEN_MAX, RELATION_BAD_PARAMETER)?;
            if item.contains_key("CustomItem") {
                return Err(bad("CustomItem has a tag that does not exist"));
            }
            let since_secs = match item.get("AddTime") {
                None => self.now_secs,
                Some(_) => fields::number(item, "AddTime", RELATION_BAD_PARAMETER)?,
            };
            let friend = Friend {
                source: source.into(),
                remark: fields::text(item, "Remark", REMARK_LEN_MAX, RELATION_BAD_PARAMETER)?.into(),
                groups: groups(item)?,
                since_secs,
            };
            Ok((fields::user(item, "To_Account", RELATION_BAD_PARAMETER)?, friend))
        });
        friends.collect()
    }

    /// Runs a command for each target and its value.
    fn friend_items<'t, T>(
        &mut self,
        targets: Vec<(&'t str, T)>,
        mut run: impl FnMut(&mut Graph, &str, T) -> Result<Details, ItemError>,
    ) -> Vec<Item<'t>> {
        let item = |(to, value)| self.item(to, RELATION_NO_ACCOUNT, |graph| run(graph, to, value));
        targets.into_iter().map(item).collect()
    }
}

fn result(items: &[Item<'_>], event: Option<Event>) -> CommandResult {
    CommandResult { body: items_response_with_failures("ResultItem", items), event }
}

fn bad(info: &'static str) -> ChatError {
    ChatError::new(RELATION_BAD_PARAMETER, info)
}

fn deletes_both(body: &Body) -> Result<bool, ChatError> {
    // The page of friend_delete names no default; that of friend_delete_all does.
    Ok(fields::choice(body, "DeleteType", DELETE_TYPES, Some(0), RELATION_BAD_PARAMETER)? == BOTH)
}

/// Adds an entry for each list that changed, with the owner of the list as `from`.
fn push_pairs(pairs: &mut Vec<EventPair>, from: &str, to: &str, sides: Sides) {
    let pair = |from: &str, to: &str| EventPair { from: from.to_owned(), to: to.to_owned() };
    pairs.extend(sides.own.then(|| pair(from, to)));
    pairs.extend(sides.peer.then(|| pair(to, from)));
}

fn item_error(error: RelationError) -> ItemError {
    let (code, info) = match error {
        RelationError::UnknownUser => (RELATION_NO_ACCOUNT, "account does not exist"),
        RelationError::Itself => (RELATION_BAD_PARAMETER, "an account cannot be its own friend"),
        RelationError::Exists => (RELATION_BAD_PARAMETER, "Err_SNS_FriendAdd_Friend_Exist"),
        RelationError::Missing => (RELATION_BAD_PARAMETER, "To_Account is not a friend"),
        RelationError::ListFull => (FRIEND_LIST_FULL, "From_Account has too many friends"),
        RelationError::PeerListFull => (PEER_LIST_FULL, "To_Account has too many friends"),
        RelationError::BlocksPeer => (BLOCKS_PEER, "To_Account is on the blocklist of From_Account"),
        RelationError::BlockedByPeer => (BLOCKED_BY_PEER, "From_Account is on the blocklist of To_Account"),
        RelationError::PeerDenies => (PEER_DENIES, "To_Account rejects friend requests"),
        RelationError::PeerMustConfirm => (PEER_MUST_CONFIRM, "To_Account must agree first"),
    };
    ItemError { code, info }
}

/// Reads the `GroupName` of `friend_add`: one name.
fn one_group(item: &Body) -> Result<Vec<Box<str>>, ChatError> {
    let name = fields::text(item, "GroupName", GROUP_LEN_MAX, RELATION_BAD_PARAMETER)?;
    Ok(if name.is_empty() { Vec::new() } else { vec![name.into()] })
}

/// Reads the `GroupName` of `friend_import`: a list of names.
fn many_groups(item: &Body) -> Result<Vec<Box<str>>, ChatError> {
    item.get("GroupName").map_or(Ok(Vec::new()), group_names)
}

fn group_names(value: &Value) -> Result<Vec<Box<str>>, ChatError> {
    let names = value.as_array().filter(|names| names.len() <= GROUPS_MAX);
    let name = |name: &Value| name.as_str().filter(|name| (1..=GROUP_LEN_MAX).contains(&name.len())).map(Box::from);
    let names = names.and_then(|names| names.iter().map(name).collect());
    names.ok_or_else(|| bad("groups must be at most 32 names of 1 to 30 bytes"))
}

/// A change by `friend_update`.
enum FieldChange {
    Remark(Box<str>),
    Groups(Vec<Box<str>>),
}

fn field_change(item: &Body) -> Result<FieldChange, ChatError> {
    match (item.get("Tag").and_then(Value::as_str), item.get("Value")) {
        (Some(REMARK), Some(Value::String(text))) if text.len() <= REMARK_LEN_MAX => {
            Ok(FieldChange::Remark(text.as_str().into()))
        }
        (Some(GROUP), Some(value)) => Ok(FieldChange::Groups(group_names(value)?)),
        _ => Err(bad("SnsItem must hold Tag_SNS_IM_Remark with up to 96 bytes, or Tag_SNS_IM_Group with a list")),
    }
}

impl FieldChange {
    fn apply(self, friend: &mut Friend) {
        match self {
            FieldChange::Remark(remark) => friend.remark = remark,
            FieldChange::Groups(groups) => friend.groups = groups,
        }
    }
}

const FRIEND_TAGS: [&str; 4] = [SOURCE, REMARK, GROUP, ADD_TIME];

/// Returns a field of a friend, if it has a value.
fn friend_field(friend: &Friend, tag: &'static str) -> Option<Field> {
    let text = |text: &str| (!text.is_empty()).then(|| json!(text));
    let value = match tag {
        SOURCE => text(&friend.source),
        REMARK => text(&friend.remark),
        GROUP => (!friend.groups.is_empty()).then(|| json!(friend.groups)),
        _ => Some(json!(friend.since_secs)),
    };
    value.map(|value| Field { tag, value })
}

/// A tag of `friend_get_list`: a field of the friend, or of its profile.
enum Tag {
    Friend(&'static str),
    Profile(&'static str),
}

impl Tag {
    fn parse(tag: &str) -> Option<Self> {
        let friend = FRIEND_TAGS.into_iter().find(|known| *known == tag).map(Tag::Friend);
        friend.or_else(|| known_tag(tag).map(|(tag, _)| Tag::Profile(tag)))
    }

    fn field(&self, graph: &Graph, to: &str, friend: &Friend) -> Option<Field> {
        match *self {
            Tag::Friend(tag) => friend_field(friend, tag),
            Tag::Profile(tag) => graph.profile(to)?.get(tag).map(|value| Field { tag, value: value.clone() }),
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct FriendPage<'a> {
    user_data_item: Vec<UserData<'a>>,
    standard_sequence: u64,
    custom_sequence: u64,
    friend_num: usize,
    complete_flag: u8,
    next_start_index: usize,
}

#[derive(Serialize)]
struct UserData<'a> {
    #[serde(rename = "To_Account")]
    to_account: &'a str,
    #[serde(rename = "ValueItem")]
    value_item: Vec<Field>,
}
