//! `POST /log`: changes the log level without a restart.

use serde::Deserialize;

use crate::config::parse_level;
use crate::domain::json::object::{Object, describe};
use crate::error::GatewayError;
use crate::telemetry::log;

/// Largest body, in bytes.
pub(super) const BODY_LEN_MAX: usize = 1024;

/// `{"level":"debug"}`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct LevelRequest {
    level: String,
}

/// Sets the level that the body names, and returns it as a word.
///
/// # Errors
/// `bad_json` or `bad_parameter`; the level is unchanged.
pub(super) fn set(body: &[u8]) -> Result<&'static str, GatewayError> {
    let Object(request): Object<LevelRequest> = serde_json::from_slice(body).map_err(|error| {
        GatewayError::BadJson(format!("the body must be {{\"level\":\"debug\"}}: {}", describe(&error)))
    })?;
    let level = parse_level(&request.level).ok_or_else(|| {
        GatewayError::BadParameter("level must be \"error\", \"warn\", \"info\", \"debug\", or \"trace\"".to_owned())
    })?;
    if !log::set_level(level) {
        return Err(GatewayError::Internal);
    }
    let word = word(level);
    // WARN, so that every level but error shows the line.
    tracing::warn!(level = word, "log level changed by an admin action");
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
