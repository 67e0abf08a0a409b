//! `follow_check` responses: written for callers, parsed from Chat. Also the calls to Chat.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::domain::json::object;
use crate::domain::json::object::Object;
use crate::domain::pairs::item::{Item, Items};
use crate::domain::pairs::pair::Relation;

/// Encodes the body of a call to Chat.
pub fn encode_call<'a>(from: &str, to: impl Iterator<Item = &'a str>) -> Vec<u8> {
    let mut body = Vec::with_capacity(4096);
    body.extend_from_slice(b"{\"From_Account\":");
    push_text(&mut body, from);
    body.extend_from_slice(b",\"To_Account\":[");
    for (index, name) in to.enumerate() {
        if index > 0 {
            body.push(b',');
        }
        push_text(&mut body, name);
    }
    body.extend_from_slice(b"]}");
    body
}

/// The beginning of an item with a known relation.
const OPEN: &[u8] = b"{\"To_Account\":\"";
const NEXT_LEN: usize = br#"","ResultCode":0,"ResultInfo":"","FollowType":0},{"To_Account":""#.len();
/// The text between the accounts of two items, by the number of the first one's relation. All have one length, so the
/// copy is inlined.
const NEXT: [[u8; NEXT_LEN]; 4] = [
    *b"\",\"ResultCode\":0,\"ResultInfo\":\"\",\"FollowType\":0},{\"To_Account\":\"",
    *b"\",\"ResultCode\":0,\"ResultInfo\":\"\",\"FollowType\":1},{\"To_Account\":\"",
    *b"\",\"ResultCode\":0,\"ResultInfo\":\"\",\"FollowType\":2},{\"To_Account\":\"",
    *b"\",\"ResultCode\":0,\"ResultInfo\":\"\",\"FollowType\":3},{\"To_Account\":\"",
];

/// Encodes the response to a caller: an item per account in order, with exactly the vendor's members.
///
/// Nearly every item is a known relation of a name without escapes. So the code assumes that the next item is one too:
/// an item is then two copies, the name and the text up to the next name.
pub fn encode_response<'a>(items: impl ExactSizeIterator<Item = (&'a Cow<'a, str>, &'a Item)>) -> Vec<u8> {
    let mut body = Vec::with_capacity(128 + 96 * items.len());
    body.extend_from_slice(b"{\"ResultItem\":[");
    body.extend_from_slice(OPEN);
    let any = items.len() > 0;
    for (name, item) in items {
        match item {
            Item::Known(relation) => {
                match name {
                    // Borrowed from a body, so it needs no escapes.
                    Cow::Borrowed(name) => body.extend_from_slice(name.as_bytes()),
                    Cow::Owned(name) => {
                        // `push_text` adds quotes.
                        body.pop();
                        push_text(&mut body, name);
                        body.pop();
                    }
                }
                body.extend_from_slice(&NEXT[usize::from(relation.number())]);
            }
            Item::Verbatim(json) => {
                body.truncate(body.len() - OPEN.len());
                body.extend_from_slice(json.as_bytes());
                body.push(b',');
                body.extend_from_slice(OPEN);
            }
            Item::Missing(reason) => {
                // `push_text` adds quotes.
                body.pop();
                push_text(&mut body, name);
                let (code, info) = (reason.code(), reason.text());
                let rest = format!(",\"ResultCode\":{code},\"ResultInfo\":\"{info}\",\"FollowType\":0}},");
                body.extend_from_slice(rest.as_bytes());
                body.extend_from_slice(OPEN);
            }
        }
    }
    // Remove the beginning of the next item, and the comma before it.
    body.truncate(body.len() - OPEN.len() - usize::from(any));
    body.extend_from_slice(b"],\"ActionStatus\":\"OK\",\"ErrorCode\":0,\"ErrorInfo\":\"\",\"ErrorDisplay\":\"\"}");
    body
}

fn push_text(body: &mut Vec<u8>, text: &str) {
    serde_json::to_writer(body, text).expect("strings always serialize");
}

