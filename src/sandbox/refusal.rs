//! What Chat says when it says no.

use std::borrow::Cow;

/// An ErrorCode and the sentence that goes with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) code: i64,
    pub(super) info: Cow<'static, str>,
}

impl Refusal {
    pub(super) fn new(code: i64, info: impl Into<Cow<'static, str>>) -> Self {
        Self { code, info: info.into() }
    }
}
