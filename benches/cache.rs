//! The table of cached pairs, next to two general caches: memory per pair, time for 100 lookups, and hit ratio.
//!
//! `cargo bench --bench cache`. Each row runs in a separate process, so that its memory is measured separately. The
//! benchmark fails if chatgate's own table does not keep `cache.max_pairs` within 5 %. `benches/README.md` explains the
//! output.

#![allow(clippy::print_stdout, reason = "it prints a table")]

use std::fs;
use std::ops::Range;
use std::process::{Command, ExitCode};
use std::sync::Arc;

use chatgate::clock;
use chatgate::domain::pairs::cache::{CachedPair, PairCache};
use chatgate::domain::pairs::pair::{Pair, PairKey, Relation, UserHasher, UserKey};
use chatgate::domain::tick::Tick;
use rustc_hash::FxBuildHasher;

/// As in the program.
#[cfg(feature = "mimalloc")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The cache that a row measures.
#[derive(Clone, Copy)]
enum Kind {
    Chatgate,
    /// moka with one entry per pair.
    MokaPair,
    /// moka with one entry per user, which holds the user's pairs.
    MokaUser,
    /// quick_cache with one entry per pair.
    QuickCache,
}

/// How many pairs each user has.
#[derive(Clone, Copy)]
enum Shape {
    Hundred,
    One,
    /// All pairs belong to one user.
    Star,
}

/// A row of the first table.
struct Row {
    kind: Kind,
    shape: Shape,
    max_pairs: usize,
    /// Whether further pairs replace the first ones.
    churn: bool,
}

const fn row(kind: Kind, shape: Shape, max_pairs: usize, churn: bool) -> Row {
    Row { kind, shape, max_pairs, churn }
}

const ROWS: &[Row] = &[
    row(Kind::Chatgate, Shape::Hundred, 1_000_000, false),
    row(Kind::Chatgate, Shape::One, 1_000_000, false),
    row(Kind::Chatgate, Shape::Star, 1_000_000, false),
    row(Kind::Chatgate, Shape::Hundred, 1_000_000, true),
    row(Kind::Chatgate, Shape::Hundred, 10_000_000, false),
    row(Kind::Chatgate, Shape::One, 10_000_000, false),
    row(Kind::MokaPair, Shape::Hundred, 1_000_000, false),
    row(Kind::MokaPair, Shape::One, 1_000_000, false),
    row(Kind::MokaUser, Shape::Hundred, 1_000_000, false),
    row(Kind::MokaUser, Shape::One, 1_000_000, false),
    row(Kind::QuickCache, Shape::Hundred, 1_000_000, false),
    row(Kind::QuickCache, Shape::One, 1_000_000, false),
];

/// Rows of the second table: hit ratio with a quarter of the pairs cached. The last row has the memory of quick_cache.
const RATIO_ROWS: &[(Kind, usize)] =
    &[(Kind::Chatgate, 250_000), (Kind::MokaPair, 250_000), (Kind::QuickCache, 250_000), (Kind::Chatgate, 900_000)];
const RATIO_PAIRS: usize = 1_000_000;
/// Lookups before the ratio is measured, and as many while it is.
const RATIO_LOOKUPS: usize = 4_000_000;

/// Requests to look up, with 100 accounts each.
const REQUESTS: usize = 2000;
const ACCOUNTS: usize = 100;
const ROUNDS: usize = 15;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    let index_after = |name: &str| {
        let at = arguments.iter().position(|argument| argument == name)?;
        arguments.get(at + 1)?.parse::<usize>().ok()
    };
    if let Some(row) = index_after("--row").and_then(|index| ROWS.get(index)) {
        return measure(row);
    }
    if let Some(&(kind, max_pairs)) = index_after("--ratio-row").and_then(|index| RATIO_ROWS.get(index)) {
        measure_ratio(kind, max_pairs);
        return ExitCode::SUCCESS;
    }
    println!(
        "| table | pairs per user | max_pairs | churn | bytes/pair | insert | 100 with hash | 100 | kept | found |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |");
    let all_hold = (0..ROWS.len()).map(|index| run_self("--row", index)).fold(true, |all, one| all & one);
    println!("\n| table | max_pairs | pairs | hit ratio |");
    println!("| --- | --- | --- | --- |");
    let all_run = (0..RATIO_ROWS.len()).map(|index| run_self("--ratio-row", index)).fold(true, |all, one| all & one);
    if all_hold && all_run {
        ExitCode::SUCCESS
    } else {
        println!("a row failed, or cache.max_pairs does not hold within 5 % in every row of chatgate");
        ExitCode::FAILURE
    }
}

