//! Whether a response may be cached.
//!
//! An envelope with ErrorCode 0 may still contain items that failed: a nested `ResultCode` or `ErrorCode`, or a list of
//! failed accounts. Such an item may succeed the next time, so the response is not cached.

use std::fmt;

use serde::Deserialize;
use serde::de::{self, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::rules::CachedRead;
use crate::domain::json::object::{self, Object};

/// Members with the result of an item, or of the whole call.
const CODES: [&str; 2] = ["ErrorCode", "ResultCode"];
/// Members that list failed items.
const FAILURES: [&str; 3] = ["ErrorList", "Fail_Account", "Invalid_Account"];

impl CachedRead {
    /// Returns whether a response with this body may be cached: no part of it failed, and it has no member that changes
    /// with every message. A body that cannot be read with certainty may not.
    pub fn may_cache_response(&self, body: &[u8]) -> bool {
        let mut parser = serde_json::Deserializer::from_slice(body);
        let without = self.forbidden_members();
        let is_clean = Clean { without }.deserialize(&mut parser).is_ok() && parser.end().is_ok();
        is_clean && (!self.needs_imported_accounts() || all_imported(body))
    }
}

fn all_imported(body: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Accounts {
        #[serde(rename = "ResultItem")]
        items: Vec<Object<Account>>,
    }
    #[derive(Deserialize)]
    struct Account {
        #[serde(rename = "AccountStatus")]
        status: String,
    }
    let accounts = object::read::<Accounts>(body);
    accounts.is_some_and(|accounts| accounts.items.iter().all(|Object(account)| account.status == "Imported"))
}

/// Reads any value, and fails at the first part that must not be cached.
#[derive(Clone, Copy)]
struct Clean {
    without: &'static [&'static str],
}

