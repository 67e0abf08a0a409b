//! The JSON of a response to a check, and the parts of it that all responses share.

use std::borrow::Cow;

use crate::domain::pairs::pair::Relation;

/// The beginning of an item with a known relation.
pub(super) const OPEN: &[u8] = b"{\"To_Account\":\"";
/// The end of a response, after the items and failures.
pub(super) const END: &[u8] = b",\"ActionStatus\":\"OK\",\"ErrorCode\":0,\"ErrorInfo\":\"\",\"ErrorDisplay\":\"\"}";
/// Room for the text between the accounts of two items.
pub(super) const BETWEEN_MAX: usize = 96;

/// The JSON of a response.
#[derive(Debug)]
pub(super) struct ResponseForm {
    /// The member with the array of items.
    pub(super) list: &'static str,
    pub(super) member: RelationMember,
    /// The text between the accounts of two items, by the number of the first one's relation.
    between: [Between; 4],
}

/// The member of an item that has the relation.
#[derive(Debug)]
pub(super) struct RelationMember {
    pub(super) name: &'static str,
    /// Its values in JSON, by the number of the relation.
    pub(super) values: [&'static str; 4],
    pub(super) place: MemberPlace,
}

/// Where the vendor has the relation among the members of an item.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum MemberPlace {
    /// After `To_Account`.
    BeforeCode,
    /// After `ResultInfo`. Such a response has no `Fail_Account`.
    AfterInfo,
}

/// A text in an array of fixed length, so that its copy is inlined.
#[derive(Debug)]
struct Between {
    bytes: [u8; BETWEEN_MAX],
    len: usize,
}

impl Between {
    const fn of(parts: &[&str]) -> Self {
        let (mut text, mut part) = (Self { bytes: [0; BETWEEN_MAX], len: 0 }, 0);
        while part < parts.len() {
            let bytes = parts[part].as_bytes();
            let mut at = 0;
            while at < bytes.len() {
                text.bytes[text.len] = bytes[at];
                text.len += 1;
                at += 1;
            }
            part += 1;
        }
        text
    }
}

impl ResponseForm {
    pub(super) const fn new(list: &'static str, member: RelationMember) -> Self {
        let RelationMember { name, values: [none, second, first, both], .. } = member;
        let between = match member.place {
            MemberPlace::BeforeCode => {
                let rest = ",\"ResultCode\":0,\"ResultInfo\":\"\"},{\"To_Account\":\"";
                [
                    Between::of(&["\",\"", name, "\":", none, rest]),
                    Between::of(&["\",\"", name, "\":", second, rest]),
                    Between::of(&["\",\"", name, "\":", first, rest]),
                    Between::of(&["\",\"", name, "\":", both, rest]),
                ]
            }
            MemberPlace::AfterInfo => {
                let code = "\",\"ResultCode\":0,\"ResultInfo\":\"\",\"";
                let rest = "},{\"To_Account\":\"";
                [
                    Between::of(&[code, name, "\":", none, rest]),
                    Between::of(&[code, name, "\":", second, rest]),
                    Between::of(&[code, name, "\":", first, rest]),
                    Between::of(&[code, name, "\":", both, rest]),
                ]
            }
        };
        Self { list, member, between }
    }

    /// Returns the beginning of a response with `count` items, up to the first account.
    pub(super) fn begin(&self, count: usize) -> Vec<u8> {
        let mut body = Vec::with_capacity(256 + 128 * count);
        body.extend_from_slice(b"{\"");
        body.extend_from_slice(self.list.as_bytes());
        body.extend_from_slice(b"\":[");
        body.extend_from_slice(OPEN);
        body
    }

    /// Adds a known relation, and the beginning of the next item.
    ///
    /// Nearly every item is a known relation of a name without escapes. So the code assumes that the next item is one
    /// too: an item is then two copies, the name and the text up to the next name.
    #[inline(always)]
    #[allow(clippy::ptr_arg, reason = "only an owned name may need escapes")]
    pub(super) fn push_known(&self, body: &mut Vec<u8>, name: &Cow<'_, str>, relation: Relation) {
        match name {
            // Borrowed from a body, so it needs no escapes.
            Cow::Borrowed(name) => body.extend_from_slice(name.as_bytes()),
            Cow::Owned(name) => {
                // `push_text` adds quotes.
                body.pop();
                push_text(body, name);
                body.pop();
            }
        }
        let between = &self.between[usize::from(relation.number())];
        let end = body.len() + between.len;
        body.extend_from_slice(&between.bytes);
        body.truncate(end);
    }

    /// Removes the beginning of the next item, and the comma before it if there are `any` items.
    pub(super) fn end_items(&self, body: &mut Vec<u8>, any: bool) {
        body.truncate(body.len() - OPEN.len() - usize::from(any));
        body.push(b']');
    }

    /// Returns the members of a failed item after `To_Account`, with the brace.
    pub(super) fn failed(&self, code: i64, info: &str) -> String {
        let RelationMember { name, values, place } = &self.member;
        let none = values[0];
        match place {
            MemberPlace::BeforeCode => {
                format!(",\"{name}\":{none},\"ResultCode\":{code},\"ResultInfo\":\"{info}\"}}")
            }
            MemberPlace::AfterInfo => {
                format!(",\"ResultCode\":{code},\"ResultInfo\":\"{info}\",\"{name}\":{none}}}")
            }
        }
    }
}

/// Appends a text as a JSON string.
pub(super) fn push_text(body: &mut Vec<u8>, text: &str) {
    serde_json::to_writer(body, text).expect("strings always serialize");
}
