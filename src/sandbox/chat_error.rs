//! An error that the simulated Chat returns.

use std::borrow::Cow;

use crate::domain::chat::envelope;

/// An ErrorCode with its ErrorInfo.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ChatError {
    pub(super) code: i64,
    pub(super) info: Cow<'static, str>,
}

impl ChatError {
    pub(super) fn new(code: i64, info: impl Into<Cow<'static, str>>) -> Self {
        Self { code, info: info.into() }
    }

    /// Returns the response body for this error.
    pub(super) fn envelope(&self) -> Vec<u8> {
        envelope::write(self.code, &self.info)
    }
}
