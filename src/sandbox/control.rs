//! The control API under `/__sandbox/`: read the journal, set the clock, inject faults, seed the graph, reset.
//!
//! It needs no signature, which is why the sandbox listens on loopback.

use bytes::Bytes;
use http::{Method, StatusCode};
use serde::Deserialize;
use serde_json::json;

use super::chat::SimulatedChat;
use super::faults::{FAULTS_MAX, Fault};
use super::graph::{GraphSize, SeedGraph};
use super::skew::SKEW_MAX_SECS;
use crate::domain::json::object::{Object, describe};

/// Path prefix of the control API.
pub(super) const PREFIX: &str = "/__sandbox/";

/// A response of the control API: JSON after a success, otherwise the error as a line of text.
pub(super) struct ControlResponse {
    pub(super) status: StatusCode,
    pub(super) content_type: &'static str,
    pub(super) body: Vec<u8>,
}

/// Handles a request to the path [`PREFIX`] + `name`.
pub(super) fn handle(chat: &SimulatedChat, method: &Method, name: &str, body: &Bytes) -> ControlResponse {
    let result = match (method.as_str(), name) {
        ("GET", "journal") => Ok(chat.journal().snapshot().to_json()),
        ("POST", "clock") => set_clock(chat, body),
        ("POST", "faults") => add_fault(chat, body),
        ("DELETE", "faults") => {
            chat.faults().clear();
            Ok(br#"{"faults":0}"#.to_vec())
        }
        ("POST", "graph") => seed(chat, body),
        ("POST", "reset") => {
            chat.reset();
            Ok(b"{}".to_vec())
        }
        _ => Err("unknown path or method; use GET journal, POST clock, POST faults, DELETE faults, POST graph, \
                  or POST reset"
            .to_owned()),
    };
    match result {
        Ok(body) => ControlResponse { status: StatusCode::OK, content_type: "application/json", body },
        Err(error) => ControlResponse {
            status: StatusCode::BAD_REQUEST,
            content_type: "text/plain; charset=utf-8",
            body: format!("{error}\n").into_bytes(),
        },
    }
}

fn set_clock(chat: &SimulatedChat, body: &[u8]) -> Result<Vec<u8>, String> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct ClockRequest {
        skew: i64,
    }
    let Object(ClockRequest { skew }) = serde_json::from_slice(body)
        .map_err(|error| format!("the body must be {{\"skew\":SECONDS}}: {}", describe(&error)))?;
    if !chat.clock.set(skew) {
        return Err(format!("skew must be from -{SKEW_MAX_SECS} to {SKEW_MAX_SECS} seconds"));
    }
    Ok(json!({"skew": skew, "now": chat.clock.unix_now().as_secs()}).to_string().into_bytes())
}

fn add_fault(chat: &SimulatedChat, body: &[u8]) -> Result<Vec<u8>, String> {
    let fault = Fault::parse(body)?;
    let mut faults = chat.faults();
    if !faults.add(fault) {
        return Err(format!("limit of {FAULTS_MAX} faults reached; remove them with POST reset or DELETE faults"));
    }
    Ok(json!({"faults": faults.len()}).to_string().into_bytes())
}

fn seed(chat: &SimulatedChat, body: &[u8]) -> Result<Vec<u8>, String> {
    let Object(seed): Object<SeedGraph> = serde_json::from_slice(body).map_err(|error| {
        let form = r#"{"users":[..],"edges":[[from,to],..],"friends":[[from,to],..],"blocks":[[from,to],..]}"#;
        format!("the body must be {form}: {}", describe(&error))
    })?;
    chat.graph.seed(&seed, chat.clock.unix_now().as_secs()).map_err(|error| error.to_string())?;
    let GraphSize { users, edges, friends, blocks } = chat.graph.size();
    Ok(json!({"users": users, "edges": edges, "friends": friends, "blocks": blocks}).to_string().into_bytes())
}
