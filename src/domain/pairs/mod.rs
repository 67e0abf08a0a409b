//! The pair engine: cached pairs, the fence, and scheduled lookups.
//!
//! The engine knows users, pairs, and a [`Relation`](pair::Relation) of two bits. It knows no command of Chat and no
//! JSON: [`relation`](super::relation) has what Chat says of each relation.
//!
//! ```text
//!   request ──> pair ──> cache (known pairs) ──> response
//!                 │        ▲  checked against
//!                 │        │  fence (not older than a write)
//!                 └──> lookups (pairs to fetch, and the requests that wait)
//! ```

pub mod cache;
pub(crate) mod check;
pub(crate) mod dedup;
pub(crate) mod directives;
pub(crate) mod fence;
pub mod item;
pub(crate) mod known;
pub mod lookups;
pub mod pair;
pub mod scope;
mod sync;

// Not in their files, which tests/loom compiles with other atomics.
#[cfg(test)]
#[path = "../../../tests/unit/fence.rs"]
mod fence_tests;
#[cfg(test)]
#[path = "../../../tests/unit/pair_cache.rs"]
mod pair_cache_tests;
