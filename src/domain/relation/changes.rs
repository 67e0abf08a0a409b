//! The pairs that a write or a webhook changes.
//!
//! Chat might read a body differently if it is not JSON, repeats members, or has names of an unexpected type. Then the
//! scope widens: too wide a scope costs lookups, but too narrow a scope would leave a wrong pair in the cache.

use std::collections::{BTreeMap, HashSet};
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};

use super::RelationKind;
use crate::domain::chat::command::{ACCOUNT_DELETE, CommandName, DELETE_ROBOT};
use crate::domain::json::object::{Object, members, read};
use crate::domain::pairs::scope::{Scope, UserPairs};

/// A command or webhook that changes a relation, and where its body names the pairs.
#[derive(Debug)]
pub(super) struct Change<C> {
    pub(super) command: C,
    pub(super) targets: Targets,
}

/// Where a body names pairs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Targets {
    /// `From_Account`, and user IDs in `To_Account`.
    Names,
    /// `From_Account`, and objects with a `To_Account` in the array of this name.
    Items(&'static str),
    /// `From_Account`, and no other users: all of its pairs.
    EveryPair,
    /// Objects with `From_Account` and `To_Account` in `PairList`, and no outer `From_Account`.
    PairList,
}

/// Returns the pairs of these relations that a call may change; `None` for a command that changes none of them.
pub fn of_write(kinds: &[&RelationKind], name: CommandName<'_>, body: &[u8]) -> Option<Scope> {
    if name == ACCOUNT_DELETE {
        return Some(removed_accounts(body));
    }
    if name == DELETE_ROBOT {
        return Some(removed_robot(body));
    }
    let known = kinds.iter().flat_map(|kind| kind.writes).find(|change| change.command == name);
    if let Some(change) = known {
        return Some(change.targets.scope(body));
    }
    (name.known().is_none() && may_change_anything(kinds, name)).then_some(Scope::All)
}

/// Returns whether a command that the vendor does not document may change any pair of these relations: one of a service
/// whose commands change them, and one that differs from a documented write only in upper and lower case.
fn may_change_anything(kinds: &[&RelationKind], name: CommandName<'_>) -> bool {
    let is_of = |service: &str| service.eq_ignore_ascii_case(name.service());
    let mut writes = kinds.iter().flat_map(|kind| kind.writes).map(|change| change.command);
    kinds.iter().any(|kind| kind.unknown_writes.is_some_and(is_of))
        || writes.any(|write| name.eq_ignore_case(write))
        || [ACCOUNT_DELETE, DELETE_ROBOT].into_iter().any(|write| name.eq_ignore_case(write))
}

/// Returns the pairs of these relations that a webhook reports as changed; `None` for a webhook that reports no change.
///
/// Chat sends no such webhook without targets, so one without targets counts as unreadable.
pub(crate) fn of_event(kinds: &[&RelationKind], command: &str, body: &[u8]) -> Option<Scope> {
    let change = kinds.iter().flat_map(|kind| kind.events).find(|change| change.command == command)?;
    Some(match change.targets.scope(body) {
        Scope::Pairs(pairs) if pairs.is_empty() => Scope::All,
        Scope::Pairs(pairs) if pairs.iter().any(|pairs| pairs.to.is_empty()) => {
            Scope::Users(pairs.into_iter().map(|pairs| pairs.from).collect())
        }
        scope => scope,
    })
}

impl Targets {
    fn scope(self, body: &[u8]) -> Scope {
        if self == Targets::PairList {
            return pair_list(body);
        }
        let Some(Repeats { from, any }) = repeats(body) else { return Scope::All };
        if from {
            return Scope::All;
        }
        let Some(From { from }) = read(body) else { return Scope::All };
        match self.names(body) {
            Some(to) if !any => Scope::Pairs(vec![UserPairs { from, to }]),
            _ => Scope::Users(vec![from]),
        }
    }

    /// Returns the users that the body names in addition to `From_Account`; `None` if they cannot be read, or if all users
    /// are meant.
    fn names(self, body: &[u8]) -> Option<Vec<String>> {
        match self {
            Targets::Names => read::<Names>(body).map(|names| names.to),
            Targets::Items(list) => {
                let [items] = members(std::str::from_utf8(body).ok()?, [list])?;
                let items: Vec<Object<Target>> = serde_json::from_str(items?.get()).ok()?;
                Some(items.into_iter().map(|Object(item)| item.to).collect())
            }
            Targets::EveryPair | Targets::PairList => None,
        }
    }
}

