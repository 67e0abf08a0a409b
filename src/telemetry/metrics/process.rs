//! Resource usage of this process, from /proc (proc(5)). A value that /proc does not have is `None`.

use std::fs;

/// Ticks of CPU time per second: Linux reports 100 to programs on every architecture.
const TICKS_PER_SEC: f64 = 100.0;

/// Resource usage of this process.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct Process {
    /// Resident memory, in bytes.
    pub(crate) resident_bytes: Option<u64>,
    /// User and system CPU time, in seconds.
    pub(crate) cpu_secs: Option<f64>,
    /// Number of open file descriptors.
    pub(crate) open_fds: Option<u64>,
    /// Limit of open file descriptors.
    pub(crate) max_fds: Option<u64>,
    /// Number of threads.
    pub(crate) threads: Option<u64>,
}

impl Process {
    /// Reads the current values.
    pub(crate) fn now() -> Self {
        let read = |name: &str| fs::read_to_string(format!("/proc/self/{name}")).unwrap_or_default();
        let status = read("status");
        Self {
            resident_bytes: number_after(&status, "VmRSS:").map(|kib| kib * 1024),
            cpu_secs: cpu_secs(&read("stat")),
            // One of them is the open directory itself.
            open_fds: fs::read_dir("/proc/self/fd").ok().map(|all| (all.count() as u64).saturating_sub(1)),
            max_fds: number_after(&read("limits"), "Max open files"),
            threads: number_after(&status, "Threads:"),
        }
    }
}

/// Returns the first number in the line that starts with `name`.
fn number_after(text: &str, name: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    rest.split_whitespace().next()?.parse().ok()
}

/// Returns the sum of fields 14 and 15, user and system time. The name in parentheses before them may contain any
/// character.
fn cpu_secs(stat: &str) -> Option<f64> {
    let (_, after) = stat.rsplit_once(") ")?;
    let mut fields = after.split(' ').skip(11).map(|field| field.parse::<u64>().ok());
    Some((fields.next()?? + fields.next()??) as f64 / TICKS_PER_SEC)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn process_name_with_parentheses_does_not_shift_fields() {
        let stat = "7 (a) b ) S 1 7 7 0 -1 4194560 1 0 0 0 250 50 0 0 20 0 4 0 1 1 1";
        assert_eq!(cpu_secs(stat), Some(3.0));
        assert_eq!(cpu_secs("7 (a) S 1"), None);
        assert_eq!(number_after("Name:\tx\nVmRSS:\t  1234 kB\n", "VmRSS:"), Some(1234));
        assert_eq!(number_after("Max open files            unlimited", "Max open files"), None);
    }

    #[test]
    fn now_reads_memory_threads_and_open_files() {
        let process = Process::now();
        assert!(process.resident_bytes.is_some_and(|bytes| bytes > 100_000), "{process:?}");
        assert!(process.threads.is_some_and(|threads| threads >= 1), "{process:?}");
        assert!(process.open_fds.is_some_and(|fds| fds >= 3), "{process:?}");
    }
}