/// Parses the items of a successful response. Returns `None` if there is no array of items: then the response does not
/// match the call.
pub fn parse_items(body: &[u8]) -> Option<Items<'_>> {
    let response: Response<'_> = object::read(body)?;
    let mut items = Items::with_capacity(response.items.len());
    for raw in response.items {
        let Ok(Object(read)) = serde_json::from_str::<Object<RawItem<'_>>>(raw.get()) else {
            // A malformed item affects only its own account.
            if let Ok(Object(Named { to })) = serde_json::from_str(raw.get()) {
                items.add_unreadable(to.0);
            }
            continue;
        };
        let item = match (read.code, read.relation.and_then(Relation::new)) {
            (0, Some(relation)) => Item::Known(relation),
            _ => Item::Verbatim(raw.get().into()),
        };
        items.add(read.to.0, item);
    }
    Some(items)
}

#[derive(Deserialize)]
struct Response<'a> {
    #[serde(borrow, rename = "ResultItem")]
    items: Vec<&'a RawValue>,
}

#[derive(Deserialize)]
struct RawItem<'a> {
    #[serde(borrow, rename = "To_Account")]
    to: Account<'a>,
    #[serde(rename = "ResultCode")]
    code: i64,
    #[serde(default, rename = "FollowType", deserialize_with = "integer_or_none")]
    relation: Option<i64>,
}

/// The account of an item that is malformed otherwise.
#[derive(Deserialize)]
struct Named<'a> {
    #[serde(borrow, rename = "To_Account")]
    to: Account<'a>,
}

/// Borrows if there are no escapes; serde's own `Cow` always copies.
#[derive(Deserialize)]
struct Account<'a>(#[serde(borrow)] Cow<'a, str>);

