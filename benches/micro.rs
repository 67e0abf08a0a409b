//! The steps of a request, measured separately.
//!
//! `cargo bench --bench micro`. `benches/README.md` explains the output.

#![allow(clippy::print_stdout, reason = "it prints a table")]

use std::borrow::Cow;
use std::hint::black_box;
use std::time::Duration;

use chatgate::clock;
use chatgate::domain::caller::{CallerQueue, Class, QueueKey};
use chatgate::domain::chat::app::{Identifier, SdkAppId, SecretKey};
use chatgate::domain::chat::command::FOLLOW_CHECK;
use chatgate::domain::chat::envelope::Envelope;
use chatgate::domain::chat::usersig;
use chatgate::domain::json::scan;
use chatgate::domain::pairs::cache::{CachedPair, PairCache};
use chatgate::domain::pairs::item::Item;
use chatgate::domain::pairs::lookups::{BatchOutcome, JoinOptions, LookupScheduler, Wanted};
use chatgate::domain::pairs::pair::{Pair, PairKey, Relation, Sides, UserHasher};
use chatgate::domain::relation::FOLLOW;
use chatgate::domain::tick::Tick;
use chatgate::upstream::signer::Signer;

/// As in the program.
#[cfg(feature = "mimalloc")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Measurements of each step.
const ROUNDS: usize = 31;
/// Approximate duration of a measurement.
const ROUND: Duration = Duration::from_millis(5);
/// Pairs in the table for lookups: many times more than fit into CPU caches.
const PAIRS: usize = 2_000_000;

fn main() {
    println!("{:<44} {:>10} {:>10} {:>10}", "", "median ns", "least", "most");
    signing();
    for accounts in [10, 100] {
        reading_and_writing(accounts);
    }
    validating();
    looking_up();
    planning();
}

