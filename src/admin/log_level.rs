//! `POST /log`: another level, without a restart.

use serde::Deserialize;

use crate::config::parse_level;
use crate::domain::json::object::Object;
use crate::error::GatewayError;
use crate::telemetry::log;

/// Largest body, in bytes.
pub(super) const BODY_LEN_MAX: usize = 1024;

/// `{"level":"debug"}`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Order {
    level: String,
}

/// Reads the order and carries it out. Gives the level's word.
///
/// # Errors
/// `bad_json` or `bad_parameter`; nothing was changed.
pub(super) fn set(body: &[u8]) -> Result<&'static str, GatewayError> {
    let Object(order): Object<Order> = serde_json::from_slice(body)
        .map_err(|error| GatewayError::BadJson(format!("the body is not {{\"level\":\"debug\"}}: {error}")))?;
    let level = parse_level(&order.level).ok_or_else(|| {
        GatewayError::BadParameter("level must be \"error\", \"warn\", \"info\", \"debug\" or \"trace\"".to_owned())
    })?;
    if !log::set_level(level) {
        return Err(GatewayError::Internal);
    }
    let word = word(level);
    // At the level error this line would not show, but then there is nothing to explain either.
    tracing::warn!(level = word, "the log's level was changed by an operator's order");
    Ok(word)
}

fn word(level: tracing::Level) -> &'static str {
    match level {
        tracing::Level::ERROR => "error",
        tracing::Level::WARN => "warn",
        tracing::Level::INFO => "info",
        tracing::Level::DEBUG => "debug",
        tracing::Level::TRACE => "trace",
    }
}
