//! Readers of JSON that is relayed unchanged: a fast scanner, strict objects, and printable ASCII.

pub(crate) mod ascii;
mod flat;
pub mod object;
pub mod scan;

#[cfg(test)]
#[path = "../../../tests/unit/json_suite.rs"]
pub(crate) mod json_suite;
