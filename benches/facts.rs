//! The table of cached pairs: memory per pair, time for 100 lookups, and whether `cache.max_pairs` holds.
//!
//! `cargo bench --bench facts`. Each row runs in a separate process, so that its memory is measured separately.
//! `benches/README.md` explains the output.

#![allow(clippy::print_stdout, reason = "it prints a table")]

use std::fs;
use std::process::{Command, ExitCode};
use std::time::Duration;

use chatgate::clock;
use chatgate::domain::pairs::cache::{CachedPair, PairCache};
use chatgate::domain::pairs::pair::{Pair, PairKey, Relation, UserHasher};
use chatgate::domain::tick::Tick;

/// As in the program.
#[cfg(feature = "mimalloc")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Table, shape, pairs, and whether further pairs replace them.
const ROWS: &[(&str, &str, usize, bool)] = &[
    ("facts", "100", 1_000_000, false),
    ("facts", "1", 1_000_000, false),
    ("facts", "star", 1_000_000, false),
    ("facts", "100", 1_000_000, true),
    ("facts", "100", 10_000_000, false),
    ("facts", "1", 10_000_000, false),
    ("moka", "100", 1_000_000, false),
    ("moka", "1", 1_000_000, false),
];

/// Requests to look up, with 100 accounts each.
const REQUESTS: usize = 2000;
const ACCOUNTS: usize = 100;
const ROUNDS: usize = 5;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    if let Some(at) = arguments.iter().position(|argument| argument == "--row") {
        let row = arguments.get(at + 1).and_then(|row| row.parse::<usize>().ok()).and_then(|row| ROWS.get(row));
        let Some(&(table, shape, pairs, churn)) = row else { return ExitCode::from(2) };
        return measure(table, shape, pairs, churn);
    }
    println!(
        "{:<6} {:<10} {:>11} {:>6} {:>10} {:>11} {:>13} {:>13} {:>10} {:>8}",
        "table",
        "pairs of",
        "max_pairs",
        "churn",
        "bytes/pair",
        "fill ns",
        "100 with hash",
        "100 no hash",
        "held",
        "found"
    );
    let program = std::env::current_exe().expect("a running program has a file");
    let mut all_hold = true;
    for row in 0..ROWS.len() {
        let status = Command::new(&program).args(["--row", &row.to_string()]).status();
        all_hold &= status.is_ok_and(|status| status.success());
    }
    if all_hold {
        ExitCode::SUCCESS
    } else {
        println!("cache.max_pairs does not hold within 5 % in every row");
        ExitCode::FAILURE
    }
}

/// The operations of both tables.
trait Table {
    fn insert(&self, pair: PairKey, fact: CachedPair);
    fn get(&self, pair: PairKey) -> Option<CachedPair>;
    fn remove(&self, pair: PairKey);
    fn held(&self) -> usize;
}

impl Table for PairCache {
    fn insert(&self, pair: PairKey, fact: CachedPair) {
        PairCache::insert(self, pair, fact);
    }
    fn get(&self, pair: PairKey) -> Option<CachedPair> {
        PairCache::get(self, pair)
    }
    fn remove(&self, pair: PairKey) {
        PairCache::remove(self, pair);
    }
    fn held(&self) -> usize {
        self.len()
    }
}

/// A general cache with one entry per pair.
struct Moka(moka::sync::Cache<PairKey, CachedPair>);

impl Table for Moka {
    fn insert(&self, pair: PairKey, fact: CachedPair) {
        self.0.insert(pair, fact);
    }
    fn get(&self, pair: PairKey) -> Option<CachedPair> {
        self.0.get(&pair)
    }
    fn remove(&self, pair: PairKey) {
        self.0.invalidate(&pair);
    }
    fn held(&self) -> usize {
        self.0.run_pending_tasks();
        usize::try_from(self.0.entry_count()).unwrap_or(usize::MAX)
    }
}

