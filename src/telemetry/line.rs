//! The bound of log lines: every line has at most [`MESSAGE_LEN_MAX`] bytes, whatever its fields contain.

use std::borrow::Cow;
use std::io;

use serde_json::{Map, Value};
use tracing_appender::non_blocking::NonBlocking;
use tracing_subscriber::fmt::MakeWriter;

use crate::config::LogFormat;
use crate::domain::quote::{MESSAGE_LEN_MAX, shorten_to};

/// Lengths in bytes to which the texts of a long JSON line are shortened, until the line fits.
const TEXT_LENS: [usize; 6] = [512, 256, 128, 64, 32, 16];
/// Fields of a JSON line that remain if even short texts exceed the bound.
const MAIN_FIELDS: [&str; 4] = ["timestamp", "level", "message", "target"];
/// Ends the color of a shortened line of text.
const RESET_COLOR: &str = "\u{1b}[0m";

/// A writer that receives whole lines and shortens the long ones.
#[derive(Debug, Clone)]
pub(super) struct BoundedLines {
    inner: NonBlocking,
    format: LogFormat,
}

impl BoundedLines {
    pub(super) fn new(inner: NonBlocking, format: LogFormat) -> Self {
        Self { inner, format }
    }
}

impl<'a> MakeWriter<'a> for BoundedLines {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

impl io::Write for BoundedLines {
    /// Writes one line, which the formatter passes as a whole.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let bounded = bound(line, self.format);
        self.inner.write_all(&bounded).map(|()| line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Returns a line of at most [`MESSAGE_LEN_MAX`] bytes, without its line feed. A JSON line stays a JSON object.
fn bound(line: &[u8], format: LogFormat) -> Cow<'_, [u8]> {
    // Nearly every line has less than half of this.
    if line.len() <= MESSAGE_LEN_MAX {
        return Cow::Borrowed(line);
    }
    let text = String::from_utf8_lossy(line);
    let text = text.trim_end_matches('\n');
    let bounded = match format {
        LogFormat::Json => bound_json(text),
        LogFormat::Text => None,
    };
    let mut bounded = bounded.unwrap_or_else(|| bound_text(text)).into_bytes();
    bounded.push(b'\n');
    Cow::Owned(bounded)
}

/// Shortens the texts of an object; `None` if it is not an object.
fn bound_json(line: &str) -> Option<String> {
    let fields: Map<String, Value> = serde_json::from_str(line).ok()?;
    let shortened = |fields: &Map<String, Value>, len: usize| {
        let fields = fields.iter().map(|(name, value)| match value {
            Value::String(text) => (name.clone(), Value::String(shorten_to(text, len).into_owned())),
            other => (name.clone(), other.clone()),
        });
        Value::Object(fields.collect()).to_string()
    };
    let mut candidates = TEXT_LENS.iter().map(|len| shortened(&fields, *len));
    candidates.find(|line| line.len() <= MESSAGE_LEN_MAX).or_else(|| {
        let main = |name: &String| MAIN_FIELDS.contains(&name.as_str());
        let fields = fields.clone().into_iter().filter(|(name, _)| main(name)).collect();
        Some(shortened(&fields, 64))
    })
}

fn bound_text(line: &str) -> String {
    if line.contains('\u{1b}') {
        return format!("{}{RESET_COLOR}", shorten_to(line, MESSAGE_LEN_MAX - RESET_COLOR.len()));
    }
    shorten_to(line, MESSAGE_LEN_MAX).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bounded(line: &str, format: LogFormat) -> String {
        let bytes = bound(line.as_bytes(), format).into_owned();
        String::from_utf8(bytes).expect("text")
    }

    #[test]
    fn short_lines_are_unchanged() {
        for line in ["{\"level\":\"INFO\"}\n", "INFO a line\n", "not JSON\n"] {
            assert_eq!(bounded(line, LogFormat::Json), line);
            assert_eq!(bounded(line, LogFormat::Text), line);
        }
    }

    #[test]
    fn long_json_lines_stay_objects_of_a_kibibyte() {
        for text in ["x".repeat(5000), "\u{1}".repeat(5000), "\"ä".repeat(5000)] {
            for count in [1, 5, 30] {
                let mut fields =
                    Map::from_iter([("level".to_owned(), "WARN".into()), ("status".to_owned(), 502.into())]);
                fields.extend((0..count).map(|number| (format!("a_field_with_number_{number}"), text.as_str().into())));
                fields.insert("message".to_owned(), "lost connection to Redis".into());
                let line = bounded(&format!("{}\n", Value::Object(fields)), LogFormat::Json);
                assert!(line.ends_with("}\n") && line.len() <= MESSAGE_LEN_MAX + 1, "{}", line.len());
                let object: Map<String, Value> = serde_json::from_str(&line).expect("an object");
                assert_eq!(object["level"], "WARN");
                assert!(object["message"].as_str().expect("a text").starts_with("lost conn"), "{object:?}");
                assert_eq!(object.contains_key("status"), count < 30, "{object:?}");
            }
        }
    }

    #[test]
    fn long_text_lines_are_cut_and_end_their_color() {
        let line = bounded(&format!("INFO {}\n", "ä".repeat(5000)), LogFormat::Text);
        assert!(line.ends_with("ä...\n") && line.len() <= MESSAGE_LEN_MAX + 1, "{}", line.len());
        let line = bounded(&format!("\u{1b}[32mINFO {}\n", "x".repeat(5000)), LogFormat::Text);
        assert!(line.ends_with("x...\u{1b}[0m\n") && line.len() <= MESSAGE_LEN_MAX + 1, "{}", line.len());
    }
}