fn pair_list(body: &[u8]) -> Scope {
    let (Some(Repeats { any: false, .. }), Some(PairList { pairs })) = (repeats(body), read(body)) else {
        return Scope::All;
    };
    let mut by_user: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for Object(ListedPair { from, to }) in pairs {
        by_user.entry(from).or_default().push(to);
    }
    Scope::Pairs(by_user.into_iter().map(|(from, to)| UserPairs { from, to }).collect())
}

fn removed_accounts(body: &[u8]) -> Scope {
    match (repeats(body), read::<Accounts>(body)) {
        (Some(Repeats { any: false, .. }), Some(accounts)) => {
            Scope::Users(accounts.items.into_iter().map(|Object(item)| item.user).collect())
        }
        _ => Scope::All,
    }
}

fn removed_robot(body: &[u8]) -> Scope {
    match (repeats(body), read::<Robot>(body)) {
        (Some(Repeats { any: false, .. }), Some(robot)) => Scope::Users(vec![robot.account]),
        _ => Scope::All,
    }
}

#[derive(Deserialize)]
struct From {
    #[serde(rename = "From_Account")]
    from: String,
}

#[derive(Deserialize)]
struct Target {
    #[serde(rename = "To_Account")]
    to: String,
}

#[derive(Deserialize)]
struct Names {
    #[serde(rename = "To_Account")]
    to: Vec<String>,
}

#[derive(Deserialize)]
struct PairList {
    #[serde(rename = "PairList")]
    pairs: Vec<Object<ListedPair>>,
}

#[derive(Deserialize)]
struct ListedPair {
    #[serde(rename = "From_Account")]
    from: String,
    #[serde(rename = "To_Account")]
    to: String,
}

#[derive(Deserialize)]
struct Accounts {
    #[serde(rename = "DeleteItem")]
    items: Vec<Object<AccountItem>>,
}

#[derive(Deserialize)]
struct AccountItem {
    #[serde(rename = "UserID")]
    user: String,
}

#[derive(Deserialize)]
struct Robot {
    #[serde(rename = "Robot_Account")]
    account: String,
}

/// Whether objects repeat a member. A parser may take either value, and Chat's choice is unknown. Names that differ only
/// in case count as equal.
#[derive(Default)]
struct Repeats {
    /// The outermost object repeats `From_Account`.
    from: bool,
    /// An object repeats any member.
    any: bool,
}

/// Returns `None` if the body is not JSON.
fn repeats(body: &[u8]) -> Option<Repeats> {
    serde_json::from_slice(body).ok()
}

impl<'a> Deserialize<'a> for Repeats {
    fn deserialize<D: Deserializer<'a>>(json: D) -> Result<Self, D::Error> {
        json.deserialize_any(RepeatsVisitor)
    }
}

struct RepeatsVisitor;

impl<'a> Visitor<'a> for RepeatsVisitor {
    type Value = Repeats;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_map<M: MapAccess<'a>>(self, mut map: M) -> Result<Repeats, M::Error> {
        let (mut repeats, mut names) = (Repeats::default(), HashSet::new());
        while let Some((name, inner)) = map.next_entry::<String, Repeats>()? {
            let name = name.to_lowercase();
            let is_from = name == "from_account";
            let is_repeated = !names.insert(name);
            repeats.from |= is_repeated && is_from;
            repeats.any |= is_repeated || inner.any;
        }
        Ok(repeats)
    }

    fn visit_seq<S: SeqAccess<'a>>(self, mut list: S) -> Result<Repeats, S::Error> {
        let mut repeats = Repeats::default();
        while let Some(inner) = list.next_element::<Repeats>()? {
            repeats.any |= inner.any;
        }
        Ok(repeats)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Repeats, E> {
        Ok(Repeats::default())
    }

    fn visit_i64<E>(self, _: i64) -> Result<Repeats, E> {
        Ok(Repeats::default())
    }

    fn visit_u64<E>(self, _: u64) -> Result<Repeats, E> {
        Ok(Repeats::default())
    }

    fn visit_f64<E>(self, _: f64) -> Result<Repeats, E> {
        Ok(Repeats::default())
    }

    fn visit_str<E>(self, _: &str) -> Result<Repeats, E> {
        Ok(Repeats::default())
    }

    fn visit_unit<E>(self) -> Result<Repeats, E> {
        Ok(Repeats::default())
    }
}

#[cfg(test)]
mod tests {
    use super::super::{BLACKLIST, FOLLOW, FRIEND, KINDS};
    use super::*;
    use crate::domain::chat::command::{CommandKind, FOLLOW_ADD, FOLLOW_CHECK, FOLLOW_DELETE, KNOWN_COMMANDS};

