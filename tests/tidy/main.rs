//! Project rules for the source tree that no lint covers.
//!
//! The tests here walk the tree. Each rule is a function from a text to its violations, in one of the modules below; a
//! unit test next to it shows that it finds them.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

mod code;
mod documents;
mod layers;
mod manifest;
mod words;

use code::{
    code_of, lines_containing, lines_naming, lines_naming_other_modules, lines_showing_json_errors, outside_tests,
};
use documents::{
    anchors, codes_with_effect, column, local_links, names_subcommand, slugs_of_the_code, slugs_of_the_table,
    subcommands,
};
use layers::{lines_naming_lower_modules, map_of};
use manifest::{dependencies, feature_policy_breaches, is_optional, locked_dependencies, uses_crate};

/// Longest source file, in lines. A longer file has more than one reason to change.
const FILE_LINES_MAX: usize = 500;

/// Names that the pure core must not use: runtimes, HTTP, logging, randomness, I/O, clocks.
const IMPURE: &[&str] = &[
    "tokio",
    "hyper",
    "hyper_util",
    "http",
    "http_body",
    "tower",
    "tower_http",
    "rustls",
    "tracing",
    "fastrand",
    "getrandom",
    "std::net",
    "std::fs",
    "std::env",
    "std::process",
    "std::thread",
    "Instant::now",
    "SystemTime::now",
];

/// Names that read a clock. `elapsed()` does so too, which is easy to overlook.
const CLOCK_READS: &[&str] = &["Instant::now", "SystemTime::now", ".elapsed()"];

/// Names of operating systems, and of calls that only some of them have.
const SYSTEM_NAMES: &[&str] = &["target_os", "chatgate_portable", "std::os::linux", "rustix::process", "is_listener"];

/// Directories of Linux's kernel.
const SYSTEM_FILES: &[&str] = &["\"/proc", "\"/sys/"];

/// Dependencies that keep their default features, each with the reason. All others disable them, so that Cargo.toml
/// lists all compiled features.
const KEEP_DEFAULTS: &[(&str, &str)] = &[
    ("http", "only `std`"),
    ("http-body", "has no features"),
    ("bytes", "only `std`"),
    ("webpki-roots", "has no features"),
    ("zeroize", "only `alloc`"),
    ("serde", "only `std`"),
    ("serde_json", "only `std`"),
    ("memchr", "only `std`"),
    ("humantime", "only `mu`, the micro sign"),
    ("getrandom", "has none by default"),
    ("thiserror", "only `std`"),
    ("percent-encoding", "only `std`"),
    ("arc-swap", "has none by default"),
    ("tempfile", "tests only; its default names files at random"),
];

/// Dependencies that no code names, each with the reason.
const NOT_IN_CODE: &[(&str, &str)] = &[("idna_adapter", "selects a version of a dependency's dependency")];

/// Maximum number of packages that a build of the program compiles. Each one takes time and has to be trusted, and one
/// feature can add twenty.
const PACKAGES_MAX: usize = 180;

#[test]
fn modules_use_only_the_modules_above_them() {
    let lib = read("src/lib.rs");
    let map = map_of(&lib);
    assert!(map.first() == Some(&"domain") && map.last() == Some(&"cli"), "the map was not found: {map:?}");
    none_of(each_source("src").flat_map(|file| {
        let module = file.name["src/".len()..].split(['/', '.']).next().unwrap_or_default().to_owned();
        let code = outside_tests(&code_of(&file.text));
        let lines = if matches!(&*module, "lib" | "main") {
            Vec::new()
        } else {
            lines_naming_lower_modules(&code, &module, &map)
        };
        file.at(lines.into_iter())
    }));
}

#[test]
fn pair_engine_names_no_command() {
    none_of(each_source("src/domain/pairs").flat_map(|file| {
        let code = outside_tests(&code_of(&file.text));
        file.at(["follow", "FOLLOW_CHECK"].iter().flat_map(|name| lines_naming(&code, name)))
    }));
}

#[test]
fn core_names_no_runtime_io_or_clock() {
    none_of(each_source("src/domain").flat_map(|file| {
        let code = outside_tests(&code_of(&file.text));
        file.at(IMPURE.iter().flat_map(|name| lines_naming(&code, name)).chain(lines_naming_other_modules(&code)))
    }));
}

#[test]
fn only_the_clock_module_reads_clocks() {
    none_of(each_source("src").filter(|file| file.name != "src/clock.rs").flat_map(|file| {
        let code = outside_tests(&code_of(&file.text));
        file.at(CLOCK_READS.iter().flat_map(|name| lines_naming(&code, name)))
    }));
}

#[test]
fn only_the_platform_module_names_an_operating_system() {
    none_of(each_source("src").filter(|file| !file.name.starts_with("src/platform/")).flat_map(|file| {
        let code = code_of(&file.text);
        let names = SYSTEM_NAMES.iter().flat_map(|name| lines_naming(&code, name));
        let files = lines_containing(&file.text, SYSTEM_FILES);
        file.at(names.chain(files))
    }));
}

