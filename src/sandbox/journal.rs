//! The journal: the calls received so far, for tests to inspect. Its entries are redacted already.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use aws_lc_rs::digest;
use serde::Serialize;
use serde_json::value::RawValue;

use super::rate_limit::PeakRate;
use crate::domain::chat::command::CommandName;

/// Maximum number of recorded calls; a new call replaces the oldest one.
pub(super) const CALLS_MAX: usize = 10_000;
/// Maximum recorded length of a body, in bytes.
pub(super) const BODY_LEN_MAX: usize = 64 * 1024;
/// Maximum memory for all recorded calls, in bytes.
const BYTES_MAX: usize = 64 * 1024 * 1024;

/// The most recent calls, and counts of all calls.
#[derive(Default)]
pub(super) struct Journal {
    calls: VecDeque<Arc<RecordedCall>>,
    bytes: usize,
    total: u64,
    peaks: HashMap<CommandName<'static>, PeakRate>,
}

/// One call.
#[derive(Serialize)]
pub(super) struct RecordedCall {
    /// The two segments of the path; `null` if the path has another form.
    pub(super) service: Option<String>,
    pub(super) command: Option<String>,
    pub(super) method: String,
    /// The path without the query.
    pub(super) path: String,
    /// ErrorCode of the response; `null` if the response had no envelope.
    pub(super) error_code: Option<i64>,
    /// The injected fault.
    pub(super) fault: Option<&'static str>,
    /// The parameters as received, with numbers as numbers.
    pub(super) sdkappid: Option<Parameter>,
    pub(super) identifier: Option<String>,
    pub(super) random: Option<Parameter>,
    pub(super) body: RecordedBody,
    /// Length of the whole body as received.
    pub(super) body_bytes: usize,
    /// SHA-256 of the whole body as received.
    pub(super) body_sha256: String,
    pub(super) headers: BTreeMap<String, String>,
    /// `HTTP/1.1` or `HTTP/2.0`.
    pub(super) protocol: String,
    /// Number of the connection.
    pub(super) connection: u64,
    /// Arrival of the headers, in Unix milliseconds of the machine's clock.
    pub(super) at_ms: u64,
}

/// The value of a query parameter.
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

/// A body: as JSON if it is JSON of at most [`BODY_LEN_MAX`] bytes, otherwise its beginning as text.
#[derive(Serialize)]
#[serde(untagged)]
pub(super) enum RecordedBody {
    Json(Box<RawValue>),
    Text(String),
}

impl RecordedBody {
    pub(super) fn read(text: String) -> Self {
        if text.len() > BODY_LEN_MAX {
            let end = (0..=BODY_LEN_MAX).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
            return RecordedBody::Text(text[..end].to_owned());
        }
        RawValue::from_string(text.clone()).map_or(RecordedBody::Text(text), RecordedBody::Json)
    }

    fn len(&self) -> usize {
        match self {
            RecordedBody::Json(json) => json.get().len(),
            RecordedBody::Text(text) => text.len(),
        }
    }
}

/// Returns the SHA-256 in lower-case hexadecimal, so that a test can compare bodies byte for byte.
pub(super) fn sha256(bytes: &[u8]) -> String {
    digest::digest(&digest::SHA256, bytes).as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Journal {
    /// Counts a call of a known command on arrival. `now` never decreases.
    pub(super) fn count(&mut self, name: CommandName<'static>, now: Instant) {
        self.peaks.entry(name).or_default().count(now);
    }

    pub(super) fn push(&mut self, call: RecordedCall) {
        self.total += 1;
        self.bytes += call.size();
        self.calls.push_back(Arc::new(call));
        while self.calls.len() > CALLS_MAX || self.bytes > BYTES_MAX {
            let Some(oldest) = self.calls.pop_front() else { break };
            self.bytes -= oldest.size();
        }
    }

    /// Returns a copy, which can be serialized without blocking calls.
    pub(super) fn snapshot(&self) -> JournalSnapshot {
        JournalSnapshot {
            calls: self.calls.iter().cloned().collect(),
            total: self.total,
            max_in_one_second: self.peaks.iter().map(|(name, peak)| (name.to_string(), peak.max())).collect(),
        }
    }

    pub(super) fn reset(&mut self) {
        *self = Journal::default();
    }
}

/// A copy of the journal.
pub(super) struct JournalSnapshot {
    calls: Vec<Arc<RecordedCall>>,
    total: u64,
    max_in_one_second: BTreeMap<String, usize>,
}

impl JournalSnapshot {
    pub(super) fn to_json(&self) -> Vec<u8> {
        #[derive(Serialize)]
        struct Document<'a> {
            calls: Vec<&'a RecordedCall>,
            total: u64,
            max_in_one_second: &'a BTreeMap<String, usize>,
        }
        let calls = self.calls.iter().map(Arc::as_ref).collect();
        let document = Document { calls, total: self.total, max_in_one_second: &self.max_in_one_second };
        serde_json::to_vec(&document).expect("strings and numbers serialize to JSON")
    }
}

impl RecordedCall {
    /// Returns the approximate memory of this call, in bytes.
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

    fn call(body: String) -> RecordedCall {
        RecordedCall {
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
            body: RecordedBody::read(body),
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
    fn calls_are_shown_as_received() {
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
    fn calls_and_bytes_are_bounded_and_all_calls_counted() {
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
