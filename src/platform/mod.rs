//! The differences between operating systems: each function has a version for Linux, and one for other Unix systems.
//!
//! No other module names a system or one of its files. The portable version is compiled and tested on Linux, too:
//! `tests/portable` builds the program with `--cfg chatgate_portable`.

#[cfg(target_os = "linux")]
#[cfg_attr(chatgate_portable, allow(dead_code, reason = "only its tests use it"))]
mod linux;
#[cfg(any(test, chatgate_portable, not(target_os = "linux")))]
#[cfg_attr(all(test, target_os = "linux", not(chatgate_portable)), allow(dead_code, reason = "only its tests use it"))]
mod portable;

#[cfg(all(target_os = "linux", not(chatgate_portable)))]
use linux as system;
#[cfg(any(chatgate_portable, not(target_os = "linux")))]
use portable as system;

pub(crate) use system::{UNIX_PATH_LEN_MAX, is_listening, notify_address, protect_memory, resource_usage};

/// Resource usage of this process. A value that the system does not report is `None`.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct ResourceUsage {
    /// Resident memory, in bytes.
    pub(crate) resident_bytes: Option<u64>,
    /// User and system CPU time, in seconds.
    pub(crate) cpu_secs: Option<f64>,
    /// Number of open file descriptors.
    pub(crate) open_fds: Option<u64>,
    /// Limit of open file descriptors; `None` also without a limit.
    pub(crate) max_fds: Option<u64>,
    /// Number of threads.
    pub(crate) threads: Option<u64>,
}