impl<'de> DeserializeSeed<'de> for Clean {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<(), D::Error> {
        json.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Clean {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(kind) = map.next_key_seed(Name { without: self.without })? {
            match kind {
                MemberKind::Code if map.next_value::<i64>()? == 0 => {}
                MemberKind::Failures => map.next_value::<NoItems>().map(drop)?,
                MemberKind::Other => map.next_value_seed(self)?,
                MemberKind::Code | MemberKind::Forbidden => return Err(de::Error::custom("must not be cached")),
            }
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        while list.next_element_seed(self)?.is_some() {}
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
}

/// An empty list, or null.
struct NoItems;

impl<'de> Deserialize<'de> for NoItems {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
        match Option::<Vec<IgnoredAny>>::deserialize(json)?.unwrap_or_default().is_empty() {
            true => Ok(NoItems),
            false => Err(de::Error::custom("items failed")),
        }
    }
}

enum MemberKind {
    Code,
    Failures,
    Forbidden,
    Other,
}

/// Recognizes a name without storing it.
struct Name {
    without: &'static [&'static str],
}

impl<'de> DeserializeSeed<'de> for Name {
    type Value = MemberKind;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<MemberKind, D::Error> {
        json.deserialize_identifier(self)
    }
}

impl Visitor<'_> for Name {
    type Value = MemberKind;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_str<E>(self, name: &str) -> Result<MemberKind, E> {
        Ok(match name {
            _ if CODES.contains(&name) => MemberKind::Code,
            _ if FAILURES.contains(&name) => MemberKind::Failures,
            _ if self.without.contains(&name) => MemberKind::Forbidden,
            _ => MemberKind::Other,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::domain::chat::command::CommandName;

    fn may_cache(name: &str, body: &str) -> bool {
        let name = CommandName::parse(name).expect(name);
        CachedRead::new(name, Duration::from_secs(1)).expect("cacheable").may_cache_response(body.as_bytes())
    }

    const OK: &str = r#""ActionStatus":"OK","ErrorCode":0,"ErrorInfo":"","ErrorDisplay":"""#;

    #[test]
    fn response_with_a_failed_item_is_not_cached() {
        let profiles = |body: &str| may_cache("profile/portrait_get", &body.replace("OK!", OK));
        for body in [
            "{OK!}",
            r#"{"UserProfileItem":[{"To_Account":"ann","ProfileItem":[],"ResultCode":0,"ResultInfo":""}],OK!}"#,
            r#"{"Fail_Account":[],"Invalid_Account":null,"ErrorList":[],OK!}"#,
            r#"{"x":["ResultCode",1,-1,1.5,true,null,{"y":"ErrorList"}],OK!}"#,
        ] {
            assert!(profiles(body), "{body}");
        }
        for body in [
            r#"{"UserProfileItem":[{"To_Account":"ann","ResultCode":30003,"ResultInfo":"no"}],OK!}"#,
            r#"{"UserProfileItem":[{"ResultCode":0},{"Result\u0043ode":1}],OK!}"#,
            r#"{"UserProfileItem":[{"ResultCode":0,"ResultCode":1}],OK!}"#,
            r#"{"UserProfileItem":[{"ResultCode":"0"}],OK!}"#,
            r#"{"UserProfileItem":[{"ResultCode":null}],OK!}"#,
            r#"{"GroupInfo":[{"GroupId":"a","ErrorCode":10010}],OK!}"#,
            r#"{"a":{"b":[[{"ErrorCode":-1}]]},OK!}"#,
            r#"{"Fail_Account":["ann"],OK!}"#,
            r#"{"Invalid_Account":["ann"],OK!}"#,
            r#"{"ErrorList":[{"To_Account":"ann","ErrorCode":70107}],OK!}"#,
            r#"{"ErrorList":{},OK!}"#,
            r#"{"ActionStatus":"FAIL","ErrorCode":40003}"#,
            r#"{OK!} x"#,
            "",
        ] {
            assert!(!profiles(body), "{body}");
        }
    }

    #[test]
    fn account_check_is_cached_only_if_all_are_imported() {
        let accounts = |items: &str| may_cache("im_open_login_svc/account_check", &format!("{{{items}{OK}}}"));
        let item =
            |status: &str| format!(r#"{{"UserID":"x","ResultCode":0,"ResultInfo":"","AccountStatus":"{status}"}}"#);
        let (yes, no) = (item("Imported"), item("NotImported"));
        assert!(accounts(&format!(r#""ResultItem":[{yes},{yes}],"#)));
        for items in [
            format!(r#""ResultItem":[{yes},{no}],"#),
            format!(r#""ResultItem":[{no}],"#),
            r#""ResultItem":[{"UserID":"x","ResultCode":0}],"#.to_owned(),
            format!(r#""ResultItem":[{yes}],"ResultItem":[{yes}],"#),
            format!(r#""ResultItem":[{}],"#, item("Imported").replace("ResultCode\":0", "ResultCode\":70398")),
            String::new(),
        ] {
            assert!(!accounts(&items), "{items}");
        }
    }

    #[test]
    fn group_profile_with_a_volatile_member_is_not_cached() {
        let group = |member: &str| {
            let body = format!(r#"{{"GroupInfo":[{{"GroupId":"a","ErrorCode":0,"Name":"n"{member}}}],{OK}}}"#);
            may_cache("group_open_http_svc/get_group_info", &body)
        };
        assert!(group(""));
        for name in ["LastMsgTime", "NextMsgSeq", "MemberNum"] {
            assert!(!group(&format!(r#","{name}":1"#)), "{name}");
        }
        assert!(!group(r#","MemberList":[{"Member_Account":"ann","LastSendMsgTime":1}]"#));
        assert!(!group(r#","MemberList":[{"Member_Account":"ann","ShutUp\u0055ntil":0}]"#));
    }

    proptest! {
        /// A nonzero code at any depth keeps the whole response out of the cache.
        #[test]
        fn no_depth_hides_a_failed_item(code in any::<i64>(), wraps in proptest::collection::vec(any::<bool>(), 0..40)) {
            let mut body = format!(r#"{{"ResultCode":{code}}}"#);
            for is_list in wraps {
                body = if is_list { format!("[1,{body},\"x\"]") } else { format!(r#"{{"a":{{}},"b":{body}}}"#) };
            }
            prop_assert_eq!(may_cache("profile/portrait_get", &body), code == 0, "{}", body);
        }
    }
}
