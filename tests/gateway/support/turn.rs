//! Who runs when: tests share the machine, and those that measure time have it for themselves.

use std::cell::RefCell;
use std::sync::{Arc, LazyLock, Weak};

use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};

static MACHINE: LazyLock<Arc<RwLock<()>>> = LazyLock::new(Arc::default);

thread_local! {
    /// The turn of the test that runs on this thread, so that its second gateway does not queue
    /// behind a test that waits for the first one to end.
    static MINE: RefCell<Weak<Turn>> = const { RefCell::new(Weak::new()) };
}

/// A test's permission to run; it ends when the last copy goes.
#[allow(dead_code, reason = "the guards are kept for their drop")]
pub(crate) enum Turn {
    Shared(OwnedRwLockReadGuard<()>),
    Alone(OwnedRwLockWriteGuard<()>),
}

/// A turn next to others. Every gateway takes one.
pub(crate) async fn shared() -> Arc<Turn> {
    if let Some(turn) = MINE.with(|mine| mine.borrow().upgrade()) {
        return turn;
    }
    let turn = Arc::new(Turn::Shared(MACHINE.clone().read_owned().await));
    MINE.with(|mine| *mine.borrow_mut() = Arc::downgrade(&turn));
    turn
}

/// A turn without any other gateway running. For tests that measure time; taken before the first gateway.
pub(crate) async fn alone() -> Arc<Turn> {
    let turn = Arc::new(Turn::Alone(MACHINE.clone().write_owned().await));
    MINE.with(|mine| *mine.borrow_mut() = Arc::downgrade(&turn));
    turn
}