/// Runs this program again for one row. Returns whether it succeeded.
fn run_self(option: &str, index: usize) -> bool {
    let program = std::env::current_exe().expect("a running program has a file");
    Command::new(program).args([option, &index.to_string()]).status().is_ok_and(|status| status.success())
}

/// The operations of all caches.
trait Table {
    /// Stores the pairs of a response, all of one `from`.
    fn insert(&self, from: UserKey, pairs: &[(UserKey, CachedPair)]);
    /// Looks up the pairs of a request. Returns how many are cached.
    fn hits(&self, from: UserKey, to: &[UserKey]) -> usize;
    /// Removes a pair.
    fn remove(&self, pair: Pair);
    /// Returns how many pairs it holds.
    fn held(&self) -> usize;
}

impl Table for PairCache {
    fn insert(&self, from: UserKey, pairs: &[(UserKey, CachedPair)]) {
        for &(to, cached) in pairs {
            PairCache::insert(self, Pair { from, to }.key(), cached);
        }
    }
    fn hits(&self, from: UserKey, to: &[UserKey]) -> usize {
        let keys = to.iter().map(|&to| Pair { from, to }.key());
        match self.get_all(keys.clone()) {
            Some(all) => all.len(),
            None => keys.filter(|key| self.get(*key).is_some()).count(),
        }
    }
    fn remove(&self, pair: Pair) {
        PairCache::remove(self, pair.key());
    }
    fn held(&self) -> usize {
        self.len()
    }
}

/// moka with one entry per pair. The keys are good hashes already, so it gets a fast hasher.
struct MokaPair(moka::sync::Cache<PairKey, CachedPair, FxBuildHasher>);

impl Table for MokaPair {
    fn insert(&self, from: UserKey, pairs: &[(UserKey, CachedPair)]) {
        for &(to, cached) in pairs {
            self.0.insert(Pair { from, to }.key(), cached);
        }
    }
    fn hits(&self, from: UserKey, to: &[UserKey]) -> usize {
        to.iter().filter(|&&to| self.0.get(&Pair { from, to }.key()).is_some()).count()
    }
    fn remove(&self, pair: Pair) {
        self.0.invalidate(&pair.key());
    }
    fn held(&self) -> usize {
        self.0.run_pending_tasks();
        usize::try_from(self.0.entry_count()).unwrap_or(usize::MAX)
    }
}

/// A user's pairs in 16 bytes each, sorted: part of the other user's hash; time and relation.
type UserRow = Arc<[(u64, u64)]>;

/// moka with one entry per user. It answers only from the side of `from`: the other side would need a second entry.
struct MokaUser(moka::sync::Cache<UserKey, UserRow, FxBuildHasher>);

impl Table for MokaUser {
    fn insert(&self, from: UserKey, pairs: &[(UserKey, CachedPair)]) {
        let mut row: Vec<(u64, u64)> = self.0.get(&from).map(|row| row.to_vec()).unwrap_or_default();
        for (to, cached) in pairs {
            let word = (cached.sent.micros() << 2) | u64::from(cached.stored.number());
            match row.binary_search_by_key(&to.index_bits(), |entry| entry.0) {
                Ok(at) => row[at].1 = word,
                Err(at) => row.insert(at, (to.index_bits(), word)),
            }
        }
        self.0.insert(from, row.into());
    }
    fn hits(&self, from: UserKey, to: &[UserKey]) -> usize {
        let Some(row) = self.0.get(&from) else { return 0 };
        to.iter().filter(|to| row.binary_search_by_key(&to.index_bits(), |entry| entry.0).is_ok()).count()
    }
    fn remove(&self, pair: Pair) {
        let Some(row) = self.0.get(&pair.from) else { return };
        self.0.insert(pair.from, row.iter().filter(|entry| entry.0 != pair.to.index_bits()).copied().collect());
    }
    fn held(&self) -> usize {
        self.0.run_pending_tasks();
        usize::try_from(self.0.weighted_size()).unwrap_or(usize::MAX)
    }
}

