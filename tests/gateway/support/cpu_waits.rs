//! Scheduling delays of this machine while a test measures time.

use std::time::Duration;

use crate::support::gateway::Gateway;

/// Measures how long the threads of a gateway and of the test waited for a CPU. After such a wait, calls that were
/// sent one by one arrive together, which is not a bug of the sender.
pub(crate) struct CpuWaits {
    gateway_pid: u32,
    before: Duration,
}

impl CpuWaits {
    /// Starts to measure.
    pub(crate) fn start(gateway: &Gateway) -> Self {
        let gateway_pid = gateway.pid();
        Self { gateway_pid, before: total_wait(gateway_pid) }
    }

    /// Returns the sum of all waits, which is an upper bound of the longest wait.
    pub(crate) fn total(&self) -> Duration {
        total_wait(self.gateway_pid).saturating_sub(self.before)
    }
}

/// Returns the time that all threads of both processes have waited so far (proc(5), `schedstat`, second field), plus
/// the time that virtual CPUs waited for physical ones (`/proc/stat`, `steal`, which counts no thread as waiting).
fn total_wait(gateway_pid: u32) -> Duration {
    let folders =
        [gateway_pid.to_string(), "self".to_owned()].map(|pid| std::fs::read_dir(format!("/proc/{pid}/task")));
    let threads = folders.into_iter().flatten().flatten().flatten();
    let nanos = threads.filter_map(|thread| {
        // The waits of a thread that has just exited are lost.
        let stat = std::fs::read_to_string(thread.path().join("schedstat")).ok()?;
        stat.split(' ').nth(1)?.parse::<u64>().ok()
    });
    Duration::from_nanos(nanos.sum()) + stolen_time()
}

fn stolen_time() -> Duration {
    let text = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let ticks = text.lines().next().and_then(|line| line.split_whitespace().nth(8)?.parse::<u64>().ok());
    // The unit is 10 ms (USER_HZ, proc(5)).
    Duration::from_millis(10 * ticks.unwrap_or(0))
}
