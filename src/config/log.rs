//! `[log]`: the log on stderr.

use super::section::Section;

/// `[log]`: the log on stderr.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    /// Format of events. Default JSON.
    pub format: LogFormat,
    /// Least severe level that is logged. Default info.
    pub level: tracing::Level,
    /// Which requests are logged. Default sampled.
    pub requests: LogRequests,
}

impl Default for Log {
    fn default() -> Self {
        Self { format: LogFormat::Json, level: tracing::Level::INFO, requests: LogRequests::Sampled }
    }
}

/// Which requests are logged. Failures of chatgate or of Chat are logged in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogRequests {
    /// A few per second.
    Sampled,
    /// Every request.
    All,
    /// No request.
    Off,
}

impl LogRequests {
    /// Returns the value in the configuration.
    pub const fn word(self) -> &'static str {
        match self {
            LogRequests::Sampled => "sampled",
            LogRequests::All => "all",
            LogRequests::Off => "off",
        }
    }
}

/// Format of log events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object per line.
    Json,
    /// One line of readable text.
    Text,
}

impl Log {
    pub(super) fn read(mut section: Section<'_>) -> Self {
        let mut log = Self::default();
        section.read("format", &mut log.format, |node| match node.text() {
            Some("json") => Ok(LogFormat::Json),
            Some("text") => Ok(LogFormat::Text),
            _ => Err("must be \"json\" or \"text\"".to_owned()),
        });
        section.read("level", &mut log.level, |node| {
            let level = node.text().and_then(parse_level);
            level.ok_or_else(|| "must be \"error\", \"warn\", \"info\", \"debug\", or \"trace\"".to_owned())
        });
        section.read("requests", &mut log.requests, |node| match node.text() {
            Some("sampled") => Ok(LogRequests::Sampled),
            Some("all") => Ok(LogRequests::All),
            Some("off") => Ok(LogRequests::Off),
            _ => Err("must be \"sampled\", \"all\", or \"off\"".to_owned()),
        });
        section.finish();
        log
    }
}

/// Parses a log level: `error` to `trace`, in lower case.
pub fn parse_level(word: &str) -> Option<tracing::Level> {
    match word {
        "error" => Some(tracing::Level::ERROR),
        "warn" => Some(tracing::Level::WARN),
        "info" => Some(tracing::Level::INFO),
        "debug" => Some(tracing::Level::DEBUG),
        "trace" => Some(tracing::Level::TRACE),
        _ => None,
    }
}
