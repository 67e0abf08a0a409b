//! The pair engine: cached pairs, the fence, and scheduled lookups.

pub mod cache;
pub mod dedup;
pub mod fence;
pub mod lookups;
pub mod pair;
