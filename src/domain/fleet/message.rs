//! What replicas tell each other: evictions, sealed with a key that comes from the app's secret, so that
//! Redis and its other users read no names and forge nothing.

use aws_lc_rs::aead::{Aad, NONCE_LEN, Nonce};
use serde::{Deserialize, Serialize};

use super::keys::FleetKeys;
use crate::domain::pairs::scope::Scope;

/// An eviction of more pairs is told as one of all pairs of the user they have in common.
pub const PAIRS_MAX: usize = 500;
/// An eviction of more users is told as one of the whole app.
pub const USERS_MAX: usize = 100;

#[derive(Serialize, Deserialize)]
enum DecodedMessage {
    Pairs { from: String, to: Vec<String> },
    Users(Vec<String>),
    All,
}

/// The scope, or the next wider one that can be told in a message of bounded length.
pub fn bounded(scope: &Scope) -> Scope {
    match scope {
        Scope::Pairs { from, to } if to.len() > PAIRS_MAX => Scope::Users(vec![from.clone()]),
        Scope::Users(users) if users.len() > USERS_MAX => Scope::All,
        scope => scope.clone(),
    }
}

/// Seals a scope. A nonce must never come twice; 96 bits that nobody can guess do not.
pub fn seal(keys: &FleetKeys, scope: &Scope, nonce: [u8; NONCE_LEN]) -> Vec<u8> {
    let told = match scope.clone() {
        Scope::Pairs { from, to } => DecodedMessage::Pairs { from, to },
        Scope::Users(users) => DecodedMessage::Users(users),
        Scope::All => DecodedMessage::All,
    };
    let mut text = serde_json::to_vec(&told).expect("names are text");
    let sealed = keys.events.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::empty(), &mut text);
    sealed.expect("a message is far shorter than a cipher's bound");
    [&nonce[..], &text].concat()
}

/// Opens what was sealed. `None` if it was sealed with another key, or by nobody who has one.
pub fn open(keys: &FleetKeys, sealed: &[u8]) -> Option<Scope> {
    let (nonce, text) = sealed.split_first_chunk::<NONCE_LEN>()?;
    let mut text = text.to_vec();
    let nonce = Nonce::assume_unique_for_key(*nonce);
    let told = serde_json::from_slice(keys.events.open_in_place(nonce, Aad::empty(), &mut text).ok()?).ok()?;
    Some(match told {
        DecodedMessage::Pairs { from, to } => Scope::Pairs { from, to },
        DecodedMessage::Users(users) => Scope::Users(users),
        DecodedMessage::All => Scope::All,
    })
}

#[cfg(test)]
mod tests {
    use super::super::keys::for_test;
    use super::*;

    #[test]
    fn who_has_the_key_reads_it_and_nobody_else() {
        let keys = for_test("secret", 1);
        for scope in [
            Scope::Pairs { from: "ann".into(), to: vec!["bob".into(), "日本".into()] },
            Scope::Users(vec!["ann".into()]),
            Scope::All,
        ] {
            let sealed = seal(&keys, &scope, [7; NONCE_LEN]);
            assert!(!sealed.windows(3).any(|part| part == b"ann"));
            assert_eq!(open(&keys, &sealed), Some(scope));
            assert_eq!(open(&for_test("secret", 2), &sealed), None);
            let mut forged = sealed.clone();
            forged[NONCE_LEN] ^= 1;
            assert_eq!(open(&keys, &forged), None);
        }
        assert_eq!(open(&keys, b"short"), None);
    }

    #[test]
    fn what_is_too_long_is_told_wider() {
        let names = |count: usize| (0..count).map(|n| n.to_string()).collect::<Vec<_>>();
        let pairs = |count| Scope::Pairs { from: "ann".into(), to: names(count) };
        assert_eq!(bounded(&pairs(PAIRS_MAX)), pairs(PAIRS_MAX));
        assert_eq!(bounded(&pairs(PAIRS_MAX + 1)), Scope::Users(vec!["ann".into()]));
        assert_eq!(bounded(&Scope::Users(names(USERS_MAX + 1))), Scope::All);
    }
}