fn measure(table: &str, shape: &str, pairs: usize, churn: bool) -> ExitCode {
    let before = resident();
    let built: Box<dyn Table> = match table {
        "facts" => Box::new(PairCache::new(pairs)),
        _ => Box::new(Moka(moka::sync::Cache::new(pairs as u64))),
    };
    let hasher = UserHasher::new(&[9; 16]);
    let key = |number: usize| {
        let (from, to) = names(shape, number);
        Pair { from: hasher.user(&from), to: hasher.user(&to) }.key()
    };
    let fact = |number: usize| {
        let stored = Relation::new((number % 4) as i64).expect("0 to 3");
        CachedPair { stored, sent: Tick::from_micros(number as u64 + 1) }
    };
    let begun = clock::now();
    let mut filled = pairs;
    for number in 0..pairs {
        built.insert(key(number), fact(number));
    }
    if churn {
        // Inserts twice as many pairs again; a write removes one in ten.
        filled = 3 * pairs;
        for number in pairs..filled {
            built.insert(key(number), fact(number));
            if number % 10 == 0 {
                built.remove(key(number - pairs / 4));
            }
        }
    }
    let fill = (clock::now() - begun).as_nanos() as f64 / filled as f64;
    let held = built.held();
    let bytes = resident().saturating_sub(before) as f64 / held as f64;
    // The newest half of the capacity, of which churn has removed at most a tenth.
    let newest = filled - pairs / 2..filled;
    let found = newest.clone().filter(|number| built.get(key(*number)).is_some()).count();
    let found = found as f64 / newest.len() as f64;

    let requests: Vec<(String, Vec<String>)> =
        (0..REQUESTS).map(|request| request_of(shape, request, newest.clone())).collect();
    let keys: Vec<Vec<PairKey>> = requests
        .iter()
        .map(|(from, to)| {
            let from = hasher.user(from);
            to.iter().map(|to| Pair { from, to: hasher.user(to) }.key()).collect()
        })
        .collect();
    let with_hash = median(|| {
        let mut hits = 0;
        for (from, to) in &requests {
            let from = hasher.user(from);
            hits += to.iter().filter(|to| built.get(Pair { from, to: hasher.user(to) }.key()).is_some()).count();
        }
        hits
    });
    let without = median(|| keys.iter().flatten().filter(|key| built.get(**key).is_some()).count());
    println!(
        "{table:<6} {shape:<10} {pairs:>11} {:>6} {bytes:>10.1} {fill:>11.0} {with_hash:>10.2} µs {without:>10.2} µs {:>8.2} % {:>6.2} %",
        if churn { "x3" } else { "-" },
        100.0 * held as f64 / pairs as f64,
        100.0 * found,
    );
    let within = |value: usize| value <= pairs + pairs / 20 && value * 20 >= pairs * 19;
    // With churn, writes remove many pairs, so only the upper bound applies.
    if within(held) || (churn && held <= pairs + pairs / 20) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Returns the two names, 12 bytes each, of the pair with this number.
fn names(shape: &str, number: usize) -> (String, String) {
    // A bijection with good spread gives each pair a different partner.
    let partner = (number as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) % 10_000_000_000;
    let from = match shape {
        "100" => number / 100,
        "1" => number,
        _ => 0,
    };
    (format!("u{from:011}"), format!("f{partner:011}"))
}

/// Returns a request for cached pairs, as far as one user has them.
fn request_of(shape: &str, request: usize, newest: std::ops::Range<usize>) -> (String, Vec<String>) {
    let at = newest.start + (request * 7_919 * ACCOUNTS) % (newest.len() - ACCOUNTS);
    let first = at / ACCOUNTS * ACCOUNTS;
    let from = names(shape, first).0;
    (from, (first..first + ACCOUNTS).map(|number| names(shape, number).1).collect())
}

/// Returns the median of several rounds, in microseconds per request.
fn median(mut round: impl FnMut() -> usize) -> f64 {
    let mut times: Vec<Duration> = (0..ROUNDS)
        .map(|_| {
            let begun = clock::now();
            std::hint::black_box(round());
            clock::now() - begun
        })
        .collect();
    times.sort_unstable();
    times[ROUNDS / 2].as_nanos() as f64 / 1000.0 / REQUESTS as f64
}

/// Returns the resident memory of this process, in bytes.
fn resident() -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().split(' ').next()).and_then(|kib| kib.parse::<usize>().ok());
    kib.unwrap_or(0) * 1024
}
