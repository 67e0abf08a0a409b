//! `POST /reload`: reloads the configuration.

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::Full;

use super::text;
use crate::error::display_chain;
use crate::runtime::reload::{ReloadScope, Reloader};

/// Reloads the configuration. The response is 200 with a line for each key whose change requires a restart, or 400
/// with a line for each problem; in that case the configuration is unchanged.
pub(super) async fn reload(reloader: &Reloader) -> Response<Full<Bytes>> {
    match reloader.reload(ReloadScope::Everything, "POST /reload").await {
        Ok(kept) => {
            let kept = kept.iter().map(|key| format!("{key}: change requires a restart; keeping the old value\n"));
            text(StatusCode::OK, format!("reloaded\n{}", kept.collect::<String>()))
        }
        Err(error) => {
            let problems = display_chain(&error);
            text(StatusCode::BAD_REQUEST, format!("reload failed; keeping the current configuration:\n{problems}\n"))
        }
    }
}
