//! `POST /reload`: reads the configuration again.

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::Full;

use super::text;
use crate::error::display_chain;
use crate::runtime::reload::{ReloadScope, Reloader};

/// Reloads and tells what came of it: 200 with the keys whose new values take a restart, a line each, or
/// 400 with every problem, a line each; then nothing has changed.
pub(super) async fn reload(reloader: &Reloader) -> Response<Full<Bytes>> {
    match reloader.reload(ReloadScope::Everything, "POST /reload").await {
        Ok(kept) => {
            let kept = kept.iter().map(|key| format!("{key} takes a restart; its old value holds\n"));
            text(StatusCode::OK, format!("reloaded\n{}", kept.collect::<String>()))
        }
        Err(error) => {
            text(StatusCode::BAD_REQUEST, format!("not reloaded, nothing has changed:\n{}\n", display_chain(&error)))
        }
    }
}
