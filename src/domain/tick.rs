//! Moments on a clock that never goes back.

use std::time::Duration;

/// A moment: microseconds on the process's monotonic clock, in 62 bits (146,000 years).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Tick(u64);

impl Tick {
    /// Before every moment that a clock shows.
    pub const NEVER: Tick = Tick(0);
    /// After every moment that a clock shows.
    pub const LAST: Tick = Tick(u64::MAX >> 2);

    /// The moment after so many microseconds; more than 62 bits are cut to the last moment there is.
    pub const fn from_micros(micros: u64) -> Self {
        if micros > Self::LAST.0 { Self::LAST } else { Tick(micros) }
    }

    /// Microseconds since the clock's start.
    pub const fn micros(self) -> u64 {
        self.0
    }

    /// How long ago `earlier` was; zero if it was not.
    pub const fn since(self, earlier: Tick) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }

    /// The moment `span` earlier; [`Tick::NEVER`] if the clock had not begun.
    pub fn before(self, span: Duration) -> Tick {
        Tick(self.0.saturating_sub(u64::try_from(span.as_micros()).unwrap_or(u64::MAX)))
    }

    /// The moment `span` later.
    pub fn after(self, span: Duration) -> Tick {
        Tick::from_micros(self.0.saturating_add(u64::try_from(span.as_micros()).unwrap_or(u64::MAX)))
    }
}
