//! The pure core: the rules of Chat and the decisions of chatgate, without sockets, clocks, or random numbers.
//!
//! Everything here takes time, keys, and bytes as arguments and returns values, so a test can replay any moment
//! exactly. No file in this folder may import a runtime, an HTTP library, or a clock; `tests/tidy` enforces that.

pub mod caller;
pub mod chat;
pub mod fleet;
pub mod identity;
pub mod json;
pub mod pairs;
pub(crate) mod policy;
pub mod quote;
pub mod reads;
pub mod relation;
pub mod tick;
pub mod verified_signatures;

#[cfg(test)]
#[path = "../../tests/unit/facts.rs"]
mod facts;
