//! The cache and the fence, as in the program but for `sync`.

#[path = "../../../../src/domain/pairs/cache.rs"]
pub(crate) mod cache;
#[path = "../../../../src/domain/pairs/fence.rs"]
pub(crate) mod fence;
#[path = "../../../../src/domain/pairs/pair.rs"]
pub(crate) mod pair;
mod sync;
