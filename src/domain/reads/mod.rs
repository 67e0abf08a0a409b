//! Cached reads: whole responses of the read commands that `[cache.commands]` names.
//!
//! A response is known by its app, its command, and the exact bytes of its request. Equal requests share a call. Nothing
//! here knows the content of a command, except what [`rules`] says of it:
//!
//! ```text
//!   request ──> rule (may it be cached?) ──> cache (kept responses) ──> response
//!                                              │  ▲  checked against
//!                                              │  │  fence (not older than a write of the service)
//!                                              └──> calls in flight, which equal requests share
//! ```
//!
//! The guarantee is that of the [pairs](super::pairs::fence): once the response to a write or a webhook was returned, no
//! later request gets a response of Chat to a call that was sent earlier.

pub mod cache;
pub mod calls;
pub mod fence;
pub mod found;
pub mod request;
pub mod response;
pub mod rules;
pub mod scope;

#[cfg(test)]
#[path = "../../../tests/model/reads.rs"]
mod model;
