//! The pairs that a write or a webhook changes.

use std::collections::HashSet;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};

use crate::domain::chat::command::{ACCOUNT_DELETE, CommandName, FOLLOW_ADD, FOLLOW_DELETE};
use crate::domain::json::object::{Object, read};
use crate::domain::pairs::scope::Scope;

/// Returns the pairs that a call may change; `None` for a command that changes no relation.
///
/// Chat might read a body differently if it is not JSON, repeats members, or has names of an unexpected type. Then the
/// scope widens: too wide a scope costs lookups, but too narrow a scope would leave a wrong pair in the cache.
pub fn scope(name: CommandName<'_>, body: &[u8]) -> Option<Scope> {
    if name == FOLLOW_ADD {
        Some(follow_scope(body, |body| read::<Add>(body).map(|add| names(add.items))))
    } else if name == FOLLOW_DELETE {
        Some(follow_scope(body, |body| read::<Delete>(body).map(|delete| delete.to)))
    } else if name == ACCOUNT_DELETE {
        Some(account_scope(body))
    } else {
        None
    }
}

/// Returns the pairs of a webhook about a follow (`followed`) or an unfollow, by the same rules as [`scope`].
///
/// Chat sends no webhook without targets, so one without targets counts as unreadable. The two kinds have different
/// shapes (vendor pages 1047/70355 and 1047/70356).
pub(crate) fn event_scope(followed: bool, body: &[u8]) -> Scope {
    follow_scope(body, |body| {
        let to = if followed {
            read::<Followed>(body).map(|followed| names(followed.items))
        } else {
            read::<Delete>(body).map(|delete| delete.to)
        };
        to.filter(|to| !to.is_empty())
    })
}

fn follow_scope(body: &[u8], targets: impl Fn(&[u8]) -> Option<Vec<String>>) -> Scope {
    let Some(repeats) = repeats(body) else { return Scope::All };
    if repeats.outer {
        return Scope::All;
    }
    let Some(From { from }) = read(body) else { return Scope::All };
    match targets(body) {
        Some(to) if !repeats.nested => Scope::Pairs { from, to },
        _ => Scope::Users(vec![from]),
    }
}

fn account_scope(body: &[u8]) -> Scope {
    match (repeats(body), read::<Accounts>(body)) {
        (Some(Repeats { outer: false, nested: false }), Some(accounts)) => {
            Scope::Users(accounts.items.into_iter().map(|Object(item)| item.user).collect())
        }
        _ => Scope::All,
    }
}

fn names(items: Vec<Object<Target>>) -> Vec<String> {
    items.into_iter().map(|Object(item)| item.to).collect()
}

#[derive(Deserialize)]
struct From {
    #[serde(rename = "From_Account")]
    from: String,
}

#[derive(Deserialize)]
struct Add {
    #[serde(rename = "FollowItem")]
    items: Vec<Object<Target>>,
}

#[derive(Deserialize)]
struct Followed {
    #[serde(rename = "FollowList")]
    items: Vec<Object<Target>>,
}

#[derive(Deserialize)]
struct Target {
    #[serde(rename = "To_Account")]
    to: String,
}

#[derive(Deserialize)]
struct Delete {
    #[serde(rename = "To_Account")]
    to: Vec<String>,
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

/// Whether objects repeat a member. A parser may take either value, and Chat's choice is unknown. Names that differ only
/// in case count as equal.
#[derive(Default)]
struct Repeats {
    /// The outermost object repeats one.
    outer: bool,
    /// A nested object repeats one.
    nested: bool,
}

/// Returns `None` if the body is not JSON.
fn repeats(body: &[u8]) -> Option<Repeats> {
    serde_json::from_slice(body).ok()
}

impl Repeats {
    /// Adds the repeats of a nested value.
    fn add(&mut self, inner: &Repeats) {
        self.nested |= inner.outer || inner.nested;
    }
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
            repeats.outer |= !names.insert(name.to_lowercase());
            repeats.add(&inner);
        }
        Ok(repeats)
    }

    fn visit_seq<S: SeqAccess<'a>>(self, mut list: S) -> Result<Repeats, S::Error> {
        let mut repeats = Repeats::default();
        while let Some(inner) = list.next_element::<Repeats>()? {
            repeats.add(&inner);
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
    use super::*;
    use crate::domain::chat::command::FOLLOW_CHECK;

    fn pairs(from: &str, to: &[&str]) -> Option<Scope> {
        Some(Scope::Pairs { from: from.to_owned(), to: to.iter().map(ToString::to_string).collect() })
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
        assert_eq!(Some(event_scope(true, added.as_bytes())), pairs("ann", &["bob"]));
        assert_eq!(Some(event_scope(false, deleted.as_bytes())), pairs("ann", &["bob", "cyd"]));
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
            assert_eq!(Some(event_scope(followed, body.as_bytes())), users(&["ann"]), "{body}");
        }
        for body in ["", "{", "[]", "{}", r#"{"From_Account":null}"#, &added.repeat(2), &format!("{{{added}}}")] {
            assert_eq!(event_scope(true, body.as_bytes()), Scope::All, "{body}");
            assert_eq!(event_scope(false, body.as_bytes()), Scope::All, "{body}");
        }
    }

    #[test]
    fn other_commands_change_no_pair() {
        assert_eq!(scope(FOLLOW_CHECK, b"{}"), None);
        assert_eq!(scope(CommandName::parse("openim/sendmsg").expect("a name"), b"{}"), None);
    }
}
