//! Responses to a check: written for callers, parsed from Chat. Also the calls to Chat.

use std::borrow::Cow;

use serde_json::value::RawValue;

use super::RelationKind;
use super::form::{BETWEEN_MAX, END, MemberPlace, OPEN, push_text};
use crate::domain::json::object::{Text, members};
use crate::domain::pairs::item::{Item, Items};
use crate::domain::pairs::pair::{Relation, Sides};

impl RelationKind {
    /// Encodes the body of a call to Chat.
    pub fn encode_call<'a>(&self, sides: Sides, from: &str, to: impl Iterator<Item = &'a str>) -> Vec<u8> {
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
        body.push(b']');
        if let Some(types) = &self.check_types {
            let check_type = match sides {
                Sides::Both => types.both,
                Sides::First => types.single,
            };
            body.extend_from_slice(b",\"CheckType\":");
            push_text(&mut body, check_type);
        }
        body.push(b'}');
        body
    }

    /// Encodes the response to a caller: an item per account in order, with exactly the vendor's members.
    pub fn encode_response<'a>(
        &self,
        sides: Sides,
        items: impl ExactSizeIterator<Item = (&'a Cow<'a, str>, &'a Item)>,
    ) -> Vec<u8> {
        let form = &self.response;
        let mut body = form.begin(items.len());
        let any = items.len() > 0;
        let mut failed = Vec::new();
        for (name, item) in items {
            match item {
                Item::Known(relation) => form.push_known(&mut body, name, relation.restricted_to(sides)),
                Item::Verbatim(json) => {
                    body.truncate(body.len() - OPEN.len());
                    body.extend_from_slice(json.as_bytes());
                    body.push(b',');
                    body.extend_from_slice(OPEN);
                    if code_of(json) != Some(0) {
                        failed.push(name);
                    }
                }
                Item::Missing(reason) => {
                    // `push_text` adds quotes.
                    body.pop();
                    push_text(&mut body, name);
                    body.extend_from_slice(form.failed(reason.code(), reason.text()).as_bytes());
                    body.push(b',');
                    body.extend_from_slice(OPEN);
                    failed.push(name);
                }
            }
        }
        form.end_items(&mut body, any);
        if form.member.place == MemberPlace::BeforeCode && !failed.is_empty() {
            body.extend_from_slice(b",\"Fail_Account\":");
            serde_json::to_writer(&mut body, &failed).expect("strings always serialize");
        }
        body.extend_from_slice(END);
        body
    }

    /// Encodes the same response if every relation is known.
    pub fn encode_known<'a>(
        &self,
        sides: Sides,
        relations: impl ExactSizeIterator<Item = (&'a Cow<'a, str>, Relation)>,
    ) -> Vec<u8> {
        let form = &self.response;
        let mut body = form.begin(relations.len());
        let any = relations.len() > 0;
        for (name, relation) in relations {
            form.push_known(&mut body, name, relation.restricted_to(sides));
        }
        form.end_items(&mut body, any);
        body.extend_from_slice(END);
        body
    }

    /// Parses the items of a successful response to a call that asked for `sides`. Returns `None` if there is no array
    /// of items: then the response does not match the call.
    pub fn parse_items<'a>(&self, sides: Sides, body: &'a [u8]) -> Option<Items<'a>> {
        // UTF-8 is checked here, because the parser does not check the members that it skips.
        let [list] = members(std::str::from_utf8(body).ok()?, [self.response.list])?;
        let list: Vec<&RawValue> = serde_json::from_str(list?.get()).ok()?;
        let mut items = Items::with_capacity(list.len());
        for raw in list {
            if let Some(RawItem { to, code, relation }) = self.read_item(raw.get()) {
                let relation = relation.and_then(|value| self.relation_of(sides, value.get()));
                items.add(
                    to,
                    match (code, relation) {
                        (0, Some(relation)) => Item::Known(relation),
                        _ => Item::Verbatim(raw.get().into()),
                    },
                );
            } else if let Some([to]) = members(raw.get(), ["To_Account"])
                && let Some(to) = to.and_then(text)
            {
                // A malformed item affects only its own account.
                items.add_unreadable(to);
            }
        }
        Some(items)
    }

    fn read_item<'a>(&self, json: &'a str) -> Option<RawItem<'a>> {
        let [to, code, relation] = members(json, ["To_Account", "ResultCode", self.response.member.name])?;
        Some(RawItem { to: text(to?)?, code: serde_json::from_str(code?.get()).ok()?, relation })
    }

    /// Returns the relation that a value means; `None` for another value than those that Chat has for such a call: the
    /// item is then relayed unchanged.
    fn relation_of(&self, sides: Sides, value: &str) -> Option<Relation> {
        let number = self.response.member.values.iter().position(|known| *known == value)?;
        Relation::new(number as i64).filter(|relation| relation.restricted_to(sides) == *relation)
    }

    /// Returns an upper bound of the length of an item with a known relation, without its name.
    pub(crate) fn item_len(&self) -> usize {
        BETWEEN_MAX
    }
}

