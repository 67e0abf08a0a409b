//! What calls came, for tests to look at. Signatures are masked before anything gets here.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use aws_lc_rs::digest;
use serde::Serialize;
use serde_json::value::RawValue;

use super::rate::Peak;
use crate::domain::chat::command::CommandName;

/// Most calls that are kept; older ones are forgotten.
pub(super) const CALLS_MAX: usize = 10_000;
/// Most of a body that is kept, in bytes.
pub(super) const BODY_LEN_MAX: usize = 64 * 1024;
/// Most memory for all calls together, in bytes.
const BYTES_MAX: usize = 64 * 1024 * 1024;

/// The last calls, and counts of all of them.
#[derive(Default)]
pub(super) struct Journal {
    calls: VecDeque<Arc<Call>>,
    bytes: usize,
    total: u64,
    peaks: HashMap<CommandName<'static>, Peak>,
}

/// One call.
#[derive(Serialize)]
pub(super) struct Call {
    /// The path's two segments; `null` if the path is not of that form.
    pub(super) service: Option<String>,
    pub(super) command: Option<String>,
    pub(super) method: String,
    /// Without the query.
    pub(super) path: String,
    /// Of the answer; `null` if it had no envelope.
    pub(super) error_code: Option<i64>,
    /// The fault that the call met.
    pub(super) fault: Option<&'static str>,
    /// The parameters as they came, numbers as numbers.
    pub(super) sdkappid: Option<Parameter>,
    pub(super) identifier: Option<String>,
    pub(super) random: Option<Parameter>,
    pub(super) body: Body,
    /// Of the whole body as it came.
    pub(super) body_bytes: usize,
    pub(super) body_sha256: String,
    pub(super) headers: BTreeMap<String, String>,
    /// `HTTP/1.1` or `HTTP/2.0`.
    pub(super) protocol: String,
    /// Calls of one connection share this number.
    pub(super) connection: u64,
    /// When its head had come, in Unix milliseconds of the machine's own clock.
    pub(super) at_ms: u64,
}

/// A parameter's value.
#[derive(Serialize)]
#[serde(untagged)]
pub(super) enum Parameter {
    Number(u64),
    Text(String),
}

impl Parameter {
    pub(super) fn read(text: &str) -> Self {
        text.parse().map_or_else(|_| Parameter::Text(text.to_owned()), Parameter::Number)
    }
}

/// A body: as JSON if it is that and not too long, else its beginning as text.
#[derive(Serialize)]
#[serde(untagged)]
pub(super) enum Body {
    Json(Box<RawValue>),
    Text(String),
}

impl Body {
    pub(super) fn read(text: String) -> Self {
        if text.len() > BODY_LEN_MAX {
            let end = (0..=BODY_LEN_MAX).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
            return Body::Text(text[..end].to_owned());
        }
        RawValue::from_string(text.clone()).map_or(Body::Text(text), Body::Json)
    }

    fn len(&self) -> usize {
        match self {
            Body::Json(json) => json.get().len(),
            Body::Text(text) => text.len(),
        }
    }
}

/// Lower-case hex SHA-256, so that a test can tell whether a body came through byte for byte.
pub(super) fn sha256(bytes: &[u8]) -> String {
    digest::digest(&digest::SHA256, bytes).as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Journal {
    /// Counts a call of a known command as it comes. `now` never goes back.
    pub(super) fn count(&mut self, name: CommandName<'static>, now: Instant) {
        self.peaks.entry(name).or_default().count(now);
    }

    pub(super) fn push(&mut self, call: Call) {
        self.total += 1;
        self.bytes += call.size();
        self.calls.push_back(Arc::new(call));
        while self.calls.len() > CALLS_MAX || self.bytes > BYTES_MAX {
            let Some(oldest) = self.calls.pop_front() else { break };
            self.bytes -= oldest.size();
        }
    }

    /// The whole as it is now, to be written out without holding calls up.
    pub(super) fn snapshot(&self) -> Snapshot {
        Snapshot {
            calls: self.calls.iter().cloned().collect(),
            total: self.total,
            max_in_one_second: self.peaks.iter().map(|(name, peak)| (name.to_string(), peak.max())).collect(),
        }
    }

    pub(super) fn reset(&mut self) {
        *self = Journal::default();
    }
}

/// A journal at one moment.
pub(super) struct Snapshot {
    calls: Vec<Arc<Call>>,
    total: u64,
    max_in_one_second: BTreeMap<String, usize>,
}

impl Snapshot {
    pub(super) fn to_json(&self) -> Vec<u8> {
        #[derive(Serialize)]
        struct Out<'a> {
            calls: Vec<&'a Call>,
            total: u64,
            max_in_one_second: &'a BTreeMap<String, usize>,
        }
        let calls = self.calls.iter().map(Arc::as_ref).collect();
        let out = Out { calls, total: self.total, max_in_one_second: &self.max_in_one_second };
        serde_json::to_vec(&out).expect("texts and numbers always become JSON")
    }
}

impl Call {
    /// Roughly its memory, in bytes.
    fn size(&self) -> usize {
        let headers: usize = self.headers.iter().map(|(name, value)| name.len() + value.len() + 64).sum();
        size_of::<Self>() + self.path.len() + self.body.len() + headers + 256
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::clock;
    use crate::domain::chat::command::FOLLOW_CHECK;

    fn call(body: String) -> Call {
        Call {
            service: Some("follow".into()),
            command: Some("follow_check".into()),
            method: "POST".into(),
            path: "/v4/follow/follow_check".into(),
            error_code: Some(0),
            fault: None,
            sdkappid: Some(Parameter::read("1400000001")),
            identifier: Some("administrator".into()),
            random: Some(Parameter::read("x")),
            body_bytes: body.len(),
            body_sha256: sha256(body.as_bytes()),
            body: Body::read(body),
            headers: BTreeMap::new(),
            protocol: "HTTP/1.1".into(),
            connection: 1,
            at_ms: 5,
        }
    }

    fn read(journal: &Journal) -> Value {
        serde_json::from_slice(&journal.snapshot().to_json()).unwrap()
    }

    #[test]
    fn a_call_is_shown_as_it_came() {
        let mut journal = Journal::default();
        journal.count(FOLLOW_CHECK, clock::now());
        journal.push(call(r#"{"From_Account":"ann"}"#.into()));
        journal.push(call("not json".into()));
        let json = read(&journal);
        assert_eq!(json["total"], 2);
        assert_eq!(json["max_in_one_second"]["follow/follow_check"], 1);
        let first = &json["calls"][0];
        assert_eq!(first["body"]["From_Account"], "ann");
        assert_eq!((&first["sdkappid"], &first["random"]), (&Value::from(1400000001), &Value::from("x")));
        assert_eq!(json["calls"][1]["body"], "not json");
        assert_eq!(sha256(b"abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        journal.reset();
        assert_eq!(read(&journal)["total"], 0);
    }

    #[test]
    fn it_forgets_by_number_and_by_bytes_but_counts_all() {
        let mut journal = Journal::default();
        for _ in 0..CALLS_MAX + 5 {
            journal.push(call(String::new()));
        }
        assert_eq!((journal.calls.len(), journal.total), (CALLS_MAX, CALLS_MAX as u64 + 5));
        for _ in 0..2000 {
            journal.push(call("ä".repeat(BODY_LEN_MAX)));
        }
        assert!(journal.bytes <= BYTES_MAX);
        assert!(journal.calls.len() < 1100, "{}", journal.calls.len());
        let bytes: usize = journal.calls.iter().map(|call| call.size()).sum();
        assert_eq!(bytes, journal.bytes);
    }
}
