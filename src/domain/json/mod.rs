//! JSON that must stay byte for byte what it was.

pub mod ascii;
pub mod object;
pub mod scan;