/// quick_cache with one entry per pair, with the same hasher.
struct QuickCache(quick_cache::sync::Cache<PairKey, CachedPair, quick_cache::UnitWeighter, FxBuildHasher>);

impl Table for QuickCache {
    fn insert(&self, from: UserKey, pairs: &[(UserKey, CachedPair)]) {
        for &(to, cached) in pairs {
            self.0.insert(Pair { from, to }.key(), cached);
        }
    }
    fn hits(&self, from: UserKey, to: &[UserKey]) -> usize {
        to.iter().filter(|&&to| self.0.get(&Pair { from, to }.key()).is_some()).count()
    }
    fn remove(&self, pair: Pair) {
        self.0.remove(&pair.key());
    }
    fn held(&self) -> usize {
        self.0.len()
    }
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Chatgate => "chatgate",
            Kind::MokaPair => "moka, one entry per pair",
            Kind::MokaUser => "moka, one entry per user",
            Kind::QuickCache => "quick_cache, one entry per pair",
        }
    }

    fn build(self, max_pairs: usize) -> Box<dyn Table> {
        let capacity = max_pairs as u64;
        match self {
            Kind::Chatgate => Box::new(PairCache::new(max_pairs)),
            Kind::MokaPair => {
                let builder = moka::sync::Cache::builder().max_capacity(capacity);
                Box::new(MokaPair(builder.build_with_hasher(FxBuildHasher)))
            }
            Kind::MokaUser => {
                let weight = |_: &UserKey, row: &UserRow| u32::try_from(row.len()).unwrap_or(u32::MAX);
                let builder = moka::sync::Cache::builder().max_capacity(capacity).weigher(weight);
                Box::new(MokaUser(builder.build_with_hasher(FxBuildHasher)))
            }
            Kind::QuickCache => Box::new(QuickCache(quick_cache::sync::Cache::with(
                max_pairs,
                capacity,
                quick_cache::UnitWeighter,
                FxBuildHasher,
                quick_cache::sync::DefaultLifecycle::default(),
            ))),
        }
    }
}

impl Shape {
    fn name(self) -> &'static str {
        match self {
            Shape::Hundred => "100",
            Shape::One => "1",
            Shape::Star => "star",
        }
    }

    /// Returns the number of the user that has this pair.
    fn user_of(self, number: usize) -> usize {
        match self {
            Shape::Hundred => number / 100,
            Shape::One => number,
            Shape::Star => 0,
        }
    }

    /// Returns the two names, 12 bytes each, of the pair with this number.
    fn names(self, number: usize) -> (String, String) {
        // A bijection with good spread gives each pair a different partner.
        let partner = (number as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) % 10_000_000_000;
        (format!("u{:011}", self.user_of(number)), format!("f{partner:011}"))
    }

    fn pair(self, hasher: &UserHasher, number: usize) -> Pair {
        let (from, to) = self.names(number);
        Pair { from: hasher.user(&from), to: hasher.user(&to) }
    }

    /// Returns a request for cached pairs, of one user as far as it has them.
    fn request(self, request: usize, newest: &Range<usize>) -> (String, Vec<String>) {
        let at = newest.start + (request * 7_919 * ACCOUNTS) % (newest.len() - ACCOUNTS);
        let first = at / ACCOUNTS * ACCOUNTS;
        (self.names(first).0, (first..first + ACCOUNTS).map(|number| self.names(number).1).collect())
    }
}

fn cached(number: usize) -> CachedPair {
    let stored = Relation::new((number % 4) as i64).expect("0 to 3");
    CachedPair { stored, sent: Tick::from_micros(number as u64 + 1) }
}

