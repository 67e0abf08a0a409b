//! Chat's responses to checks.

use std::collections::HashSet;

use chatgate::domain::pairs::item::{Found, Item};
use chatgate::domain::pairs::pair::{Relation, Sides};
use chatgate::domain::relation::{FOLLOW, FRIEND, RelationKind};

use super::json::{self, Json};

/// Reads the bytes as the body of a response.
pub fn run(body: &[u8]) {
    if json::is_too_long(body) {
        return;
    }
    for (kind, list) in [(&FOLLOW, "ResultItem"), (&FRIEND, "InfoItem")] {
        for sides in [Sides::Both, Sides::First] {
            read_as(kind, sides, list, body);
        }
    }
}

fn read_as(kind: &RelationKind, sides: Sides, list: &str, body: &[u8]) {
    let items = kind.parse_items(sides, body);
    let other = json::read(body);
    let Some(items) = items else {
        let readable = other
            .is_some_and(|json| !json.is_odd() && json.depth() < 100 && matches!(json.only(list), Some(Json::List(_))));
        assert!(!readable, "a response with items was not read");
        return;
    };
    let json = other.expect("the two readers disagree on whether this is JSON");
    let Some(Json::List(list)) = json.only(list) else { panic!("items without a list") };
    let name = |item: &'_ Json<'_>| item.only("To_Account").and_then(Json::text).map(str::to_owned);
    let names: HashSet<String> = list.iter().filter_map(name).collect();
    for name in &names {
        // An item with an invalid string may be skipped; the request then fails because an item is missing.
        let is_about = |item: &&Json<'_>| !item.is_odd() && item.only("To_Account").and_then(Json::text) == Some(name);
        let about: Vec<_> = list.iter().filter(is_about).collect();
        if about.is_empty() {
            continue;
        }
        match items.get(name) {
            Some(Found::Item(Item::Known(relation))) => {
                for item in about {
                    assert_eq!(item.only("ResultCode").and_then(Json::whole), Some(0), "{item:?}");
                    assert_eq!(relation_of(item), Some(*relation), "{item:?}");
                    assert_eq!(relation.restricted_to(sides), *relation, "{item:?}");
                }
            }
            Some(Found::Item(Item::Verbatim(text))) => {
                let verbatim = json::read(text.as_bytes()).expect("an item of the response");
                assert!(about.iter().all(|item| **item == verbatim), "{about:?} became {verbatim:?}");
                assert!(list.contains(&verbatim));
            }
            Some(Found::Item(Item::Missing(_))) => panic!("Chat's response has an item for {name}"),
            Some(Found::Contradiction) => {}
            None => panic!("no result for {name}, which is in {about:?}"),
        }
    }
    // A name in no item has no result. This includes strings elsewhere, such as in an array instead of an object.
    let elsewhere = list.iter().flat_map(|item| match item {
        Json::List(parts) => parts.iter().filter_map(Json::text).collect(),
        Json::Object(members) => members.iter().filter_map(|(name, _)| name.as_deref()).collect(),
        _ => Vec::new(),
    });
    for other in elsewhere.chain(["", "unknown"]) {
        assert!(names.contains(other) || items.get(other).is_none(), "a result for {other}, which is in no item");
    }
}

/// Returns the relation that an item of either command has.
fn relation_of(item: &Json<'_>) -> Option<Relation> {
    let number = match (item.only("FollowType"), item.only("Relation").and_then(Json::text)) {
        (Some(Json::Number(digits)), _) => digits.parse().ok()?,
        (_, Some("CheckResult_Type_NoRelation")) => 0,
        (_, Some("CheckResult_Type_BWithA")) => 1,
        (_, Some("CheckResult_Type_AWithB")) => 2,
        (_, Some("CheckResult_Type_BothWay")) => 3,
        _ => return None,
    };
    Relation::new(number)
}
