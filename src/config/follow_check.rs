//! `[follow_check]`: handling of `follow/follow_check`.

use super::section::Section;
use super::units::{boolean, count};

/// `[follow_check]`: handling of `follow/follow_check`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FollowCheck {
    /// Maximum number of accounts per request, 1 to 10,000. Default 1000.
    pub max_to: usize,
    /// Whether pairs may be flipped, that is, fetched from their other side. Default true.
    pub flip: bool,
}

impl Default for FollowCheck {
    fn default() -> Self {
        Self { max_to: 1000, flip: true }
    }
}

impl FollowCheck {
    pub(super) fn read(mut section: Section<'_>) -> Self {
        let mut follow_check = Self::default();
        section.read("max_to", &mut follow_check.max_to, count(1..=10_000));
        section.read("flip", &mut follow_check.flip, boolean);
        section.finish();
        follow_check
    }
}
