//! Times of a clock that never goes back.

use std::time::Duration;

/// A time: microseconds on the monotonic clock of the process, in 61 bits (73,000 years).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Tick(u64);

impl Tick {
    /// Earlier than any time of the clock.
    pub const NEVER: Tick = Tick(0);
    /// The latest time.
    pub const LAST: Tick = Tick(u64::MAX >> 3);

    /// Returns the time this many microseconds after the clock's start; saturates at [`Tick::LAST`].
    pub const fn from_micros(micros: u64) -> Self {
        if micros > Self::LAST.0 { Self::LAST } else { Tick(micros) }
    }

    /// Returns the microseconds since the clock's start.
    pub const fn micros(self) -> u64 {
        self.0
    }

    /// Returns the duration since `earlier`; zero if `earlier` is later.
    pub const fn since(self, earlier: Tick) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }

    /// Returns the time `span` earlier; saturates at [`Tick::NEVER`].
    pub fn before(self, span: Duration) -> Tick {
        Tick(self.0.saturating_sub(u64::try_from(span.as_micros()).unwrap_or(u64::MAX)))
    }

    /// Returns the time `span` later; saturates at [`Tick::LAST`].
    pub fn after(self, span: Duration) -> Tick {
        Tick::from_micros(self.0.saturating_add(u64::try_from(span.as_micros()).unwrap_or(u64::MAX)))
    }
}