    fn scope(name: CommandName<'_>, body: &[u8]) -> Option<Scope> {
        of_write(&[&FOLLOW], name, body)
    }

    fn event(followed: bool, body: &[u8]) -> Option<Scope> {
        let command = if followed { "Follow.CallbackAfterFollowAdd" } else { "Follow.CallbackAfterFollowDelete" };
        of_event(&[&FOLLOW], command, body)
    }

    fn pairs(from: &str, to: &[&str]) -> Option<Scope> {
        Some(Scope::pairs_of(from, to))
    }

    fn users(names: &[&str]) -> Option<Scope> {
        Some(Scope::Users(names.iter().map(ToString::to_string).collect()))
    }

    #[test]
    fn readable_write_names_its_pairs() {
        let add = br#"{"From_Account":"ann","FollowItem":[{"To_Account":"bob"},{"To_Account":"cyd","X":1}],"More":[]}"#;
        assert_eq!(scope(FOLLOW_ADD, add), pairs("ann", &["bob", "cyd"]));
        let delete = br#"{"From_Account":"ann","To_Account":["bob","cyd"]}"#;
        assert_eq!(scope(FOLLOW_DELETE, delete), pairs("ann", &["bob", "cyd"]));
        let accounts = br#"{"DeleteItem":[{"UserID":"ann"},{"UserID":"bob"}]}"#;
        assert_eq!(scope(ACCOUNT_DELETE, accounts), users(&["ann", "bob"]));
    }

    #[test]
    fn unreadable_targets_widen_to_the_user() {
        for body in [
            r#"{"From_Account":"ann"}"#,
            r#"{"From_Account":"ann","FollowItem":["bob"]}"#,
            r#"{"From_Account":"ann","FollowItem":[["bob"]]}"#,
            r#"{"From_Account":"ann","FollowItem":[{"To_Account":7}]}"#,
            r#"{"From_Account":"ann","FollowItem":[{"To_Account":"bob","To\u005fAccount":"cyd"}]}"#,
            r#"{"From_Account":"ann","FollowItem":[{"To_Account":"bob"}],"FollowItem":[{"To_Account":"cyd"}]}"#,
            r#"{"From_Account":"ann","FollowItem":[{"To_Account":"bob"}],"More":1,"more":2}"#,
            r#"{"From_Account":"ann","FollowItem":[{"To_Account":"bob","From_Account":"x","From_Account":"y"}]}"#,
        ] {
            assert_eq!(scope(FOLLOW_ADD, body.as_bytes()), users(&["ann"]), "{body}");
        }
    }

    #[test]
    fn ambiguous_body_widens_to_the_app() {
        for body in [
            "",
            "[]",
            r#"["ann",[{"To_Account":"bob"}]]"#,
            "{}",
            r#"{"From_Account":7,"FollowItem":[]}"#,
            r#"{"From_Account":"ann","From_Account":"eve","FollowItem":[{"To_Account":"bob"}]}"#,
            r#"{"From_Account":"ann","from_account":"eve","FollowItem":[{"To_Account":"bob"}]}"#,
            r#"{"From_Account":"ann","FollowItem":[{"To_Account":"bob"}]} x"#,
            r#"{"DeleteItem":[{"UserID":7}]}"#,
        ] {
            assert_eq!(scope(FOLLOW_ADD, body.as_bytes()), Some(Scope::All), "{body}");
            assert_eq!(scope(ACCOUNT_DELETE, body.as_bytes()), Some(Scope::All), "{body}");
        }
    }

