//! What must never be seen: keys and tokens, every usersig that reached the fake Chat, every signature of a webhook.
//!
//! The list is shared by all tests of this binary, so each gateway's whole output and each answer
//! is searched for the secrets of every test, not only of its own.

use std::collections::BTreeSet;
use std::sync::Mutex;

use super::app;

static SIGNATURES: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

/// This signature was made or seen.
pub(crate) fn remember(signature: &str) {
    if signature.len() >= 64 {
        SIGNATURES.lock().expect("no panic under it").insert(signature.to_owned());
    }
}

/// How many different signatures were seen so far.
pub(crate) fn remembered() -> usize {
    SIGNATURES.lock().expect("no panic under it").len()
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
    let signatures = SIGNATURES.lock().expect("no panic under it");
    signatures.iter().find(|signature| contains(bytes, signature)).map(|_| "a signature".to_owned())
}

/// In any of the spellings that a URL, a log or a JSON text may give it.
fn contains(bytes: &[u8], secret: &str) -> bool {
    let encoded = percent_encoding::utf8_percent_encode(secret, percent_encoding::NON_ALPHANUMERIC).to_string();
    // `-`, `_` and `.` are commonly left as they are.
    let halfway = encoded.replace("%2D", "-").replace("%5F", "_").replace("%2E", ".");
    let lower = encoded.replace("%2A", "%2a").replace("%2D", "%2d").replace("%5F", "%5f");
    [secret, &encoded, &halfway, &lower, &halfway.replace("%2A", "%2a")]
        .into_iter()
        .any(|text| memchr::memmem::find(bytes, text.as_bytes()).is_some())
}

#[test]
fn the_search_finds_every_spelling() {
    let signature = format!("eJw{}*a-b_c_", "x".repeat(80));
    remember(&signature);
    assert!(find(b"nothing to see").is_none());
    assert!(find(format!("GET /?usersig={signature}&x").as_bytes()).is_some());
    assert!(find(format!("usersig={}", signature.replace('*', "%2A")).as_bytes()).is_some());
    assert!(find(format!("usersig={}", signature.replace('*', "%2a")).as_bytes()).is_some());
    assert!(find(format!("key is {}", app::ODD.key).as_bytes()).is_some());
    assert!(find(format!("token is {}", app::ODD.webhook_token).as_bytes()).is_some());
}
