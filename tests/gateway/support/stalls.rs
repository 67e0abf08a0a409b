//! How well this machine keeps time while a test measures it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::support::now;

/// Watches for moments in which nothing runs: calls that left one by one arrive together after such
/// a moment, through no fault of who sent them.
pub(crate) struct Stalls {
    done: Arc<AtomicBool>,
    watch: JoinHandle<Duration>,
}

impl Stalls {
    /// Begins to watch.
    pub(crate) fn watch() -> Self {
        let done = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&done);
        let watch = std::thread::spawn(move || {
            let (mut last, mut worst) = (now(), Duration::ZERO);
            while !ended.load(Ordering::Acquire) {
                std::thread::sleep(Duration::from_millis(2));
                worst = worst.max(now() - last);
                last = now();
            }
            worst
        });
        Self { done, watch }
    }

    /// The longest of them.
    pub(crate) fn worst(self) -> Duration {
        self.done.store(true, Ordering::Release);
        self.watch.join().expect("the watch does not panic")
    }
}
