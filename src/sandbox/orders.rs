//! Orders on `/__sandbox/`: look at the calls, set the clock, make faults, fill the graph.
//!
//! They need no signature, which is why the sandbox listens on loopback.

use bytes::Bytes;
use http::{Method, StatusCode};
use serde::Deserialize;
use serde_json::json;

use super::chat::Chat;
use super::faults::{FAULTS_MAX, Fault};
use super::graph::SeedGraph;
use super::skew::SKEW_MAX_SECS;

/// What every order's path begins with.
pub(super) const PREFIX: &str = "/__sandbox/";

/// An answer: JSON if the order was carried out, a sentence if not.
pub(super) type Answer = (StatusCode, &'static str, Vec<u8>);

/// Carries out an order.
pub(super) fn carry_out(chat: &Chat, method: &Method, name: &str, body: &Bytes) -> Answer {
    let done = match (method.as_str(), name) {
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
        _ => Err(
            "no such order; there are GET journal, POST clock, POST faults, DELETE faults, POST graph and POST reset"
                .to_owned(),
        ),
    };
    match done {
        Ok(json) => (StatusCode::OK, "application/json", json),
        Err(sentence) => (StatusCode::BAD_REQUEST, "text/plain; charset=utf-8", format!("{sentence}\n").into_bytes()),
    }
}

fn set_clock(chat: &Chat, body: &[u8]) -> Result<Vec<u8>, String> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Order {
        skew: i64,
    }
    let order: Order = serde_json::from_slice(body).map_err(|error| format!("not {{\"skew\":SECONDS}}: {error}"))?;
    if !chat.clock.set(order.skew) {
        return Err(format!("skew must be from -{SKEW_MAX_SECS} to {SKEW_MAX_SECS} seconds"));
    }
    Ok(json!({"skew": order.skew, "now": chat.clock.unix_now().as_secs()}).to_string().into_bytes())
}

fn add_fault(chat: &Chat, body: &[u8]) -> Result<Vec<u8>, String> {
    let fault = Fault::parse(body)?;
    let mut faults = chat.faults();
    if !faults.add(fault) {
        return Err(format!("{FAULTS_MAX} faults are waiting already; POST reset or DELETE faults forgets them"));
    }
    Ok(json!({"faults": faults.len()}).to_string().into_bytes())
}

fn seed(chat: &Chat, body: &[u8]) -> Result<Vec<u8>, String> {
    let seed: SeedGraph = serde_json::from_slice(body)
        .map_err(|error| format!("not {{\"users\":[..],\"edges\":[[from,to],..]}}: {error}"))?;
    chat.graph.seed(&seed, chat.clock.unix_now().as_secs()).map_err(|error| error.to_string())?;
    let (users, edges) = chat.graph.size();
    Ok(json!({"users": users, "edges": edges}).to_string().into_bytes())
}