    #[test]
    fn webhook_of_an_unexpected_shape_widens() {
        let added = r#"{"CallbackCommand":"x","From_Account":"ann","FollowList":[{"To_Account":"bob"}],"EventTime":1}"#;
        let deleted = r#"{"From_Account":"ann","To_Account":["bob","cyd"],"EventTime":1}"#;
        assert_eq!(event(true, added.as_bytes()), pairs("ann", &["bob"]));
        assert_eq!(event(false, deleted.as_bytes()), pairs("ann", &["bob", "cyd"]));
        // The shape of the other kind, the shape of a write, and no targets.
        for (followed, body) in [
            (false, added),
            (true, deleted),
            (true, r#"{"From_Account":"ann","FollowItem":[{"To_Account":"bob"}]}"#),
            (true, r#"{"From_Account":"ann","FollowList":[]}"#),
            (false, r#"{"From_Account":"ann","To_Account":[]}"#),
            (false, r#"{"From_Account":"ann","To_Account":"bob"}"#),
            (true, r#"{"From_Account":"ann","FollowList":[{"To_Account":"bob","to_account":"cyd"}]}"#),
        ] {
            assert_eq!(event(followed, body.as_bytes()), users(&["ann"]), "{body}");
        }
        for body in ["", "{", "[]", "{}", r#"{"From_Account":null}"#, &added.repeat(2), &format!("{{{added}}}")] {
            assert_eq!(event(true, body.as_bytes()), Some(Scope::All), "{body}");
            assert_eq!(event(false, body.as_bytes()), Some(Scope::All), "{body}");
        }
    }

    #[test]
    fn other_commands_change_no_pair() {
        assert_eq!(scope(FOLLOW_CHECK, b"{}"), None);
        assert_eq!(scope(CommandName::parse("openim/sendmsg").expect("a name"), b"{}"), None);
    }

    const NAMES: &str = r#"{"From_Account":"ann","To_Account":["bob","cyd"]}"#;
    const ITEMS: &str = r#"{"From_Account":"ann","AddFriendItem":[{"To_Account":"bob","AddSource":"AddSource_Type_Server"},{"To_Account":"cyd"}],"AddType":"Add_Type_Both","ForceAddFlags":1}"#;
    const FOLLOWS: &str = r#"{"From_Account":"ann","FollowItem":[{"To_Account":"bob"},{"To_Account":"cyd"}]}"#;
    const PAIRS: &str = r#"{"CallbackCommand":"x","PairList":[{"From_Account":"ann","To_Account":"bob"},{"From_Account":"bob","To_Account":"ann"}],"RequestId":"1"}"#;

    /// The kinds whose pairs a change makes void, each alone.
    fn touched(scope: impl Fn(&'static RelationKind) -> Option<Scope>) -> Vec<&'static str> {
        KINDS.iter().filter(|kind| scope(kind).is_some()).map(|kind| kind.name).collect()
    }

    #[test]
    fn each_write_touches_its_relations() {
        let (all, friend, blacklist) =
            (vec!["follow", "friend", "blacklist"], vec!["friend"], vec!["friend", "blacklist"]);
        let two = pairs("ann", &["bob", "cyd"]);
        let cases = [
            ("follow/follow_add", FOLLOWS, vec!["follow"], two.clone()),
            ("follow/follow_delete", NAMES, vec!["follow"], two.clone()),
            ("sns/friend_add", ITEMS, friend.clone(), two.clone()),
            ("sns/friend_import", ITEMS, friend.clone(), two.clone()),
            ("sns/friend_delete", NAMES, friend.clone(), two.clone()),
            (
                "sns/friend_delete_all",
                r#"{"From_Account":"ann","DeleteType":"Delete_Type_Both"}"#,
                friend,
                users(&["ann"]),
            ),
            ("sns/black_list_add", NAMES, all.clone(), two.clone()),
            ("sns/black_list_delete", NAMES, blacklist.clone(), two),
            ("im_open_login_svc/account_delete", r#"{"DeleteItem":[{"UserID":"ann"}]}"#, all.clone(), users(&["ann"])),
            ("openim_robot_http_svc/delete_robot", r#"{"Robot_Account":"@RBT#1"}"#, all, users(&["@RBT#1"])),
            ("sns/friend_response", NAMES, blacklist, Some(Scope::All)),
        ];
        for (command, body, kinds, scope) in cases {
            let name = CommandName::parse(command).expect(command);
            assert_eq!(touched(|kind| of_write(&[kind], name, body.as_bytes())), kinds, "{command}");
            assert_eq!(of_write(&KINDS, name, body.as_bytes()), scope, "{command}");
        }
        let named: Vec<String> = cases_named().map(|name| name.to_string()).collect();
        assert_eq!(named, ["sns/friend_update", "sns/group_add", "sns/group_delete"], "they change no relation");
        assert_eq!(of_write(&KINDS, CommandName::parse("follow/made_up").expect("a name"), b"{}"), None);
    }

    #[test]
    fn no_read_touches_a_relation() {
        for known in KNOWN_COMMANDS.iter().filter(|known| known.kind == CommandKind::Read) {
            assert_eq!(of_write(&KINDS, known.name, NAMES.as_bytes()), None, "{}", known.name);
        }
        let former = CommandName::parse("sns/friend_get_all").expect("a name");
        assert_eq!((former.kind(), of_write(&KINDS, former, NAMES.as_bytes())), (CommandKind::Read, None));
    }

    #[test]
    fn write_in_another_case_may_change_any_pair() {
        let (all, lists) = (vec!["follow", "friend", "blacklist"], vec!["friend", "blacklist"]);
        for (command, kinds) in [
            ("SNS/made_up", lists.clone()),
            ("Sns/friend_add", lists.clone()),
            ("sns/Friend_Get", lists),
            ("SNS/black_list_add", all.clone()),
            ("follow/Follow_Add", vec!["follow"]),
            ("FOLLOW/follow_delete", vec!["follow"]),
            ("IM_open_login_svc/account_delete", all.clone()),
            ("openim_robot_http_svc/DELETE_ROBOT", all),
            ("FOLLOW/follow_check", vec![]),
            ("Profile/portrait_set", vec![]),
        ] {
            let name = CommandName::parse(command).expect(command);
            assert_eq!(touched(|kind| of_write(&[kind], name, NAMES.as_bytes())), kinds, "{command}");
            let scope = of_write(&KINDS, name, NAMES.as_bytes());
            assert_eq!(scope, (!kinds.is_empty()).then_some(Scope::All), "{command}");
        }
    }

    /// Documented writes of friends and follows that change nothing here.
    fn cases_named() -> impl Iterator<Item = CommandName<'static>> {
        let writes = KNOWN_COMMANDS.iter().filter(|known| known.kind == CommandKind::Write).map(|known| known.name);
        let of_services = writes.filter(|name| matches!(name.service(), "sns" | "follow"));
        of_services.filter(|name| of_write(&KINDS, *name, b"{}").is_none())
    }

    #[test]
    fn unreadable_friend_write_widens() {
        let add =
            |body: &str| of_write(&[&FRIEND], CommandName::parse("sns/friend_add").expect("a name"), body.as_bytes());
        for body in [
            r#"{"From_Account":"ann","AddFriendItem":[{"To_Account":"bob","To_Account":"cyd"}]}"#,
            r#"{"From_Account":"ann","AddFriendItem":{}}"#,
            r#"{"From_Account":"ann","AddFriendItem":[{"AddSource":"x"}]}"#,
            NAMES,
        ] {
            assert_eq!(add(body), users(&["ann"]), "{body}");
        }
        for body in [
            r#"{"From_Account":"ann","from_account":"x","AddFriendItem":[]}"#,
            "{\"From_Account\":\"ann\" // x\n}",
            "{}",
        ] {
            assert_eq!(add(body), Some(Scope::All), "{body}");
        }
        let robot = |body: &str| of_write(&[&BLACKLIST], DELETE_ROBOT, body.as_bytes());
        for body in ["{}", r#"{"Robot_Account":["x"]}"#, r#"{"Robot_Account":"x","Robot_Account":"y"}"#, "[]"] {
            assert_eq!(robot(body), Some(Scope::All), "{body}");
        }
    }

    #[test]
    fn each_event_touches_its_relations() {
        let listed = Some(Scope::Pairs(vec![
            UserPairs { from: "ann".into(), to: vec!["bob".into()] },
            UserPairs { from: "bob".into(), to: vec!["ann".into()] },
        ]));
        for (command, kinds) in [
            ("Sns.CallbackFriendAdd", vec!["friend"]),
            ("Sns.CallbackFriendDelete", vec!["friend"]),
            ("Sns.CallbackBlackListAdd", vec!["follow", "friend", "blacklist"]),
            ("Sns.CallbackBlackListDelete", vec!["friend", "blacklist"]),
            ("Sns.CallbackPrevFriendAdd", vec![]),
            ("Sns.CallbackPrevFriendResponse", vec![]),
            ("sns.callbackfriendadd", vec![]),
        ] {
            assert_eq!(touched(|kind| of_event(&[kind], command, PAIRS.as_bytes())), kinds, "{command}");
            let expected = if kinds.is_empty() { None } else { listed.clone() };
            assert_eq!(of_event(&KINDS, command, PAIRS.as_bytes()), expected, "{command}");
        }
        for body in [
            "",
            "{}",
            r#"{"PairList":[]}"#,
            r#"{"PairList":{}}"#,
            r#"{"PairList":[{"From_Account":"ann"}]}"#,
            r#"{"PairList":[{"From_Account":"ann","To_Account":"bob","to_account":"cyd"}]}"#,
            r#"{"PairList":[{"From_Account":"ann","To_Account":"bob"}],"PairList":[]}"#,
            r#"{"PairList":[{"From_Account":"ann","To_Account":7}]}"#,
        ] {
            assert_eq!(of_event(&KINDS, "Sns.CallbackFriendDelete", body.as_bytes()), Some(Scope::All), "{body}");
        }
    }
}
