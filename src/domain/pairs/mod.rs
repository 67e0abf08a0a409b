//! The pair engine: cached pairs, the fence, and scheduled lookups.
//!
//! The engine knows users, pairs, and a [`Relation`](pair::Relation) of two bits. It knows no command of Chat and no
//! JSON. A command that checks pairs has a module of its own, which reads requests, writes responses, and names the
//! pairs that a write changes: today [`follow`](super::follow), later its siblings.
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
pub mod lookups;
pub mod pair;
pub mod scope;
