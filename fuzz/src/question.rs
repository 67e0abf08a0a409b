//! Bodies of checks, and the requests and responses written from them.

use std::borrow::Cow;

use chatgate::domain::chat::app::{USER_ID_LEN_MAX, check_user_id};
use chatgate::domain::json::object::{DEPTH_MAX, is_too_deep};
use chatgate::domain::pairs::item::{Found, Item};
use chatgate::domain::pairs::pair::{Relation, Sides};
use chatgate::domain::relation::request::{CheckRequest, Parsed, RequestError};
use chatgate::domain::relation::{FOLLOW, FRIEND, RelationKind};

use super::json::{self, Json};

/// Maximum number of accounts, small so that the fuzzer exceeds it.
const TO_MAX: usize = 8;

/// Reads the bytes as a request body.
pub fn run(body: &[u8]) {
    if json::is_too_long(body) {
        return;
    }
    read_as(&FOLLOW, &["From_Account", "To_Account"], body);
    read_as(&FRIEND, &["From_Account", "To_Account", "CheckType"], body);
}

fn read_as(kind: &RelationKind, names: &[&str], body: &[u8]) {
    let reading = kind.parse_request(body, TO_MAX);
    let other = json::read(body);
    if let Some(json) = &other {
        assert_eq!(is_too_deep(body), json.depth() > DEPTH_MAX);
    }
    let Some(Json::Object(members)) = &other else {
        assert!(matches!(reading, Err(RequestError::NotJson(_))), "{reading:?}, but the body is not an object");
        return;
    };
    let object = Json::Object(members.clone());
    let known = |name: &Option<String>| name.as_deref().is_some_and(|name| names.contains(&name));
    let twice = names.iter().any(|name| object.members(name).len() > 1);
    let check_type = object.only("CheckType").and_then(Json::text);
    let sides = match check_type {
        _ if !names.contains(&"CheckType") => Some(Sides::Both),
        Some("CheckResult_Type_Both") => Some(Sides::Both),
        Some("CheckResult_Type_Single") => Some(Sides::First),
        _ => None,
    };
    let further = members.iter().any(|(name, _)| !known(name)) || sides.is_none();
    if !object.is_odd() {
        assert!(!matches!(reading, Err(RequestError::NotJson(_))), "{reading:?}, but the body is an object");
        assert_eq!(matches!(reading, Err(RequestError::Repeated(_))), twice);
        assert_eq!(matches!(reading, Ok(Parsed::Extended)), further && !twice);
    }
    match reading {
        Ok(Parsed::Known(question)) => {
            assert!(!twice && !further);
            assert_eq!(object.only("From_Account").and_then(Json::text), Some(&*question.from));
            let Some(Json::List(to)) = object.only("To_Account") else { panic!("no list") };
            let to: Vec<_> = to.iter().map(|name| name.text().expect("strings only")).collect();
            assert_eq!(question.to, to);
            assert!((1..=TO_MAX).contains(&to.len()));
            for name in to.iter().copied().chain([&*question.from]) {
                assert!(check_user_id(name).is_ok() && (1..=USER_ID_LEN_MAX).contains(&name.len()));
                assert!(!name.contains(char::is_control));
            }
            assert_eq!(Some(question.sides), sides);
            writes_what_it_read(kind, &question);
        }
        Ok(Parsed::Extended) => assert!(further && !twice),
        Err(
            RequestError::Shape(_)
            | RequestError::NotAString(_)
            | RequestError::TooMany(..)
            | RequestError::From(_)
            | RequestError::To(..),
        ) => {
            assert!(!further && !twice);
            assert!(!is_sound(&object), "rejected a valid request: {object:?}");
        }
        Err(RequestError::Repeated(_)) => assert!(twice),
        Err(RequestError::NotJson(_)) => {}
    }
}

/// Returns whether an object is a valid request by the contract.
fn is_sound(object: &Json<'_>) -> bool {
    let name = |value: &Json<'_>| value.text().is_some_and(|text| check_user_id(text).is_ok());
    let from = object.only("From_Account").is_some_and(name);
    let to = |to: &Json<'_>| matches!(to, Json::List(items) if (1..=TO_MAX).contains(&items.len()) && items.iter().all(name));
    from && object.only("To_Account").is_some_and(to)
}

fn writes_what_it_read(kind: &RelationKind, question: &CheckRequest<'_>) {
    let sides = question.sides;
    let body = kind.encode_call(sides, &question.from, question.to.iter().map(|name| &**name));
    assert_eq!(kind.parse_request(&body, TO_MAX).expect("our own output"), Parsed::Known(clone(question)));
    let items: Vec<Item> =
        (0..question.to.len()).map(|at| Item::Known(Relation::new(at as i64 % 4).expect("0 to 3"))).collect();
    let answer = kind.encode_response(sides, question.to.iter().zip(&items));
    let json = json::read(&answer).expect("our own output");
    let list = if *kind == FOLLOW { "ResultItem" } else { "InfoItem" };
    let Some(Json::List(written)) = json.only(list) else { panic!("no items") };
    assert_eq!(written.len(), question.to.len());
    for ((name, item), at) in question.to.iter().zip(written).zip(0..) {
        assert_eq!(item.only("To_Account").and_then(Json::text), Some(&**name));
        if *kind == FOLLOW {
            assert_eq!(item.only("FollowType").and_then(Json::whole), Some(at % 4));
        }
        assert_eq!(item.only("ResultCode").and_then(Json::whole), Some(0));
    }
    // The same response from Chat is read with the same meaning, if it repeats no name.
    let names: std::collections::HashSet<_> = question.to.iter().collect();
    if names.len() == question.to.len() {
        let read = kind.parse_items(sides, &answer).expect("our own output");
        for (name, item) in question.to.iter().zip(items) {
            let Item::Known(relation) = item else { unreachable!() };
            assert_eq!(read.get(name), Some(&Found::Item(Item::Known(relation.restricted_to(sides)))));
        }
    }
}

fn clone<'a>(question: &CheckRequest<'a>) -> CheckRequest<'a> {
    let CheckRequest { from, to, sides } = question;
    CheckRequest { from: Cow::clone(from), to: to.clone(), sides: *sides }
}
