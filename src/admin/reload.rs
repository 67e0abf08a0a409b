//! The response of `POST /reload`.

use std::error::Error;

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::Full;

use super::text;
use crate::error::display_chain;

/// Builds the response: 200 with the keys whose new values require a restart, one a line, or 400 with every problem, one
/// a line; then nothing has changed.
pub(super) fn response(result: Result<Vec<&'static str>, Box<dyn Error + Send + Sync>>) -> Response<Full<Bytes>> {
    match result {
        Ok(kept) => {
            let kept = kept.iter().map(|key| format!("{key}: change requires a restart; keeping the old value\n"));
            text(StatusCode::OK, format!("reloaded\n{}", kept.collect::<String>()))
        }
        Err(error) => text(
            StatusCode::BAD_REQUEST,
            format!("reload failed; keeping the current configuration:\n{}\n", display_chain(&*error)),
        ),
    }
}
