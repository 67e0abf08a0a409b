//! chatgate
fn main() {}
