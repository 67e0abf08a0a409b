//! What must never be seen: keys and tokens, every usersig that reached the fake Chat, every signature of a webhook.
//!
//! The list is shared by all tests of this binary, so each gateway's whole output and each answer
//! is searched for the secrets of every test, not only of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

use super::app;

/// Every spelling that is longer than this is found by its first bytes, so that a search takes as long as
/// what is searched, however many signatures the tests before have left.
const START: usize = 16;

static SEEN: Mutex<Seen> = Mutex::new(Seen { count: 0, by_start: BTreeMap::new() });

struct Seen {
    count: usize,
    by_start: BTreeMap<[u8; START], BTreeSet<String>>,
}

/// This signature was made or seen.
pub(crate) fn remember(signature: &str) {
    if signature.len() < 64 {
        return;
    }
    let mut seen = SEEN.lock().expect("no panic under it");
    let mut is_new = false;
    for spelling in spellings(signature) {
        let start = *spelling.as_bytes().first_chunk().expect("longer than that");
        is_new |= seen.by_start.entry(start).or_default().insert(spelling);
    }
    seen.count += usize::from(is_new);
}

/// How many different signatures were seen so far.
pub(crate) fn remembered() -> usize {
    SEEN.lock().expect("no panic under it").count
}

/// Panics if `bytes` hold a key or a signature, plain or percent-encoded. `place` says where they were.
#[track_caller]
pub(crate) fn assert_none_in(place: &str, bytes: &[u8]) {
    if let Some(found) = find(bytes) {
        panic!("{found} is in {place}");
    }
}

/// Which secret is in `bytes`, if one is.
fn find(bytes: &[u8]) -> Option<String> {
    for app in app::ALL {
        if contains(bytes, app.key) {
            return Some(format!("the key of app {}", app.name));
        }
        if contains(bytes, app.webhook_token) {
            return Some(format!("the webhook token of app {}", app.name));
        }
    }
    let seen = SEEN.lock().expect("no panic under it");
    let is_there = bytes.windows(START).enumerate().any(|(at, start)| {
        let start = start.first_chunk::<START>().expect("as long as that");
        seen.by_start.get(start).is_some_and(|all| all.iter().any(|text| bytes[at..].starts_with(text.as_bytes())))
    });
    is_there.then(|| "a signature".to_owned())
}

fn contains(bytes: &[u8], secret: &str) -> bool {
    spellings(secret).iter().any(|text| memchr::memmem::find(bytes, text.as_bytes()).is_some())
}

/// The spellings that a URL, a log or a JSON text may give it.
fn spellings(secret: &str) -> [String; 5] {
    let encoded = percent_encoding::utf8_percent_encode(secret, percent_encoding::NON_ALPHANUMERIC).to_string();
    // `-`, `_` and `.` are commonly left as they are.
    let halfway = encoded.replace("%2D", "-").replace("%5F", "_").replace("%2E", ".");
    let lower = encoded.replace("%2A", "%2a").replace("%2D", "%2d").replace("%5F", "%5f");
    let halfway_lower = halfway.replace("%2A", "%2a");
    [secret.to_owned(), encoded, halfway, lower, halfway_lower]
}

#[test]
fn the_search_finds_every_spelling() {
    let signature = format!("eJw{}*a-b_c_", "x".repeat(80));
    remember(&signature);
    assert!(find(b"nothing to see").is_none());
    assert!(find(&signature.as_bytes()[..signature.len() - 1]).is_none(), "a part of one is none");
    assert!(find(format!("GET /?usersig={signature}&x").as_bytes()).is_some());
    assert!(find(format!("usersig={}", signature.replace('*', "%2A")).as_bytes()).is_some());
    assert!(find(format!("usersig={}", signature.replace('*', "%2a")).as_bytes()).is_some());
    assert!(find(format!("key is {}", app::ODD.key).as_bytes()).is_some());
    assert!(find(format!("token is {}", app::ODD.webhook_token).as_bytes()).is_some());
}