fn measure(row: &Row) -> ExitCode {
    let &Row { kind, shape, max_pairs, churn } = row;
    let before = resident();
    let table = kind.build(max_pairs);
    let hasher = UserHasher::new(&[9; 16]);
    let begun = clock::now();
    let filled = if churn { 3 * max_pairs } else { max_pairs };
    fill(&*table, &hasher, row, filled);
    let insert_ns = (clock::now() - begun).as_nanos() as f64 / filled as f64;
    let held = table.held();
    let bytes = resident().saturating_sub(before) as f64 / held as f64;
    // The newest half of the capacity, of which churn has removed at most a tenth.
    let newest = filled - max_pairs / 2..filled;
    let is_found = |number: &usize| {
        let pair = shape.pair(&hasher, *number);
        table.hits(pair.from, &[pair.to]) == 1
    };
    let found = newest.clone().filter(is_found).count() as f64 / newest.len() as f64;

    let requests: Vec<(String, Vec<String>)> = (0..REQUESTS).map(|number| shape.request(number, &newest)).collect();
    let hash = |(from, to): &(String, Vec<String>)| {
        (hasher.user(from), to.iter().map(|to| hasher.user(to)).collect::<Vec<UserKey>>())
    };
    let hashed: Vec<(UserKey, Vec<UserKey>)> = requests.iter().map(hash).collect();
    let with_hash = fastest(|| requests.iter().map(hash).map(|(from, to)| table.hits(from, &to)).sum());
    let without = fastest(|| hashed.iter().map(|(from, to)| table.hits(*from, to)).sum());
    println!(
        "| {} | {} | {max_pairs} | {} | {bytes:.1} | {insert_ns:.0} ns | {with_hash:.1} µs | {without:.1} µs | {:.2} % | {:.0} % |",
        kind.name(),
        shape.name(),
        if churn { "x3" } else { "" },
        100.0 * held as f64 / max_pairs as f64,
        100.0 * found,
    );
    let at_most = held <= max_pairs + max_pairs / 20;
    // With churn, writes remove many pairs, so only the upper bound applies.
    let at_least = churn || held * 20 >= max_pairs * 19;
    let is_own = matches!(kind, Kind::Chatgate);
    if !is_own || (at_most && at_least) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Inserts pairs as responses bring them: up to 100 of one user at a time. Under churn, a write then removes every
/// tenth pair once the table is full.
fn fill(table: &dyn Table, hasher: &UserHasher, row: &Row, filled: usize) {
    let mut next = 0;
    while next < filled {
        let user = row.shape.user_of(next);
        let end = (next..(next + ACCOUNTS).min(filled)).take_while(|number| row.shape.user_of(*number) == user).count();
        let numbers = next..next + end;
        let from = row.shape.pair(hasher, next).from;
        let pairs: Vec<_> = numbers.clone().map(|number| (row.shape.pair(hasher, number).to, cached(number))).collect();
        table.insert(from, &pairs);
        for number in numbers.filter(|number| *number >= row.max_pairs && number % 10 == 0) {
            table.remove(row.shape.pair(hasher, number - row.max_pairs / 4));
        }
        next += end;
    }
}

/// Measures the hit ratio of single lookups. The pair at rank k is looked up with a probability close to that of Zipf's
/// law with exponent 1: the logarithm of the rank is uniform.
fn measure_ratio(kind: Kind, max_pairs: usize) {
    let table = kind.build(max_pairs);
    let hasher = UserHasher::new(&[9; 16]);
    let mut random = fastrand::Rng::with_seed(7);
    let mut hits = 0;
    for lookup in 0..2 * RATIO_LOOKUPS {
        let rank = ((RATIO_PAIRS as f64).ln() * random.f64()).exp() as usize;
        let pair = Shape::Hundred.pair(&hasher, rank);
        if table.hits(pair.from, &[pair.to]) == 1 {
            hits += usize::from(lookup >= RATIO_LOOKUPS);
        } else {
            table.insert(pair.from, &[(pair.to, cached(lookup))]);
        }
    }
    let ratio = 100.0 * hits as f64 / RATIO_LOOKUPS as f64;
    println!("| {} | {max_pairs} | {RATIO_PAIRS} | {ratio:.1} % |", kind.name());
}

/// Returns the time of the fastest round, in microseconds per request: other work on the machine only adds time.
fn fastest(mut round: impl FnMut() -> usize) -> f64 {
    let mut time = || {
        let begun = clock::now();
        std::hint::black_box(round());
        clock::now() - begun
    };
    let best = (0..ROUNDS).map(|_| time()).min().unwrap_or_default();
    best.as_nanos() as f64 / 1000.0 / REQUESTS as f64
}

/// Returns the resident memory of this process, in bytes.
fn resident() -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().split(' ').next()).and_then(|kib| kib.parse::<usize>().ok());
    kib.unwrap_or(0) * 1024
}
