//! The vendor's facts: commands, error codes, and regions.
//!
//! Their only copies are the three files below, from which the program builds its tables. These tests read the files
//! with a parser of their own and compare the tables with them. They also name every place that repeats a fact, so an
//! update is a new file and whatever these tests then report.

use std::collections::BTreeMap;

use super::chat::command::{CommandKind, CommandName, KNOWN_COMMANDS};
use super::chat::error_code::{self, ErrorClass, Retry};
use super::chat::region::Region;
use super::policy::outcome::{AttemptOutcome, Effect, RetryClass, classify};

const COMMANDS: &str = include_str!("../../src/domain/chat/commands.csv");
const ERROR_CODES: &str = include_str!("../../src/domain/chat/error_codes.csv");
const REGIONS: &str = include_str!("../../src/domain/chat/regions.csv");

/// Codes with an effect on later calls, each with its effect and the class that its row must have.
#[rustfmt::skip]
const EFFECTS: &[(i64, Effect, ErrorClass)] = &[
    (-14, Effect::SlowDown, ErrorClass::Throttled),
    (30005, Effect::ParkCommand, ErrorClass::Config),
    (60006, Effect::ParkApp, ErrorClass::Config),
    (60007, Effect::SlowDown, ErrorClass::Throttled),
    (60010, Effect::ParkCommand, ErrorClass::Config),
    (60011, Effect::SlowDown, ErrorClass::Throttled),
    (60016, Effect::ParkApp, ErrorClass::Blocked),
    (60017, Effect::ParkCommand, ErrorClass::Blocked),
    (60018, Effect::SlowDown, ErrorClass::Throttled),
    (60019, Effect::SlowDown, ErrorClass::Throttled),
    (60020, Effect::ParkCommandOrApp, ErrorClass::Config),
    (60021, Effect::ParkApp, ErrorClass::Config),
    (60026, Effect::ParkApp, ErrorClass::Config),
    (70009, Effect::ParkApp, ErrorClass::Auth),
    (70013, Effect::ParkApp, ErrorClass::Auth),
    (70014, Effect::ParkApp, ErrorClass::Auth),
    (70016, Effect::ParkApp, ErrorClass::Config),
    (70020, Effect::ParkApp, ErrorClass::Config),
    (70050, Effect::Lockout, ErrorClass::Throttled),
    (70051, Effect::ParkApp, ErrorClass::Blocked),
];

/// Splits a line at its commas. A cell in quotes may contain commas.
fn cells(line: &str) -> Vec<String> {
    let (mut cells, mut is_quoted) = (vec![String::new()], false);
    for letter in line.chars() {
        match letter {
            '"' => is_quoted = !is_quoted,
            ',' if !is_quoted => cells.push(String::new()),
            other => cells.last_mut().expect("one cell at least").push(other),
        }
    }
    cells
}

/// Returns the rows below the expected header, each with the same number of cells.
fn rows(file: &str, header: &str) -> Vec<Vec<String>> {
    let (first, rest) = file.split_once('\n').expect("a header");
    assert_eq!(first, header);
    let rows: Vec<_> = rest.lines().map(cells).collect();
    let columns = header.split(',').count();
    assert!(rows.iter().all(|row| row.len() == columns), "a row without {columns} cells");
    rows
}

#[test]
fn command_table_matches_its_file() {
    let rows = rows(COMMANDS, "service,command,title,kind,qps_limit,doc");
    assert_eq!(KNOWN_COMMANDS.len(), rows.len());
    for (known, row) in KNOWN_COMMANDS.iter().zip(&rows) {
        let [service, command, title, kind, qps, doc] = row.as_slice() else { panic!("{row:?}") };
        assert_eq!((known.name.service(), known.name.command()), (service.as_str(), command.as_str()));
        assert_eq!(known.kind == CommandKind::Read, kind == "read", "{}", known.name);
        assert!(kind == "read" || kind == "write", "{kind}");
        assert_eq!(known.vendor_qps.map_or(String::new(), |qps| qps.to_string()), *qps, "{}", known.name);
        assert!(!title.is_empty() && !doc.is_empty(), "{}", known.name);
    }
}

/// Rates and kinds that are easily taken for the usual ones.
#[test]
fn unusual_commands_have_their_rate_and_kind() {
    for (name, kind, qps) in [
        ("timpush/batch", CommandKind::Write, 10),
        ("timpush/push", CommandKind::Write, 1),
        ("timpush/normal_push_statistics", CommandKind::Read, 1),
        ("timpush/modify_sched_task", CommandKind::Write, 5),
        ("timpush/list_sched_task", CommandKind::Read, 5),
        ("user_search/search", CommandKind::Read, 2),
        ("group_search/search", CommandKind::Read, 2),
        ("live_engine_http_srv/add_robot", CommandKind::Write, 100),
        ("im_msg_audit/content_moderation", CommandKind::Write, 200),
        ("group_open_http_svc/get_appid_group_list", CommandKind::Read, 1),
    ] {
        let known = CommandName::parse(name).expect(name).known().expect(name);
        assert_eq!((known.kind, known.vendor_qps.map(|qps| qps.get())), (kind, Some(qps)), "{name}");
    }
}

