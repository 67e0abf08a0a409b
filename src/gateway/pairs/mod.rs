//! `follow_check`: answers from the cache, and lookups for the pairs that are missing.

pub(crate) mod check;
pub(crate) mod dispatcher;
pub mod freshness;
