//! Secrets that must never leak: keys, tokens, every UserSig that reached the fake Chat, and every webhook signature.
//!
//! All tests of this binary share the list, so each gateway's output and each response is searched for the secrets of
//! every test.

use std::collections::{BTreeMap, BTreeSet};

use parking_lot::Mutex;

use super::app;

/// Length of the prefix by which secrets are indexed, and so the shortest secret. A search then takes time proportional to
/// the searched text, regardless of the number of secrets.
pub(crate) const LEN_MIN: usize = 16;

static SECRETS: Mutex<Secrets> = Mutex::new(Secrets { count: 0, by_start: BTreeMap::new() });

struct Secrets {
    count: usize,
    by_start: BTreeMap<[u8; LEN_MIN], BTreeSet<String>>,
}

/// Adds a signature or token to the list. Panics if it is too short to be searched for.
#[track_caller]
pub(crate) fn add(signature: &str) {
    assert!(signature.len() >= LEN_MIN, "a secret of {} bytes; it needs {LEN_MIN}", signature.len());
    let mut secrets = SECRETS.lock();
    let mut is_new = false;
    for spelling in spellings(signature) {
        let start = *spelling.as_bytes().first_chunk().expect("long enough");
        is_new |= secrets.by_start.entry(start).or_default().insert(spelling);
    }
    secrets.count += usize::from(is_new);
}

/// Returns the number of distinct signatures added so far.
pub(crate) fn count() -> usize {
    SECRETS.lock().count
}

/// Panics if `bytes` contain a key or a signature, plain or percent-encoded. `place` names their source.
#[track_caller]
pub(crate) fn assert_none_in(place: &str, bytes: &[u8]) {
    if let Some(found) = find(bytes) {
        panic!("{found} is in {place}");
    }
}

/// Returns a description of the first secret found in `bytes`.
fn find(bytes: &[u8]) -> Option<String> {
    for app in app::ALL {
        if contains(bytes, app.key) {
            return Some(format!("the key of app {}", app.name));
        }
        if contains(bytes, app.webhook_token) {
            return Some(format!("the webhook token of app {}", app.name));
        }
    }
    let secrets = SECRETS.lock();
    let is_found = bytes.windows(LEN_MIN).enumerate().any(|(at, start)| {
        let start = start.first_chunk::<LEN_MIN>().expect("a window of that length");
        secrets.by_start.get(start).is_some_and(|all| all.iter().any(|text| bytes[at..].starts_with(text.as_bytes())))
    });
    is_found.then(|| "a signature".to_owned())
}

fn contains(bytes: &[u8], secret: &str) -> bool {
    spellings(secret).iter().any(|text| memchr::memmem::find(bytes, text.as_bytes()).is_some())
}

/// Returns the encodings of a secret that a URL, a log, or JSON may contain.
fn spellings(secret: &str) -> [String; 5] {
    let encoded = percent_encoding::utf8_percent_encode(secret, percent_encoding::NON_ALPHANUMERIC).to_string();
    // Encoders commonly leave `-`, `_` and `.` unchanged.
    let halfway = encoded.replace("%2D", "-").replace("%5F", "_").replace("%2E", ".");
    let lower = encoded.replace("%2A", "%2a").replace("%2D", "%2d").replace("%5F", "%5f");
    let halfway_lower = halfway.replace("%2A", "%2a");
    [secret.to_owned(), encoded, halfway, lower, halfway_lower]
}

#[test]
fn secret_search_finds_every_encoding() {
    let signature = format!("eJw{}*a-b_c_", "x".repeat(80));
    add(&signature);
    assert!(find(b"nothing to see").is_none());
    assert!(find(&signature.as_bytes()[..signature.len() - 1]).is_none(), "a truncated signature is not a secret");
    assert!(find(format!("GET /?usersig={signature}&x").as_bytes()).is_some());
    assert!(find(format!("usersig={}", signature.replace('*', "%2A")).as_bytes()).is_some());
    assert!(find(format!("usersig={}", signature.replace('*', "%2a")).as_bytes()).is_some());
    assert!(find(format!("key is {}", app::ODD.key).as_bytes()).is_some());
    assert!(find(format!("token is {}", app::ODD.webhook_token).as_bytes()).is_some());
}

#[test]
#[should_panic(expected = "a secret of 15 bytes")]
fn secret_that_cannot_be_searched_for_is_refused() {
    add("fifteen bytes..");
}