#[test]
fn errors_of_the_json_parser_are_never_shown() {
    none_of(each_source("src").flat_map(|file| {
        let lines = lines_showing_json_errors(&outside_tests(&file.text));
        file.at(lines.into_iter())
    }));
}

#[test]
fn source_files_are_at_most_500_lines() {
    none_of(each_source("src").filter_map(|file| {
        let lines = file.text.lines().count();
        (lines > FILE_LINES_MAX).then(|| format!("{}: {lines} lines, more than {FILE_LINES_MAX}", file.name))
    }));
}

#[test]
fn code_outside_tests_never_unwraps() {
    none_of(each_source("src").flat_map(|file| {
        let code = outside_tests(&code_of(&file.text));
        file.at([".unwrap()", ".unwrap_err()"].iter().flat_map(|name| lines_naming(&code, name)))
    }));
}

#[test]
fn every_dependency_states_its_reason() {
    let manifest = read("Cargo.toml");
    none_of(
        dependencies(&manifest)
            .filter(|dependency| dependency.reason.is_none())
            .map(|dependency| format!("Cargo.toml: {} has no `# reason` at the end of its line", dependency.name)),
    );
}

#[test]
fn every_dependency_is_used() {
    let in_folders = |folders: &[&str]| {
        let files = folders.iter().flat_map(|folder| each_source(folder));
        files.map(|file| (code_of(&file.text), file.name)).collect::<Vec<_>>()
    };
    let all = in_folders(&["src", "tests", "benches", "fuzz/src"]);
    let program: Vec<_> = in_folders(&["src"]).into_iter().map(|(code, name)| (outside_tests(&code), name)).collect();
    let manifest = read("Cargo.toml");
    none_of(dependencies(&manifest).filter_map(|dependency| {
        let name = dependency.name;
        let code = if dependency.is_dev { &all } else { &program };
        let is_used = code.iter().any(|(code, _)| uses_crate(code, name));
        match NOT_IN_CODE.iter().any(|(listed, _)| *listed == name) {
            false => (!is_used).then(|| format!("Cargo.toml: no code uses {name}")),
            true => is_used.then(|| format!("NOT_IN_CODE lists {name}, but code uses it")),
        }
    }));
}

#[test]
fn lock_file_of_the_fuzz_targets_is_complete() {
    let (manifest, lock) = (read("Cargo.toml"), read("fuzz/Cargo.lock"));
    let locked = locked_dependencies(&lock, "chatgate");
    let needed = dependencies(&manifest).filter(|dependency| !dependency.is_dev && !is_optional(dependency));
    none_of(
        needed
            .filter(|dependency| !locked.contains(dependency.name))
            .map(|dependency| format!("fuzz/Cargo.lock lacks {}; run cargo metadata in fuzz/", dependency.name)),
    );
}

#[test]
fn program_has_at_most_180_packages() {
    let packages = compiled_packages("normal,build");
    assert!(packages.contains("tokio") && !packages.contains("proptest"), "{packages:?}");
    let count = packages.len();
    assert!(count <= PACKAGES_MAX, "{count} packages, more than {PACKAGES_MAX}: look for a feature that nothing uses");
}

#[test]
fn dependencies_disable_or_list_default_features() {
    let manifest = read("Cargo.toml");
    none_of(feature_policy_breaches(&manifest, KEEP_DEFAULTS));
}

#[test]
fn binary_has_only_one_crypto_provider() {
    let packages = compiled_packages("all");
    assert!(packages.contains("aws-lc-rs"), "cargo tree lists no aws-lc-rs: {packages:?}");
    none_of(["ring", "openssl", "openssl-sys", "native-tls"].into_iter().filter(|name| packages.contains(*name)));
}

#[test]
fn commands_page_names_every_subcommand() {
    let help = help_of_the_program();
    let commands = subcommands(&help);
    assert!(commands.contains("serve"), "the help lists no `serve`:\n{help}");
    let page = read("docs/cli.md");
    none_of(
        commands
            .iter()
            .filter(|name| !names_subcommand(&page, name))
            .map(|name| format!("docs/cli.md does not mention `chatgate {name}`")),
    );
}

#[test]
fn errors_page_lists_exactly_the_slugs_of_the_program() {
    let page = read("docs/errors.md");
    let sources: String = each_source("src").map(|file| file.text).collect();
    let (listed, existing) = (slugs_of_the_table(&page), slugs_of_the_code(&sources));
    assert!(existing.contains("bad_json"), "the error table of the code has no bad_json: {existing:?}");
    none_of(listed.difference(&existing).map(|slug| format!("docs/errors.md lists {slug}, which does not exist")));
    none_of(existing.difference(&listed).map(|slug| format!("docs/errors.md does not list {slug}")));
}

#[test]
fn metrics_take_their_outcomes_from_the_slugs() {
    let labels = read("src/telemetry/metrics/labels.rs");
    assert!(labels.contains("Slug::ALL"), "src/telemetry/metrics/labels.rs lists outcomes of its own");
}

