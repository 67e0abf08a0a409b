//! Whether a request may be answered from the cache.

use std::fmt;

use serde::de::{self, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;

use super::rules::{CachedRead, RequestMember};

/// Longest request that is cached, in bytes. 500 accounts, the most that a cacheable command takes, need about 20 KiB.
pub const REQUEST_LEN_MAX: usize = 64 * 1024;

impl CachedRead {
    /// Returns whether a request with this body, a JSON object, may be answered from the cache and share a call. If not,
    /// it is relayed like any other.
    pub fn may_cache_request(&self, body: &[u8]) -> bool {
        let members = self.request_members();
        body.len() <= REQUEST_LEN_MAX && (members.is_empty() || fits(body, members))
    }
}

fn fits(body: &[u8], members: &'static [RequestMember]) -> bool {
    let mut parser = serde_json::Deserializer::from_slice(body);
    Outermost(members).deserialize(&mut parser).is_ok() && parser.end().is_ok()
}

/// Reads the members of the outermost object, and fails at the first that does not fit.
struct Outermost(&'static [RequestMember]);

impl<'de> DeserializeSeed<'de> for Outermost {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<(), D::Error> {
        json.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Outermost {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut present = vec![false; self.0.len()];
        while let Some(name) = map.next_key::<String>()? {
            let index = self.0.iter().position(|member| match member {
                RequestMember::Present(known) | RequestMember::Zero(known) => *known == name,
            });
            let Some(index) = index else {
                map.next_value::<IgnoredAny>()?;
                continue;
            };
            let is_zero = match map.next_value::<Value>()? {
                Value::Number(number) => number.as_u64() == Some(0),
                Value::String(text) => text.is_empty(),
                _ => false,
            };
            if matches!(self.0[index], RequestMember::Zero(_)) && !is_zero {
                return Err(de::Error::custom("not the first page"));
            }
            present[index] = true;
        }
        let is_missing =
            |(member, present): (&RequestMember, &bool)| matches!(member, RequestMember::Present(_)) && !present;
        match self.0.iter().zip(&present).any(is_missing) {
            true => Err(de::Error::custom("a member is missing")),
            false => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::domain::chat::command::CommandName;

    fn read(name: &str) -> CachedRead {
        CachedRead::new(CommandName::parse(name).expect(name), Duration::from_secs(1)).expect(name)
    }

    #[test]
    fn conditional_request_is_not_cached() {
        let groups = read("sns/group_get");
        for body in [
            r#"{"From_Account":"ann"}"#,
            r#"{"From_Account":"ann","LastSequence":0}"#,
            r#"{"LastSequence":"","From_Account":"ann"}"#,
            r#" { "Last\u0053equence" : 0 } "#,
        ] {
            assert!(groups.may_cache_request(body.as_bytes()), "{body}");
        }
        for body in [
            r#"{"From_Account":"ann","LastSequence":1}"#,
            r#"{"From_Account":"ann","LastSequence":-1}"#,
            r#"{"From_Account":"ann","LastSequence":null}"#,
            r#"{"From_Account":"ann","LastSequence":"1"}"#,
            r#"{"LastSequence":0,"LastSequence":7}"#,
            r#"{"LastSequence":7,"Last\u0053equence":0}"#,
            "[]",
            "",
            "{}{}",
        ] {
            assert!(!groups.may_cache_request(body.as_bytes()), "{body}");
        }
    }

    #[test]
    fn group_profile_is_cached_only_with_a_filter() {
        let groups = read("group_open_http_svc/get_group_info");
        let filtered = r#"{"GroupIdList":["a"],"ResponseFilter":{"GroupBaseInfoFilter":["Name"]}}"#;
        assert!(groups.may_cache_request(filtered.as_bytes()));
        assert!(!groups.may_cache_request(br#"{"GroupIdList":["a"]}"#));
    }

    #[test]
    fn long_request_is_not_cached() {
        let profiles = read("profile/portrait_get");
        let body = |len: usize| format!("{{{}}}", " ".repeat(len - 2));
        assert!(profiles.may_cache_request(body(REQUEST_LEN_MAX).as_bytes()));
        assert!(!profiles.may_cache_request(body(REQUEST_LEN_MAX + 1).as_bytes()));
    }
}
