//! Readers of JSON that is relayed unchanged: a fast scanner, strict objects, and printable ASCII.

pub(crate) mod ascii;
pub mod object;
pub mod scan;