/// What an item says. Its code is read before its relation: a failed item has a relation too, which means nothing.
struct RawItem<'a> {
    to: Cow<'a, str>,
    code: i64,
    relation: Option<&'a RawValue>,
}

/// Returns the code of an item.
fn code_of(item: &str) -> Option<i64> {
    let [code] = members(item, ["ResultCode"])?;
    serde_json::from_str(code?.get()).ok()
}

fn text(json: &RawValue) -> Option<Cow<'_, str>> {
    serde_json::from_str(json.get()).ok().map(|Text(text)| text)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::request::Parsed;
    use super::super::{BLACKLIST, FOLLOW, FRIEND, KINDS};
    use super::*;
    use crate::domain::pairs::item::{Found, MissingReason};

    fn known(number: i64) -> Item {
        Item::Known(Relation::new(number).expect("0 to 3"))
    }

    #[test]
    fn response_has_the_vendors_members_in_order() {
        let (bob, cyd) = (Cow::Borrowed("bob"), Cow::Owned("c\"d".to_owned()));
        let failed = Item::Verbatim(r#"{"To_Account":"eve", "ResultCode":30003}"#.into());
        let eve = Cow::Borrowed("eve");
        assert_eq!(
            String::from_utf8(FOLLOW.encode_response(Sides::Both, std::iter::empty())).expect("UTF-8"),
            r#"{"ResultItem":[],"ActionStatus":"OK","ErrorCode":0,"ErrorInfo":"","ErrorDisplay":""}"#
        );
        for number in 0..4 {
            let body = String::from_utf8(FOLLOW.encode_response(Sides::Both, [(&bob, &known(number))].into_iter()))
                .expect("UTF-8");
            assert!(
                body.starts_with(r#"{"ResultItem":[{"To_Account":"bob","ResultCode":0,"ResultInfo":"","FollowType":"#)
            );
            assert!(body.ends_with(&format!(
                r#":{number}}}],"ActionStatus":"OK","ErrorCode":0,"ErrorInfo":"","ErrorDisplay":""}}"#
            )));
        }
        let items = [(&bob, &known(2)), (&cyd, &known(0)), (&eve, &failed)];
        assert_eq!(
            String::from_utf8(FOLLOW.encode_response(Sides::Both, items.into_iter())).expect("UTF-8"),
            r#"{"ResultItem":[{"To_Account":"bob","ResultCode":0,"ResultInfo":"","FollowType":2},{"To_Account":"c\"d","ResultCode":0,"ResultInfo":"","FollowType":0},{"To_Account":"eve", "ResultCode":30003}],"ActionStatus":"OK","ErrorCode":0,"ErrorInfo":"","ErrorDisplay":""}"#
        );
    }

    proptest! {
        #[test]
        fn known_relations_are_encoded_like_other_items(
            relations in proptest::collection::vec(("[a-c\"\u{e9}]{1,4}", any::<bool>(), 0..4i64), 0..9),
            kind in 0..KINDS.len(),
            sides in prop_oneof![Just(Sides::Both), Just(Sides::First)],
        ) {
            let items: Vec<(Cow<'_, str>, Item)> = relations.iter().map(|(name, is_borrowed, number)| {
                // A name is borrowed only if it has no escapes.
                let name = if *is_borrowed && !name.contains('"') { Cow::Borrowed(name.as_str()) } else { Cow::Owned(name.clone()) };
                (name, known(*number))
            }).collect();
            let relation = |item: &Item| match item {
                Item::Known(relation) => *relation,
                _ => unreachable!("all are known"),
            };
            let known = KINDS[kind].encode_known(sides, items.iter().map(|(name, item)| (name, relation(item))));
            prop_assert_eq!(known, KINDS[kind].encode_response(sides, items.iter().map(|(name, item)| (name, item))));
        }
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
        let items = FOLLOW.parse_items(Sides::Both, body).expect("readable");
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
            assert!(FOLLOW.parse_items(Sides::Both, body.as_bytes()).is_none(), "{body}");
        }
    }

    #[test]
    fn malformed_item_affects_only_its_account() {
        let body = br#"{"ResultItem":[7,{"ResultCode":0},{"To_Account":"a","ResultCode":"0"},
            {"To_Account":"b","ResultCode":0,"ResultCode":1},{"To_Account":"c","ResultCode":0,"FollowType":1}],"ErrorCode":0}"#;
        let items = FOLLOW.parse_items(Sides::Both, body).expect("readable");
        assert_eq!(items.get("a"), Some(&Found::Contradiction));
        assert_eq!(items.get("b"), Some(&Found::Contradiction));
        assert_eq!(items.get("c"), Some(&Found::Item(known(1))));
        // An item with unreadable member names counts as missing.
        let items = FOLLOW
            .parse_items(Sides::Both, br#"{"ResultItem":[{"To_Account":"d","\udc00":0}],"ErrorCode":0}"#)
            .expect("readable");
        assert_eq!(items.get("d"), None);
    }

    fn text(body: Vec<u8>) -> String {
        String::from_utf8(body).expect("UTF-8")
    }

    #[test]
    fn friend_response_has_the_vendors_members_in_order() {
        let names = ["bob", "cyd", "dan"].map(Cow::Borrowed);
        let failed =
            r#"{"To_Account":"dan","Relation":"CheckResult_Type_NoRelation","ResultCode":30006,"ResultInfo":"x"}"#;
        let items = [known(3), known(1), Item::Verbatim(failed.into())];
        assert_eq!(
            text(FRIEND.encode_response(Sides::Both, names.iter().zip(&items))),
            format!(
                r#"{{"InfoItem":[{{"To_Account":"bob","Relation":"CheckResult_Type_BothWay","ResultCode":0,"ResultInfo":""}},{{"To_Account":"cyd","Relation":"CheckResult_Type_BWithA","ResultCode":0,"ResultInfo":""}},{failed}],"Fail_Account":["dan"],"ActionStatus":"OK","ErrorCode":0,"ErrorInfo":"","ErrorDisplay":""}}"#
            )
        );
    }

    #[test]
    fn single_check_has_the_first_bit_only() {
        let name = Cow::Borrowed("bob");
        for (number, friend, blocked) in
            [(0, "NoRelation", "NO"), (1, "NoRelation", "NO"), (2, "AWithB", "AWithB"), (3, "AWithB", "AWithB")]
        {
            let item = known(number);
            let body = text(FRIEND.encode_response(Sides::First, [(&name, &item)].into_iter()));
            assert!(body.contains(&format!(r#""Relation":"CheckResult_Type_{friend}","ResultCode":0"#)), "{body}");
            let body = text(BLACKLIST.encode_response(Sides::First, [(&name, &item)].into_iter()));
            assert!(body.starts_with(r#"{"BlackListCheckItem":[{"To_Account":"bob","Relation":"#), "{body}");
            assert!(
                body.contains(&format!(r#""Relation":"BlackCheckResult_Type_{blocked}","ResultCode":0"#)),
                "{body}"
            );
        }
    }

    #[test]
    fn failed_accounts_are_listed_in_the_order_of_their_items() {
        let names = ["bob", "c\"d", "bob", "eve"].map(|name| Cow::Owned(name.to_owned()));
        let new_value = r#"{"To_Account":"eve","Relation":"CheckResult_Type_New","ResultCode":0,"ResultInfo":""}"#;
        let items = [
            Item::Missing(MissingReason::NoTime),
            Item::Missing(MissingReason::NoQuota),
            Item::Verbatim(r#"{"To_Account":"bob","ResultCode":30007}"#.into()),
            Item::Verbatim(new_value.into()),
        ];
        let body = text(BLACKLIST.encode_response(Sides::Both, names.iter().zip(&items)));
        let missing =
            r#"{"To_Account":"bob","Relation":"BlackCheckResult_Type_NO","ResultCode":60008,"ResultInfo":"chatgate: "#;
        assert!(body.starts_with(&format!(r#"{{"BlackListCheckItem":[{missing}"#)), "{body}");
        assert!(body.contains(r#"],"Fail_Account":["bob","c\"d","bob"],"ActionStatus":"OK""#), "{body}");
        assert!(!text(FOLLOW.encode_response(Sides::Both, names.iter().zip(&items))).contains("Fail_Account"));
        let body = text(FOLLOW.encode_response(Sides::Both, names.iter().zip(&items)));
        assert!(
            body.contains(r#""ResultInfo":"chatgate: no quota before the deadline of the request","FollowType":0},"#)
        );
        let whole = text(FRIEND.encode_response(Sides::Both, [(&names[0], &known(0))].into_iter()));
        assert!(!whole.contains("Fail_Account"), "{whole}");
    }

    #[test]
    fn code_of_an_item_is_read_before_its_relation() {
        let item = |code: i64, relation: &str| {
            format!(
                r#"{{"InfoItem":[{{"To_Account":"a","Relation":{relation},"ResultCode":{code},"ResultInfo":""}}]}}"#
            )
        };
        let found = |sides, body: &str| match FRIEND.parse_items(sides, body.as_bytes()).expect(body).get("a") {
            Some(Found::Item(item)) => item.clone(),
            other => panic!("{other:?}"),
        };
        let texts = ["NoRelation", "BWithA", "AWithB", "BothWay"].map(|name| format!("\"CheckResult_Type_{name}\""));
        for (number, text) in texts.iter().enumerate() {
            assert_eq!(found(Sides::Both, &item(0, text)), known(number as i64));
            assert!(matches!(found(Sides::Both, &item(30006, text)), Item::Verbatim(_)), "{text}");
            // A call for one side cannot say anything of the other one.
            let first = found(Sides::First, &item(0, text));
            assert_eq!(first == known(number as i64), number & 1 == 0, "{text}");
            assert!(number & 1 == 0 || matches!(first, Item::Verbatim(_)), "{text}");
        }
        for other in ["3", "null", "\"BothWay\"", "\"checkresult_type_bothway\"", "\"BlackCheckResult_Type_NO\""] {
            assert!(matches!(found(Sides::Both, &item(0, other)), Item::Verbatim(_)), "{other}");
        }
        assert!(BLACKLIST.parse_items(Sides::Both, item(0, "3").as_bytes()).is_none(), "the list of another command");
    }

    #[test]
    fn call_asks_for_its_sides() {
        let call = |kind: &RelationKind, sides| text(kind.encode_call(sides, "ann", ["bob"].into_iter()));
        assert_eq!(call(&FOLLOW, Sides::Both), r#"{"From_Account":"ann","To_Account":["bob"]}"#);
        for (kind, sides, check_type) in [
            (&FRIEND, Sides::Both, "CheckResult_Type_Both"),
            (&FRIEND, Sides::First, "CheckResult_Type_Single"),
            (&BLACKLIST, Sides::Both, "BlackCheckResult_Type_Both"),
            (&BLACKLIST, Sides::First, "BlackCheckResult_Type_Single"),
        ] {
            let expected = format!(r#"{{"From_Account":"ann","To_Account":["bob"],"CheckType":"{check_type}"}}"#);
            assert_eq!(call(kind, sides), expected);
        }
    }

    proptest! {
        #[test]
        fn encoded_response_and_call_are_parsed_back(
            names in proptest::collection::vec("[^\\p{Cc}]{1,8}", 1..20), number in 0..4i64, kind in 0..3usize, first in any::<bool>(),
        ) {
            let kind = KINDS[kind];
            let sides = if first && kind.check_types.is_some() { Sides::First } else { Sides::Both };
            let names: Vec<Cow<'_, str>> = names.into_iter().map(Cow::Owned).collect();
            let item = known(number);
            let body = kind.encode_response(sides, names.iter().map(|name| (name, &item)));
            let items = kind.parse_items(sides, &body).expect("readable");
            let restricted = Item::Known(Relation::new(number).expect("0 to 3").restricted_to(sides));
            for name in &names {
                prop_assert_eq!(items.get(name), Some(&Found::Item(restricted.clone())));
            }
            let call = kind.encode_call(sides, &names[0], names.iter().map(AsRef::as_ref));
            let read = kind.parse_request(&call, 100);
            let valid = names.iter().all(|name| crate::domain::chat::app::check_user_id(name).is_ok());
            prop_assert_eq!(read.is_ok(), valid);
            if let Ok(Parsed::Known(request)) = read {
                prop_assert_eq!(request.sides, sides);
                prop_assert_eq!(request.to, names);
            }
        }
    }
}
