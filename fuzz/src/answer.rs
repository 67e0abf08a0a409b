//! Chat's responses to `follow_check`.

use std::collections::HashSet;

use chatgate::domain::follow::response::parse_items;
use chatgate::domain::pairs::item::{Found, Item};

use super::json::{self, Json};

/// Reads the bytes as the body of a response.
pub fn run(body: &[u8]) {
    if json::is_too_long(body) {
        return;
    }
    let items = parse_items(body);
    let other = json::read(body);
    let Some(items) = items else {
        let readable = other.is_some_and(|json| {
            !json.is_odd() && json.depth() < 100 && matches!(json.only("ResultItem"), Some(Json::List(_)))
        });
        assert!(!readable, "a response with items was not read");
        return;
    };
    let json = other.expect("the two readers disagree on whether this is JSON");
    let Some(Json::List(list)) = json.only("ResultItem") else { panic!("items without a list") };
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
                    let Some(Json::Number(digits)) = item.only("FollowType") else { panic!("{item:?}") };
                    assert_eq!(digits.parse(), Ok(i64::from(relation.number())), "{item:?}");
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
