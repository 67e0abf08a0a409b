//! Configurations: loaded twice, compared with the TOML library's reading, and checked against their bounds.

use std::collections::HashSet;
use std::path::Path;
use std::time::Duration;

use chatgate::config::{
    APPS_MAX, CALLERS_MAX, Config, Env, Problem, load_text, parse_duration, parse_size, show_duration, show_size,
};
use chatgate::domain::quote::looks_like_key;

/// Part of every secret of the environment, so that a leak is found.
const MARK: &str = "5ec2e7";
/// Maximum length of a printed problem, in bytes.
const PROBLEM_LEN_MAX: usize = 1024;
/// Longest text in bytes, because a slow input is not a bug here.
const LEN_MAX: usize = 16 * 1024;

/// Loads the bytes as a configuration file. Environment variables contain a key and a token.
pub fn run(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if text.len() > LEN_MAX || names_files(text) {
        return;
    }
    let env: Env = [("CHAT_KEY", format!("{MARK}0key")), ("FEED_TOKEN", format!("{MARK}0token0of0some0length0"))]
        .into_iter()
        .collect();
    let load = || load_text(Path::new("no-such-folder/chatgate.toml"), text.to_owned(), &env);
    let (first, second) = (load(), load());
    let table = text.parse::<toml::Table>();
    match (first, second) {
        (Ok(config), Ok(again)) => {
            let text_has_mark = config.source.text.contains(MARK);
            assert!(table.is_ok(), "the two readers disagree");
            assert_eq!(config.source.text, text);
            assert!(text_has_mark || !format!("{config:?}").contains(MARK), "Debug shows a secret");
            assert_eq!(format!("{config:?}"), format!("{again:?}"));
            is_within_bounds(&config);
        }
        (Err(problems), Err(again)) => {
            assert_eq!(problems, again);
            let shown = problems.to_string();
            assert!(!shown.is_empty() && !problems.all().is_empty());
            // Problems quote values of the text, never those of the environment.
            assert!(text.contains(MARK) || !shown.contains(MARK), "a problem shows a secret: {shown}");
            problems.all().iter().for_each(|problem| {
                has_a_place(problem, text);
                shows_no_key(problem);
            });
        }
        _ => panic!("two loads of the same text differ"),
    }
}

/// Returns whether the text may name other files. This target does not cover them, and the fuzzer must not read them.
fn names_files(text: &str) -> bool {
    text.contains('/') && text.contains("file")
}

fn shows_no_key(problem: &Problem) {
    let shown = problem.to_string();
    assert!(shown.len() <= PROBLEM_LEN_MAX && !shown.contains('\n'), "{shown}");
    // Escapes of control characters have letters and digits of their own.
    assert!(shown.contains('\\') || !looks_like_key(&shown), "a problem shows a key: {shown}");
}

fn has_a_place(problem: &Problem, text: &str) {
    assert!(!problem.message.is_empty());
    if let Some(line) = problem.line {
        assert!((1..=text.split('\n').count()).contains(&line), "{problem}");
    }
}

fn is_within_bounds(config: &Config) {
    let Config { server, apps, callers, cache, relation, upstream, .. } = config;
    assert!((1..=16).contains(&server.listen.len()) && server.unix_mode <= 0o777);
    assert!(server.hosts.len() <= 100 && server.unix_uids.len() <= 100);
    assert!((1..=APPS_MAX).contains(&apps.len()) && callers.len() <= CALLERS_MAX);
    let distinct = |names: Vec<String>| names.iter().collect::<HashSet<_>>().len() == names.len();
    assert!(distinct(apps.iter().map(|app| app.name.to_string()).collect()));
    assert!(distinct(apps.iter().map(|app| app.sdkappid.to_string()).collect()));
    assert!(apps.iter().filter(|app| app.default).count() <= 1);
    assert!((1 << 10..=64 << 20).contains(&server.max_body) && (1 << 10..=64 << 30).contains(&server.max_buffered));
    assert!((1..=1_000_000).contains(&server.max_connections) && (1..=1_000_000).contains(&server.max_requests));
    let hour = Duration::from_secs(3600);
    for timeout in [server.handshake_timeout, server.head_timeout, server.body_timeout, server.write_timeout] {
        assert!((Duration::from_millis(10)..=hour).contains(&timeout));
    }
    assert!(server.drain_delay <= hour && server.drain_timeout <= hour);
    assert!(cache.ttl <= hour * 24 && (1..=100_000_000).contains(&cache.max_pairs));
    assert!((1..=10_000).contains(&relation.max_to) && (1..=1000).contains(&relation.call_max));
    assert!(distinct(relation.kinds.iter().map(|kind| kind.name.to_owned()).collect()));
    assert!((1..=10).contains(&upstream.attempts) && (0.0..=1.0).contains(&upstream.retry_budget));
    assert!(upstream.connect_timeout <= upstream.attempt_timeout && upstream.attempt_timeout <= upstream.timeout);
    for app in apps {
        let lifetime = app.usersig_lifetime;
        assert!(lifetime >= Duration::from_secs(10) && lifetime.subsec_nanos() == 0);
        show_again(lifetime);
    }
    [cache.ttl, cache.stale_if_error, upstream.timeout, server.idle_timeout].into_iter().for_each(show_again);
    for size in [server.max_body, server.max_buffered, upstream.max_answer] {
        assert_eq!(parse_size(&show_size(size)), Some(size));
    }
}

fn show_again(duration: Duration) {
    let whole = Duration::from_micros(u64::try_from(duration.as_micros()).expect("at most days"));
    assert_eq!(parse_duration(&show_duration(duration)), Some(whole));
}
