//! Chat's responses to any command.

use chatgate::domain::chat::envelope::{Envelope, write};
use chatgate::domain::json::object::{DEPTH_MAX, is_too_deep};
use chatgate::domain::json::scan;

use super::json::{self, Json};

/// Reads the bytes as a response, and writes a response with the bytes as ErrorInfo.
pub fn run(bytes: &[u8]) {
    if json::is_too_long(bytes) {
        return;
    }
    let envelope = Envelope::parse(bytes);
    let other = json::read(bytes);
    if let Some(json) = &other {
        assert_eq!(is_too_deep(bytes), json.depth() > DEPTH_MAX);
    }
    let code = other.as_ref().and_then(|json| json.only("ErrorCode")).and_then(Json::whole);
    // The fast check accepts exactly the objects that are not too deep.
    let is_object = other.as_ref().is_some_and(|json| matches!(json, Json::Object(_)) && json.depth() <= DEPTH_MAX);
    assert_eq!(scan::is_object(bytes), is_object);
    assert_eq!(
        Envelope::error_code(bytes),
        envelope.as_ref().map(|envelope| envelope.error_code).map_err(|error| *error)
    );
    match &envelope {
        Ok(envelope) => {
            let json = other.as_ref().expect("the two readers disagree on whether this is JSON");
            assert_eq!(code, Some(envelope.error_code));
            for (name, ours) in [("ActionStatus", &envelope.action_status), ("ErrorInfo", &envelope.error_info)] {
                // The last of repeated members counts, as in most readers. Chat's response is relayed unchanged.
                let theirs = json.members(name).last().and_then(|value| value.text().map(str::to_owned));
                assert_eq!(ours.as_deref(), theirs.as_deref(), "{name}");
            }
        }
        // An unpaired surrogate is rejected in a member's name and accepted elsewhere.
        Err(_) => assert!(code.is_none() || other.is_some_and(|json| json.is_odd()), "a response was not read"),
    }
    let info = String::from_utf8_lossy(bytes);
    let code = bytes.first().map_or(0, |byte| i64::from(*byte) - 128);
    let written = write(code, &info);
    let read = Envelope::parse(&written).expect("our own output");
    assert_eq!((read.error_code, read.error_info.as_deref()), (code, Some(&*info)));
    assert_eq!(read.action_status.as_deref(), Some(if code == 0 { "OK" } else { "FAIL" }));
}
