//! Keys whose feature is not there yet. They are read and checked like all others, so that their mistakes
//! show, and then refused: a key that is silently ignored would promise what is not kept.

use super::section::Section;
use super::units::{fraction, text};

/// A key that is to come.
struct ToCome {
    key: &'static str,
    /// What the feature is, as the beginning of a sentence.
    feature: &'static str,
    /// What to do for now.
    instead: &'static str,
}

/// All of them. A feature that comes takes its row away; its checks below become its reading.
const TO_COME: &[ToCome] = &[
    ToCome {
        key: "fleet",
        feature: "sharing between replicas",
        instead: "leave it out and divide [app.quota] among the replicas",
    },
    ToCome { key: "trace", feature: "exporting traces", instead: "leave it out" },
];

/// Whether the feature of a key is still to come: `fleet` and so on, without numbers.
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
    check_fleet(root);
    let mut trace = root.section("trace");
    trace.optional("otlp", text);
    trace.finish();
    for key in ["fleet", "trace"] {
        refuse(root, key, key);
    }
}

fn check_fleet(root: &mut Section<'_>) {
    let mut fleet = root.section("fleet");
    fleet.optional("redis", |node| {
        let url = text(node)?;
        let rest = url.strip_prefix("redis://").or_else(|| url.strip_prefix("rediss://"));
        match rest {
            Some(rest) if rest.contains('@') => {
                Err("must not hold a password; put the whole URL into a file and name that with url_file".to_owned())
            }
            Some(_) => Ok(()),
            None => Err("is not an address of Redis; write \"redis://HOST:PORT\" or \"rediss://HOST:PORT\"".to_owned()),
        }
    });
    fleet.path_value("url_file");
    if fleet.has("redis") && fleet.has("url_file") {
        fleet.problem("url_file", "stands beside redis; write only one of them");
    }
    fleet.optional("prefix", text);
    fleet.optional("share", fraction(0.01..=1.0));
    fleet.finish();
}
