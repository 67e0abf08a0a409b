//! Rules about Cargo.toml.

use std::collections::BTreeSet;

pub(crate) struct Dependency<'a> {
    pub(crate) name: &'a str,
    /// Whether only tests and benchmarks use it.
    pub(crate) is_dev: bool,
    /// The value without the comment.
    value: &'a str,
    pub(crate) reason: Option<&'a str>,
}

/// Returns the lines of every `[...dependencies]` table. A dependency with its own table has no line for a reason, so
/// it counts as one without.
pub(crate) fn dependencies(manifest: &str) -> impl Iterator<Item = Dependency<'_>> {
    let (mut inside, mut is_dev) = (false, false);
    manifest.lines().filter_map(move |line| {
        if let Some(table) = line.strip_prefix('[') {
            let table = table.trim_end_matches(']');
            inside = table.ends_with("dependencies");
            is_dev = table.starts_with("dev-");
            let (head, name) = table.rsplit_once('.')?;
            return head.ends_with("dependencies").then_some(Dependency { name, is_dev, value: "", reason: None });
        }
        if !inside || line.trim_start().starts_with('#') {
            return None;
        }
        let (name, rest) = line.split_once('=')?;
        let (value, reason) = match rest.split_once('#') {
            Some((value, reason)) if !reason.trim().is_empty() => (value, Some(reason.trim())),
            Some((value, _)) => (value, None),
            None => (rest, None),
        };
        Some(Dependency { name: name.trim(), is_dev, value, reason })
    })
}

/// Returns whether code uses a dependency: its name begins a path, or is all that a `use` names.
pub(crate) fn uses_crate(code: &str, dependency: &str) -> bool {
    let name = dependency.replace('-', "_");
    code.match_indices(&name).any(|(start, _)| {
        let (before, after) = (&code[..start], &code[start + name.len()..]);
        // `crate::http::` is a module of the project.
        let begins_path = !before.ends_with(|last: char| last.is_alphanumeric() || matches!(last, '_' | ':'));
        begins_path && (after.starts_with("::") || before.ends_with("use ") && after.starts_with([';', ' ']))
    })
}

pub(crate) fn feature_policy_breaches(manifest: &str, keep_defaults: &[(&str, &str)]) -> Vec<String> {
    let kept: BTreeSet<&str> = dependencies(manifest)
        .filter(|dependency| !dependency.value.contains("default-features = false"))
        .map(|dependency| dependency.name)
        .collect();
    let listed: BTreeSet<&str> = keep_defaults.iter().map(|(name, _)| *name).collect();
    let unlisted = kept.difference(&listed).map(|name| format!("{name}: default features are on"));
    let stale = listed
        .difference(&kept)
        .map(|name| format!("{name}: listed, but its default features are off or it was removed"));
    unlisted.chain(stale).collect()
}

/// Returns the dependencies of a package in a lock file.
pub(crate) fn locked_dependencies<'a>(lock: &'a str, package: &str) -> BTreeSet<&'a str> {
    let entry = lock.split("[[package]]\n").find(|entry| entry.starts_with(&format!("name = \"{package}\"\n")));
    let list = entry.and_then(|entry| entry.split_once("dependencies = [\n")).map_or("", |(_, list)| list);
    let lines = list.lines().take_while(|line| *line != "]");
    // A name has its version after it if there are several.
    lines.filter_map(|line| line.trim().trim_matches(['"', ',']).split(' ').next()).collect()
}

/// Returns whether a dependency is compiled only with a feature.
pub(crate) fn is_optional(dependency: &Dependency<'_>) -> bool {
    dependency.value.contains("optional = true")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn manifest_rules_find_missing_reasons_and_unlisted_defaults() {
        let manifest = "[package]\nname = \"x\"\n[dependencies]\n# a heading\n\
                        good = { version = \"1\", default-features = false } # why\nbare = \"1\"\nempty = \"1\" #\n\
                        [dev-dependencies.own]\nversion = \"1\"\n[features]\nf = []\n";
        let without_reason: Vec<_> =
            dependencies(manifest).filter(|found| found.reason.is_none()).map(|found| found.name).collect();
        assert_eq!(without_reason, ["bare", "empty", "own"]);
        let of_tests: Vec<_> = dependencies(manifest).filter(|found| found.is_dev).map(|found| found.name).collect();
        assert_eq!(of_tests, ["own"]);
        let breaches = feature_policy_breaches(manifest, &[("bare", "why"), ("good", "why")]);
        assert_eq!(breaches.len(), 3, "{breaches:?}");
    }

    #[test]
    fn dependencies_of_a_locked_package_are_found() {
        let lock = "version = 4\n\n[[package]]\nname = \"x-y\"\ndependencies = [\n \"wrong\",\n]\n\n[[package]]\nname = \"x\"\n\
                    version = \"1\"\ndependencies = [\n \"a\",\n \"b 1.0.0\",\n]\n\n[[package]]\nname = \"z\"\n";
        assert_eq!(locked_dependencies(lock, "x"), BTreeSet::from(["a", "b"]));
        assert!(locked_dependencies(lock, "z").is_empty());
    }

    #[test]
    fn crate_is_used_by_paths_that_begin_with_its_name() {
        for code in ["use http::Uri;", "fn f(x: http::Uri) {}", "use http;", "use http as h;", "(http::Uri)"] {
            assert!(uses_crate(code, "http"), "{code}");
        }
        for code in ["use crate::http::body;", "mod http;", "use http_body::Body;", "https::x", "let http = 1;"] {
            assert!(!uses_crate(code, "http"), "{code}");
        }
        assert!(uses_crate("opentelemetry_proto::x", "opentelemetry-proto"));
    }
}
