//! Resource usage of a process, as reported by the kernel.

use std::fs;

/// Returns the CPU time of a process and its children, in nanoseconds: `/proc/PID/task/*/schedstat`.
pub(crate) fn cpu_nanos(pid: u32) -> u64 {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let own: u64 = tasks
        .filter_map(|task| fs::read_to_string(task.path().join("schedstat")).ok())
        .filter_map(|text| text.split_whitespace().next()?.parse::<u64>().ok())
        .sum();
    own + children(pid).into_iter().map(cpu_nanos).sum::<u64>()
}

/// Returns the current and the peak resident memory of a process and its children, in KiB.
pub(crate) fn resident_kib(pid: u32) -> (u64, u64) {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok()
    };
    let own = (field("VmRSS:").unwrap_or(0), field("VmHWM:").unwrap_or(0));
    children(pid).into_iter().map(resident_kib).fold(own, |sum, child| (sum.0 + child.0, sum.1 + child.1))
}

fn children(pid: u32) -> Vec<u32> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}
