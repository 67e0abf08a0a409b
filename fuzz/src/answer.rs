//! Answers of Chat to `follow_check`.

use std::collections::HashSet;

use chatgate::domain::follow::response::{Found, Item, Items};

use super::json::{self, Json};

/// Reads the bytes as the body of an answer.
pub fn run(body: &[u8]) {
    if json::is_too_long(body) {
        return;
    }
    let items = Items::parse(body);
    let other = json::read(body);
    let Some(items) = items else {
        let readable = other.is_some_and(|json| {
            !json.is_odd() && json.depth() < 100 && matches!(json.only("ResultItem"), Some(Json::List(_)))
        });
        assert!(!readable, "an answer with items was not read");
        return;
    };
    let json = other.expect("two readers disagree about what JSON is");
    let Some(Json::List(list)) = json.only("ResultItem") else { panic!("items without a list") };
    let name = |item: &'_ Json<'_>| item.only("To_Account").and_then(Json::text).map(str::to_owned);
    let names: HashSet<String> = list.iter().filter_map(name).collect();
    for name in &names {
        // An item with a text that is none may be passed over: who asked for it is told that it is missing.
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
                let verbatim = json::read(text.as_bytes()).expect("an item of the answer");
                assert!(about.iter().all(|item| **item == verbatim), "{about:?} became {verbatim:?}");
                assert!(list.contains(&verbatim));
            }
            Some(Found::Contradiction) => {}
            None => panic!("nothing is said of {name}, which stands in {about:?}"),
        }
    }
    // Nothing is said of anybody whom no item names: not of texts that stand elsewhere, an array in place of
    // an object among them.
    let elsewhere = list.iter().flat_map(|item| match item {
        Json::List(parts) => parts.iter().filter_map(Json::text).collect(),
        Json::Object(members) => members.iter().filter_map(|(name, _)| name.as_deref()).collect(),
        _ => Vec::new(),
    });
    for unasked in elsewhere.chain(["", "nobody"]) {
        assert!(names.contains(unasked) || items.get(unasked).is_none(), "{unasked} was named by no item");
    }
}
