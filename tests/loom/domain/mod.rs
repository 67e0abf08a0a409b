//! The part of the pure core that threads share, compiled with the atomics of loom.

pub(crate) mod pairs;
#[path = "../../../src/domain/tick.rs"]
pub(crate) mod tick;
