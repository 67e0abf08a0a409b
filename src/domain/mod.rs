//! The pure core: what Chat means, without a socket, a clock or a random number.
//!
//! Everything here takes time, keys and bytes as arguments and returns values, so that a test can
//! replay any moment exactly. Nothing in this folder may import a runtime, an HTTP library or a
//! clock; a test in `tests/` holds it to that.

pub mod caller;
pub mod chat;
pub mod fleet;
pub mod follow;
pub mod json;
pub mod pairs;
pub mod policy;
pub mod tick;
