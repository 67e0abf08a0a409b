//! Keys whose feature is not there yet. They are read and checked like all others, so that their mistakes
//! show, and then refused: a key that is silently ignored would promise what is not kept.

use super::section::Section;
use super::units::text;

/// A key that is to come.
struct ToCome {
    key: &'static str,
    /// What the feature is, as the beginning of a sentence.
    feature: &'static str,
    /// What to do for now.
    instead: &'static str,
}

/// All of them. A feature that comes takes its row away; its checks below become its reading.
const TO_COME: &[ToCome] = &[ToCome { key: "trace", feature: "exporting traces", instead: "leave it out" }];

/// Whether the feature of a key is still to come: `trace` and so on, without numbers.
pub fn is_to_come(key: &str) -> bool {
    TO_COME.iter().any(|row| row.key == key)
}

/// Refuses a key of the table above, if it was written.
fn refuse(section: &Section<'_>, key: &str, full_key: &str) {
    if let Some(row) = TO_COME.iter().find(|row| row.key == full_key)
        && section.has(key)
    {
        section.problem(key, format_args!("{} is not in this version; {}", row.feature, row.instead));
    }
}

/// Whole sections.
pub(super) fn check(root: &mut Section<'_>) {
    let mut trace = root.section("trace");
    trace.optional("otlp", text);
    trace.finish();
    refuse(root, "trace", "trace");
}
