//! Scheduling of tests: most run in parallel, and a test that measures time runs exclusively.

use std::cell::RefCell;
use std::sync::{Arc, LazyLock, Weak};

use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};

static MACHINE: LazyLock<Arc<RwLock<()>>> = LazyLock::new(Arc::default);

thread_local! {
    /// The turn of the test on this thread, so that its second gateway does not queue behind a test that waits for the
    /// first gateway to exit.
    static MINE: RefCell<Weak<Turn>> = const { RefCell::new(Weak::new()) };
}

/// A test's permission to run. It ends when the last reference is dropped.
#[allow(dead_code, reason = "the guards are held for their drop")]
pub(crate) enum Turn {
    Shared(OwnedRwLockReadGuard<()>),
    Exclusive(OwnedRwLockWriteGuard<()>),
}

/// Waits for a shared turn. Every gateway takes one.
pub(crate) async fn shared() -> Arc<Turn> {
    if let Some(turn) = MINE.with(|mine| mine.borrow().upgrade()) {
        return turn;
    }
    let turn = Arc::new(Turn::Shared(MACHINE.clone().read_owned().await));
    MINE.with(|mine| *mine.borrow_mut() = Arc::downgrade(&turn));
    turn
}

/// Waits for an exclusive turn, during which no other gateway runs. A test that measures time takes it before it
/// starts its first gateway.
pub(crate) async fn exclusive() -> Arc<Turn> {
    let turn = Arc::new(Turn::Exclusive(MACHINE.clone().write_owned().await));
    MINE.with(|mine| *mine.borrow_mut() = Arc::downgrade(&turn));
    turn
}