#[test]
fn error_code_table_matches_its_file() {
    let rows = rows(ERROR_CODES, "code,name,family,class,retry,meaning");
    assert_eq!(error_code::table().len(), rows.len());
    for (known, row) in error_code::table().iter().zip(&rows) {
        let [code, name, family, class, retry, meaning] = row.as_slice() else { panic!("{row:?}") };
        let (first, last) = (known.codes.start(), known.codes.end());
        let shown = if first == last { first.to_string() } else { format!("{first}-{last}") };
        assert_eq!((&shown, known.name, known.meaning), (code, name.as_str(), meaning.as_str()));
        assert_eq!(
            (text_of_class(known.class), text_of_retry(known.retry)),
            (class.as_str(), retry.as_str()),
            "{code}"
        );
        assert!(!family.is_empty(), "{code}");
    }
}

/// A write is retried only after a rejected signature, and a read also after transient errors and throttling.
#[test]
fn retries_follow_the_columns_class_and_retry() {
    for row in error_code::table() {
        let code = *row.codes.start();
        let retry = |kind| classify(AttemptOutcome::Answer(code), kind).retry;
        let expected = match (row.class, row.retry) {
            (ErrorClass::Auth, Retry::FreshSignature) => (RetryClass::FreshSignature, RetryClass::FreshSignature),
            (ErrorClass::Transient, Retry::Yes | Retry::AfterBackoff) => (RetryClass::Retry, RetryClass::Never),
            // Locked out for a minute, which is longer than a request waits.
            (ErrorClass::Throttled, Retry::AfterBackoff) if code == 70050 => (RetryClass::Never, RetryClass::Never),
            (ErrorClass::Throttled, Retry::AfterBackoff) => (RetryClass::Retry, RetryClass::Never),
            (_, Retry::No) => (RetryClass::Never, RetryClass::Never),
            (class, retry) => panic!("{code}: {class:?} with {retry:?}"),
        };
        assert_eq!((retry(CommandKind::Read), retry(CommandKind::Write)), expected, "{code}");
    }
}

#[test]
fn only_the_listed_codes_affect_later_calls() {
    let listed: BTreeMap<i64, Effect> = EFFECTS.iter().map(|(code, effect, _)| (*code, *effect)).collect();
    for row in error_code::table() {
        for code in [*row.codes.start(), *row.codes.end()] {
            let effect = classify(AttemptOutcome::Answer(code), CommandKind::Read).effect;
            assert_eq!(effect, listed.get(&code).copied().unwrap_or(Effect::None), "{code}");
        }
    }
    for (code, _, class) in EFFECTS {
        assert_eq!(error_code::lookup(*code).map(|row| row.class), Some(*class), "{code}");
    }
}

#[test]
fn region_table_matches_its_file() {
    let rows = rows(REGIONS, "region,primary,standby,note,doc");
    assert_eq!(Region::all().count(), rows.len());
    for (region, row) in Region::all().zip(&rows) {
        let [name, primary, standby, note, doc] = row.as_slice() else { panic!("{row:?}") };
        assert_eq!([region.name(), region.host(), region.standby_host()], [name, primary, standby].map(String::as_str));
        let shown = match (region.is_legacy(), region.has_documented_standby()) {
            (false, true) => "",
            (true, true) => "legacy",
            (false, false) => "standby_undocumented",
            (true, false) => panic!("{name} has two notes"),
        };
        assert_eq!(shown, note, "{name}");
        assert!(!doc.is_empty(), "{name}");
    }
}

#[test]
fn every_list_of_regions_is_complete() {
    let names: Vec<&str> = Region::all().map(Region::name).collect();
    let (last, others) = names.split_last().expect("regions");
    let sentence = format!("{}, or {last}", others.join(", "));
    for (file, list) in [
        ("README.md", names.join(" ")),
        ("config/chatgate.toml", sentence),
        ("deploy/systemd/chatgate.toml", names.join(" ")),
        ("deploy/kubernetes/sidecar/chatgate.toml", names.join(" ")),
        ("deploy/kubernetes/overlays/fleet/chatgate.toml", names.join(" ")),
    ] {
        let path = format!("{}/{file}", env!("CARGO_MANIFEST_DIR"));
        let text = std::fs::read_to_string(&path).expect(file);
        // A comment can have several lines.
        let words: Vec<&str> = text.split_whitespace().filter(|word| *word != "#").collect();
        assert!(words.join(" ").contains(&list), "{file} does not list {list}");
    }
}

fn text_of_class(class: ErrorClass) -> &'static str {
    match class {
        ErrorClass::Auth => "auth",
        ErrorClass::Throttled => "throttled",
        ErrorClass::Transient => "transient",
        ErrorClass::Config => "config",
        ErrorClass::Client => "client",
        ErrorClass::NotFound => "not_found",
        ErrorClass::Blocked => "blocked",
    }
}

fn text_of_retry(retry: Retry) -> &'static str {
    match retry {
        Retry::Yes => "yes",
        Retry::FreshSignature => "after_resign",
        Retry::AfterBackoff => "after_backoff",
        Retry::No => "no",
    }
}
