//! A wall clock that a test sets forward and back, through libfaketime. The monotonic clock is not affected.

use std::path::PathBuf;

/// The wall clock of the processes that are started with its variables.
#[derive(Debug, Clone)]
pub(crate) struct WallClock(PathBuf);

impl WallClock {
    /// Creates a clock with the true time. `file` holds its offset from then on.
    pub(crate) fn new(file: PathBuf) -> WallClock {
        std::fs::write(&file, "+0").expect("a writable directory");
        WallClock(file)
    }

    /// Returns the environment variables of a process with this clock.
    pub(crate) fn variables(&self) -> Vec<(&'static str, String)> {
        let library = std::fs::read_dir("/usr/lib").expect("a directory").flatten();
        let library =
            library.map(|directory| directory.path().join("faketime/libfaketime.so.1")).find(|path| path.exists());
        let library = library.expect("libfaketime is installed; see tests/run");
        vec![
            ("LD_PRELOAD", library.to_string_lossy().into_owned()),
            ("FAKETIME_TIMESTAMP_FILE", self.0.to_string_lossy().into_owned()),
            // Reread the file once a second. If it were read on every clock access, a thread that reads the clock during
            // another thread's read would sometimes get the true time (libfaketime 0.9.10: one access in ten thousand).
            ("FAKETIME_CACHE_DURATION", "1".to_owned()),
            ("DONT_FAKE_MONOTONIC", "1".to_owned()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
        ]
    }

    /// Sets the offset from the true time. Processes see it within a second.
    pub(crate) fn set(&self, seconds: f64) {
        let new = self.0.with_extension("new");
        std::fs::write(&new, format!("{seconds:+}")).expect("a writable directory");
        std::fs::rename(&new, &self.0).expect("a writable directory");
    }
}
