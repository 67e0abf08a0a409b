//! Webhooks that an app did not answer.

use http::StatusCode;

use super::Slug;

/// Why the app of `webhook.forward` did not answer a webhook. Its texts and causes contain nothing of the webhook.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ForwardError {
    /// The app received nothing.
    #[error("cannot connect to the app of webhook.forward; start it, or correct the URL")]
    Unreachable {
        /// For the log.
        cause: String,
    },
    /// The connection broke before a complete response. The app may have received the webhook.
    #[error("the app of webhook.forward closed the connection before a complete response; see its log")]
    Broken {
        /// For the log.
        cause: String,
    },
    /// The app was too slow. It may have received the webhook.
    #[error("the app of webhook.forward did not answer within webhook.forward_timeout; make it faster")]
    Timeout,
    /// The response is unusable.
    #[error("the app of webhook.forward returned {0}; see its log")]
    Invalid(&'static str),
}

impl ForwardError {
    /// Returns its row of the table.
    pub(super) fn slug_and_code(&self) -> (Slug, StatusCode, i64) {
        match self {
            ForwardError::Unreachable { .. } | ForwardError::Broken { .. } => {
                (Slug::UpstreamUnreachable, StatusCode::BAD_GATEWAY, 129_502)
            }
            ForwardError::Timeout => (Slug::UpstreamTimeout, StatusCode::GATEWAY_TIMEOUT, 60008),
            ForwardError::Invalid(_) => (Slug::UpstreamInvalid, StatusCode::BAD_GATEWAY, 60013),
        }
    }

    /// Returns the cause, for the log.
    pub fn cause(&self) -> Option<&str> {
        match self {
            ForwardError::Unreachable { cause } | ForwardError::Broken { cause } => Some(cause),
            ForwardError::Timeout | ForwardError::Invalid(_) => None,
        }
    }
}
