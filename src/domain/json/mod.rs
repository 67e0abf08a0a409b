//! Readers of JSON that is relayed unchanged: a fast scanner, strict objects, and printable ASCII.

pub mod ascii;
pub mod object;
pub mod scan;
