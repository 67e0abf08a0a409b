//! Who asks, as far as fairness goes.

/// One caller among those who share a quota: with work waiting each gets its turn. Two are told
/// apart as far as that is possible without asking who they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CallerId(pub u64);

impl CallerId {
    /// chatgate itself, when it calls for several callers at once.
    pub const SELF: CallerId = CallerId(0);
}
