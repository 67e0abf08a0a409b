//! The pairs that a write may have changed.

/// The narrowest set of pairs that certainly contains every pair a write may have changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// These pairs, in both directions.
    Pairs {
        /// The user that all of them have in common.
        from: String,
        /// The other users.
        to: Vec<String>,
    },
    /// Every pair of these users.
    Users(Vec<String>),
    /// Every pair of the app.
    All,
}

impl Scope {
    /// Returns its kind as the admin API and the logs show it: `pairs`, `user`, or `all`.
    pub fn name(&self) -> &'static str {
        match self {
            Scope::Pairs { .. } => "pairs",
            Scope::Users(_) => "user",
            Scope::All => "all",
        }
    }
}