#[test]
fn links_between_documents_resolve() {
    let mut followed = 0;
    for document in documents() {
        let (text, folder) = (read(&document), Path::new(&document).parent().expect("a folder"));
        for (file, anchor) in local_links(&text) {
            followed += 1;
            let target = if file.is_empty() { root().join(&document) } else { root().join(folder).join(file) };
            assert!(target.exists(), "{document}: {file} does not exist");
            if !anchor.is_empty() {
                let headings = anchors(&fs::read_to_string(&target).unwrap_or_default());
                assert!(headings.contains(anchor), "{document}: {file} has no heading {anchor}");
            }
        }
    }
    assert!(followed > 20, "only {followed} links were found");
}

#[test]
fn errors_page_and_runbook_cover_each_slug_alert_and_error_class() {
    let errors = read("docs/errors.md");
    let (headings, runbook) = (anchors(&errors), anchors(&read("docs/operations.md")));
    let sources: String = each_source("src").map(|file| file.text).collect();
    let alerts = read("deploy/prometheus/alerts.yml");
    let alerts = alerts.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).map(str::to_lowercase);
    let (slugs, alerts): (_, BTreeSet<String>) = (slugs_of_the_code(&sources), alerts.collect());
    assert!(slugs.contains("bad_json") && alerts.contains("chatgatedown"), "not found: {slugs:?}, {alerts:?}");
    none_of(slugs.difference(&headings).map(|name| format!("docs/errors.md has no heading {name}")));
    none_of(alerts.difference(&runbook).map(|name| format!("docs/operations.md has no heading {name}")));

    let table = read("src/domain/chat/error_codes.csv");
    let classes = column(&table, "class");
    assert!(classes.contains("throttled"), "classes not found: {classes:?}");
    none_of(classes.iter().filter(|class| !headings.contains(**class)).map(|class| format!("no heading {class}")));

    let parking = codes_with_effect(&read("src/domain/policy/outcome.rs"), &["ParkApp", "ParkCommand", "Lockout"]);
    assert!(parking.len() > 10, "parking codes not found: {parking:?}");
    let (_, section) = errors.split_once("### Codes that park").expect("a heading");
    none_of(
        parking
            .iter()
            .filter(|code| !section.contains(&code.to_string()))
            .map(|code| format!("does not mention {code}")),
    );
}

#[test]
fn every_alert_links_its_runbook_entry() {
    let (operations, alerts) = (anchors(&read("docs/operations.md")), read("deploy/prometheus/alerts.yml"));
    let named = alerts.lines().filter_map(|line| line.trim().strip_prefix("runbook: docs/operations.md#"));
    let named: Vec<&str> = named.collect();
    assert_eq!(named.len(), alerts.matches("- alert: ").count(), "an alert has no runbook");
    none_of(named.into_iter().filter(|name| !operations.contains(*name)));
}

/// Returns the paths of the documents, relative to the root.
fn documents() -> Vec<String> {
    let mut found = Vec::new();
    for folder in ["", "benches/", "docs/"] {
        for entry in fs::read_dir(root().join(folder)).expect("a folder of the project") {
            let name = entry.expect("an entry").file_name().into_string().expect("a plain name");
            if name.ends_with(".md") {
                found.push(format!("{folder}{name}"));
            }
        }
    }
    found
}

struct Source {
    /// Path relative to the root, with `/`.
    name: String,
    text: String,
}

impl Source {
    /// Formats line numbers (from 1) and findings as `path:line: finding`.
    fn at(&self, lines: impl Iterator<Item = (usize, String)>) -> Vec<String> {
        lines.map(|(line, what)| format!("{}:{line}: {what}", self.name)).collect()
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(name: &str) -> String {
    fs::read_to_string(root().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Returns every Rust file below a folder, except files with only tests (`tests.rs`, `tests/`).
fn each_source(folder: &str) -> impl Iterator<Item = Source> {
    let mut files = Vec::new();
    collect(&root().join(folder), &mut files);
    assert!(!files.is_empty(), "{folder} has no Rust file");
    files.sort();
    files.into_iter().map(|path| {
        let name = path.strip_prefix(root()).expect("below the root").to_string_lossy().replace('\\', "/");
        Source { text: read(&name), name }
    })
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
        let path = entry.expect("an entry of a folder that was just opened").path();
        let only_tests = path.file_stem().is_some_and(|stem| stem == "tests");
        if path.is_dir() && !only_tests {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") && !only_tests {
            files.push(path);
        }
    }
}

/// Returns the names of the packages that are compiled for this machine, along edges of these kinds. Two versions of a
/// package count once.
fn compiled_packages(edges: &str) -> BTreeSet<String> {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--locked", "--all-features", "--edges", edges, "--prefix", "none", "--format", "{p}"])
        .current_dir(root())
        .output()
        .expect("cargo starts");
    assert!(output.status.success(), "cargo tree: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
}

fn help_of_the_program() -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_chatgate"))
        .arg("--help")
        .env("NO_COLOR", "1")
        .output()
        .expect("the program starts");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn none_of(found: impl IntoIterator<Item = impl ToString>) {
    let found: Vec<String> = found.into_iter().map(|place| place.to_string()).collect();
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}