/// Checks relayed bodies: a short one, and one that is nearly all text.
fn validating() {
    let short = br#"{"SyncOtherMachine":2,"To_Account":"user00000001","MsgBody":[{"MsgElemType":"TIMTextElem"}]}"#;
    time("a body of 92 bytes: an object?", || scan::is_object(short));
    let long = format!(r#"{{"MsgText":"{}"}}"#, "x".repeat((1 << 20) - 14));
    time("a body of 1 MiB: an object?", || scan::is_object(long.as_bytes()));
}

fn signing() {
    let app = SdkAppId::new(1_400_000_001).expect("not 0");
    let key = || SecretKey::new("0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef").expect("not empty");
    let identifier: Identifier = "administrator".parse().expect("a name");
    let lifetime = Duration::from_secs(86_400);
    let minting = key();
    time("a usersig", || usersig::mint(&minting, app, &identifier, 1_700_000_000, 86_400));
    let now = clock::unix_now();
    let signer = Signer::new(app, identifier.clone(), key(), lifetime, now);
    time("the target of a call, with its signature", || signer.current(now).target(FOLLOW_CHECK, clock::random_u32()));
}

fn reading_and_writing(accounts: usize) {
    let names: Vec<String> = (0..accounts).map(|number| format!("user{number:08}")).collect();
    let body = serde_json::json!({"From_Account": "user99999999", "To_Account": names}).to_string();
    time(&format!("a request for {accounts}, fast path"), || FOLLOW.parse_request(body.as_bytes(), 1000).is_ok());
    // One escape is enough to leave the fast path.
    let escaped = body.replacen("user99999999", "user9999999\\u0039", 1);
    time(&format!("a request for {accounts}, slow path"), || FOLLOW.parse_request(escaped.as_bytes(), 1000).is_ok());
    let item = Item::Known(Relation::new(2).expect("0 to 3"));
    let names: Vec<Cow<'_, str>> = names.iter().map(|name| Cow::Borrowed(name.as_str())).collect();
    time(&format!("a response for {accounts}"), || {
        FOLLOW.encode_response(Sides::Both, names.iter().map(|name| (name, &item)))
    });
    let answer = FOLLOW.encode_response(Sides::Both, names.iter().map(|name| (name, &item)));
    time(&format!("Chat's response for {accounts}: ErrorCode"), || Envelope::error_code(&answer).is_ok());
    time(&format!("Chat's response for {accounts}: items"), || FOLLOW.parse_items(Sides::Both, &answer).is_some());
}

fn looking_up() {
    let (hasher, facts) = (UserHasher::new(&[9; 16]), PairCache::new(PAIRS));
    let pair = |from: usize, to: usize| {
        let user = |number: usize| hasher.user(&format!("user{number:08}"));
        Pair { from: user(from), to: user(1_000_000 + to) }
    };
    for number in 0..PAIRS {
        let fact = CachedPair { stored: Relation::new(1).expect("0 to 3"), sent: Tick::from_micros(number as u64 + 1) };
        facts.insert(pair(number / 100, number).key(), fact);
    }
    let requests: Vec<Vec<PairKey>> = (0..2000)
        .map(|request| {
            let from = (request * 7919) % (PAIRS / 100);
            (0..100).map(|to| pair(from, from * 100 + to).key()).collect()
        })
        .collect();
    let mut at = 0;
    let mut next = || {
        at = (at + 1) % requests.len();
        &requests[at]
    };
    time("100 cached pairs, in a batch", || facts.get_all(next().iter().copied()));
    time("100 cached pairs, one by one", || next().iter().filter(|key| facts.get(**key).is_some()).count());
    let names: Vec<String> = (0..100).map(|number| format!("user{number:08}")).collect();
    time("100 names hashed", || names.iter().fold(0, |sum, name| sum ^ hasher.user(name).index_bits()));
}

fn planning() {
    let hasher = UserHasher::new(&[9; 16]);
    let names: Vec<String> = (0..101).map(|number| format!("user{number:08}")).collect();
    let from = hasher.user(&names[100]);
    let wanted = |slot: usize| Wanted {
        pair: Pair { from, to: hasher.user(&names[slot]) },
        from: &names[100],
        to: &names[slot],
        slot,
    };
    let wanted: Vec<Wanted<'_>> = (0..100).map(wanted).collect();
    let terms =
        JoinOptions { queue: CallerQueue::interactive(QueueKey(7)), join: true, keep: true, sides: Sides::Both };
    let never = |_: Pair| Tick::NEVER;
    let item = Item::Known(Relation::new(2).expect("0 to 3"));
    let answered: Vec<Cow<'_, str>> = names[..100].iter().map(|name| Cow::Borrowed(name.as_str())).collect();
    let answer = FOLLOW.encode_response(Sides::Both, answered.iter().map(|name| (name, &item)));
    let items = FOLLOW.parse_items(Sides::Both, &answer).expect("items");
    let mut pending = LookupScheduler::new(true, 100);
    time("100 pairs queued, sent in a call and resolved", || {
        pending.enqueue(terms, &wanted, never).expect("room");
        let call = pending.next_batch(Class::Interactive, Tick::from_micros(1)).expect("it is queued");
        pending.complete(call.id, &BatchOutcome::Answered(&items), never).results.len()
    });
}

/// Prints the median, minimum and maximum duration of a step.
fn time<T>(what: &str, mut piece: impl FnMut() -> T) {
    let mut round = |count: u32| {
        let begun = clock::now();
        for _ in 0..count {
            black_box(piece());
        }
        (clock::now() - begun).as_nanos() as f64 / f64::from(count)
    };
    let once = round(20);
    let count = (ROUND.as_nanos() as f64 / once.max(1.0)).clamp(1.0, 1e6) as u32;
    let mut times: Vec<f64> = (0..ROUNDS).map(|_| round(count)).collect();
    times.sort_unstable_by(f64::total_cmp);
    println!("{what:<44} {:>10.0} {:>10.0} {:>10.0}", times[ROUNDS / 2], times[0], times[ROUNDS - 1]);
}