/// Returns `None` for a FollowType that is not an integer: the item is then relayed unchanged.
fn integer_or_none<'de, D: serde::Deserializer<'de>>(json: D) -> Result<Option<i64>, D::Error> {
    Ok(<&RawValue>::deserialize(json)?.get().parse().ok())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::domain::pairs::item::Found;

    fn known(number: i64) -> Item {
        Item::Known(Relation::new(number).expect("0 to 3"))
    }

    #[test]
    fn response_has_the_vendors_members_in_order() {
        let (bob, cyd) = (Cow::Borrowed("bob"), Cow::Owned("c\"d".to_owned()));
        let failed = Item::Verbatim(r#"{"To_Account":"eve", "ResultCode":30003}"#.into());
        let eve = Cow::Borrowed("eve");
        assert_eq!(
            String::from_utf8(encode_response(std::iter::empty())).expect("UTF-8"),
            r#"{"ResultItem":[],"ActionStatus":"OK","ErrorCode":0,"ErrorInfo":"","ErrorDisplay":""}"#
        );
        for number in 0..4 {
            let body = String::from_utf8(encode_response([(&bob, &known(number))].into_iter())).expect("UTF-8");
            assert!(
                body.starts_with(r#"{"ResultItem":[{"To_Account":"bob","ResultCode":0,"ResultInfo":"","FollowType":"#)
            );
            assert!(body.ends_with(&format!(
                r#":{number}}}],"ActionStatus":"OK","ErrorCode":0,"ErrorInfo":"","ErrorDisplay":""}}"#
            )));
        }
        let items = [(&bob, &known(2)), (&cyd, &known(0)), (&eve, &failed)];
        assert_eq!(
            String::from_utf8(encode_response(items.into_iter())).expect("UTF-8"),
            r#"{"ResultItem":[{"To_Account":"bob","ResultCode":0,"ResultInfo":"","FollowType":2},{"To_Account":"c\"d","ResultCode":0,"ResultInfo":"","FollowType":0},{"To_Account":"eve", "ResultCode":30003}],"ActionStatus":"OK","ErrorCode":0,"ErrorInfo":"","ErrorDisplay":""}"#
        );
    }

    #[test]
    fn items_are_parsed_one_by_one() {
        let body = br#"{"ResultItem":[
            {"To_Account":"a","ResultCode":0,"ResultInfo":"","FollowType":3},
            {"To_Account":"b","ResultCode":30003,"ResultInfo":"no","FollowType":0},
            {"To_Account":"c","ResultCode":0,"ResultInfo":"","FollowType":7},
            {"To_Account":"d","ResultCode":0,"FollowType":1},{"To_Account":"d","ResultCode":0,"FollowType":1,"New":1},
            {"To_Account":"e","ResultCode":0,"FollowType":1},{"To_Account":"e","ResultCode":0,"FollowType":2},
            {"To_Account":"f","ResultCode":0,"FollowType":"1"},
            {"To_Account":"g\u0041","ResultCode":0,"FollowType":0}
        ],"ActionStatus":"OK","ErrorCode":0,"More":{}}"#;
        let items = parse_items(body).expect("readable");
        assert_eq!(items.get("a"), Some(&Found::Item(known(3))));
        let verbatim = |text: &str| Found::Item(Item::Verbatim(text.into()));
        assert_eq!(
            items.get("b"),
            Some(&verbatim(r#"{"To_Account":"b","ResultCode":30003,"ResultInfo":"no","FollowType":0}"#))
        );
        assert_eq!(
            items.get("c"),
            Some(&verbatim(r#"{"To_Account":"c","ResultCode":0,"ResultInfo":"","FollowType":7}"#))
        );
        assert_eq!(items.get("d"), Some(&Found::Item(known(1))));
        assert_eq!(items.get("e"), Some(&Found::Contradiction));
        assert_eq!(items.get("f"), Some(&verbatim(r#"{"To_Account":"f","ResultCode":0,"FollowType":"1"}"#)));
        assert_eq!(items.get("gA"), Some(&Found::Item(known(0))));
        assert_eq!(items.get("h"), None);
    }

    #[test]
    fn response_without_an_item_array_is_none() {
        for body in [r#"{"ErrorCode":0}"#, r#"{"ResultItem":{},"ErrorCode":0}"#] {
            assert!(parse_items(body.as_bytes()).is_none(), "{body}");
        }
    }

    #[test]
    fn malformed_item_affects_only_its_account() {
        let body = br#"{"ResultItem":[7,{"ResultCode":0},{"To_Account":"a","ResultCode":"0"},
            {"To_Account":"b","ResultCode":0,"ResultCode":1},{"To_Account":"c","ResultCode":0,"FollowType":1}],"ErrorCode":0}"#;
        let items = parse_items(body).expect("readable");
        assert_eq!(items.get("a"), Some(&Found::Contradiction));
        assert_eq!(items.get("b"), Some(&Found::Contradiction));
        assert_eq!(items.get("c"), Some(&Found::Item(known(1))));
        // An item with unreadable member names counts as missing.
        let items = parse_items(br#"{"ResultItem":[{"To_Account":"d","\udc00":0}],"ErrorCode":0}"#).expect("readable");
        assert_eq!(items.get("d"), None);
    }

    proptest! {
        #[test]
        fn encoded_response_and_call_are_parsed_back(names in proptest::collection::vec("[^\\p{Cc}]{1,8}", 1..20), number in 0..4i64) {
            let names: Vec<Cow<'_, str>> = names.into_iter().map(Cow::Owned).collect();
            let item = known(number);
            let body = encode_response(names.iter().map(|name| (name, &item)));
            let items = parse_items(&body).expect("readable");
            for name in &names {
                prop_assert_eq!(items.get(name), Some(&Found::Item(item.clone())));
            }
            let call = encode_call(&names[0], names.iter().map(AsRef::as_ref));
            let read = crate::domain::follow::request::parse(&call, 100);
            let valid = names.iter().all(|name| crate::domain::chat::app::check_user_id(name).is_ok());
            prop_assert_eq!(read.is_ok(), valid);
        }
    }
}
