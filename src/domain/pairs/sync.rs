//! The atomics and locks of the cache and the fence. `tests/loom` replaces this module, to run both with every order of
//! their steps.

pub(super) use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

pub(super) use parking_lot::{Mutex, MutexGuard};

/// Returns this many atomics that are 0. Their pages take no memory until they are used.
pub(super) fn zeroed(len: usize) -> Box<[AtomicU64]> {
    bytemuck::zeroed_slice_box(len)
}
