//! Webhooks from Chat, or from a sender that claims to be Chat: the query, a line feed, the body.

use std::time::Duration;

use chatgate::domain::chat::command::{
    ACCOUNT_DELETE, CommandName, FOLLOW_ADD, FOLLOW_DELETE, FRIEND_ADD, FRIEND_DELETE_ALL,
};
use chatgate::domain::chat::webhook::{Claims, Event, Token};
use chatgate::domain::pairs::scope::Scope;
use chatgate::domain::relation::KINDS;
use chatgate::domain::relation::changes::of_write;

use super::json::{self, Json};

/// A day in 2026, in seconds since 1970.
const NOW: Duration = Duration::from_secs(1_790_000_000);

/// Reads the first line as a query and the rest as the body of each event and each write.
pub fn run(bytes: &[u8]) {
    if json::is_too_long(bytes) {
        return;
    }
    let line_len = bytes.iter().position(|byte| *byte == b'\n').unwrap_or(bytes.len());
    let (query, body) = (&bytes[..line_len], bytes.get(line_len + 1..).unwrap_or_default());
    if let Ok(query) = std::str::from_utf8(query) {
        claims(query);
    }
    let json = json::read(body);
    let list = |object: &str, name: &'static str| (object.to_owned(), name);
    for (event, write, (object, name)) in [
        ("Follow.CallbackAfterFollowAdd", None, list("FollowList", "To_Account")),
        ("Follow.CallbackAfterFollowDelete", Some(FOLLOW_DELETE), list("", "To_Account")),
        ("", Some(FOLLOW_ADD), list("FollowItem", "To_Account")),
        ("", Some(FRIEND_ADD), list("AddFriendItem", "To_Account")),
        ("", Some(FRIEND_DELETE_ALL), list("", "")),
    ] {
        let named = Named::of(json.as_ref(), &object, name);
        if let Some(write) = write {
            named.covered_by(&of_write(&KINDS, write, body).expect("a write"));
        }
        if !event.is_empty() {
            let Event::Relation(scope) = Event::read(&KINDS, event, body) else { panic!("{event} is an event") };
            named.covered_by(&scope);
        }
    }
    pair_list(json.as_ref(), body);
    let deleted = of_write(&KINDS, ACCOUNT_DELETE, body).expect("a write");
    assert!(!matches!(deleted, Scope::Pairs(_)));
    for user in Named::of(json.as_ref(), "DeleteItem", "UserID").to {
        assert!(deleted == Scope::All || matches!(&deleted, Scope::Users(users) if users.contains(&user)), "{user}");
    }
    if let Event::OverLimit { command, limit } = Event::read(&KINDS, "Alert.RequestOverLimit", body) {
        assert!(CommandName::parse(&command).is_ok());
        let json = json.expect("a rate alert is JSON");
        assert_eq!(json.only("Limit").and_then(Json::whole), Some(limit.get().into()));
    }
    assert_eq!(Event::read(&KINDS, "C2C.CallbackAfterSendMsg", body), Event::Other);
}

/// Every UserID that any reader of the body could find.
struct Named {
    from: Vec<String>,
    to: Vec<String>,
}

impl Named {
    fn of(json: Option<&Json<'_>>, object: &str, name: &str) -> Self {
        let texts =
            |values: Vec<&Json<'_>>| values.iter().filter_map(|value| value.text().map(str::to_owned)).collect();
        let Some(json) = json else { return Self { from: Vec::new(), to: Vec::new() } };
        let to = if object.is_empty() {
            texts(json.members(name).into_iter().flat_map(items).collect())
        } else {
            texts(json.members(object).into_iter().flat_map(items).flat_map(|item| item.members(name)).collect())
        };
        Self { from: texts(json.members("From_Account")), to }
    }

    /// Asserts that a scope contains every name. It may be wider, but never narrower, even if a member is repeated.
    fn covered_by(&self, scope: &Scope) {
        match scope {
            Scope::All => {}
            Scope::Users(users) => assert!(self.from.iter().all(|from| users.contains(from)), "{users:?}"),
            Scope::Pairs(pairs) => {
                let [pairs] = pairs.as_slice() else { panic!("{pairs:?}") };
                assert!(self.from.iter().all(|one| *one == pairs.from), "{:?}", self.from);
                assert!(self.to.iter().all(|one| pairs.to.contains(one)), "{:?} but {pairs:?}", self.to);
            }
        }
    }
}

/// Asserts that the scope of an event with a list of pairs contains each of them.
fn pair_list(json: Option<&Json<'_>>, body: &[u8]) {
    let event = Event::read(&KINDS, "Sns.CallbackFriendDelete", body);
    let Event::Relation(scope) = event else { panic!("an event") };
    let Scope::Pairs(pairs) = scope else {
        assert_eq!(scope, Scope::All);
        return;
    };
    let texts = |item: &Json<'_>, name: &'static str| -> Vec<String> {
        item.members(name).iter().filter_map(|value| value.text().map(str::to_owned)).collect()
    };
    for item in json.into_iter().flat_map(|json| json.members("PairList")).flat_map(items) {
        for (from, to) in texts(item, "From_Account").iter().zip(texts(item, "To_Account")) {
            assert!(pairs.iter().any(|pairs| pairs.from == *from && pairs.to.contains(&to)), "{from} and {to}");
        }
    }
}

fn items<'s, 'a>(value: &'s Json<'a>) -> &'s [Json<'a>] {
    if let Json::List(items) = value { items } else { &[] }
}

fn claims(query: &str) {
    let token = Token::new("a token").expect("not empty");
    if let Ok(claims) = Claims::read(query) {
        assert_ne!(claims.sdkappid.get(), 0);
        // A random SHA-256 is never valid.
        assert!(claims.verify(&token, NOW, Duration::from_secs(60)).is_err());
        assert!(!format!("{claims:?}").contains(query), "Debug shows the query, which could be replayed");
        let once = query.split('&').filter(|part| {
            let name = part.split('=').next().unwrap_or_default();
            let name = percent_encoding::percent_decode_str(name).decode_utf8_lossy();
            name.eq_ignore_ascii_case("Sign")
        });
        assert_eq!(once.count(), 1);
    }
}
