//! How well this machine keeps time while a test measures it.

use std::time::Duration;

use crate::support::gateway::Gateway;

/// Watches how long the threads of a gateway and of the test had to wait for a processor: calls that
/// were let go one by one arrive together after such a wait, through no fault of who sent them.
pub(crate) struct Stalls {
    gateway: u32,
    before: Duration,
}

impl Stalls {
    /// Begins to watch.
    pub(crate) fn watch(gateway: &Gateway) -> Self {
        let gateway = gateway.pid();
        Self { gateway, before: waited(gateway) }
    }

    /// All waits together, of which the longest is a part.
    pub(crate) fn total(&self) -> Duration {
        waited(self.gateway).saturating_sub(self.before)
    }
}

/// How long all threads of both processes have waited so far (proc(5), `schedstat`, second field), and all
/// processors of a virtual machine for real ones (`/proc/stat`, `steal`, which counts no thread as waiting).
fn waited(gateway: u32) -> Duration {
    let folders = [gateway.to_string(), "self".to_owned()].map(|pid| std::fs::read_dir(format!("/proc/{pid}/task")));
    let threads = folders.into_iter().flatten().flatten().flatten();
    let nanos = threads.filter_map(|thread| {
        // A thread that has just ended is gone, and with it what it waited.
        let stat = std::fs::read_to_string(thread.path().join("schedstat")).ok()?;
        stat.split(' ').nth(1)?.parse::<u64>().ok()
    });
    Duration::from_nanos(nanos.sum()) + stolen()
}

fn stolen() -> Duration {
    let text = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let ticks = text.lines().next().and_then(|line| line.split_whitespace().nth(8)?.parse::<u64>().ok());
    // The kernel counts in hundredths of a second here (USER_HZ, proc(5)).
    Duration::from_millis(10 * ticks.unwrap_or(0))
}
