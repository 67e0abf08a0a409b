//! Messages between replicas: invalidations, encrypted with a key derived from the app's secret key.
//!
//! Redis and its other users can neither read the user IDs nor forge a message.

use aws_lc_rs::aead::{Aad, NONCE_LEN, Nonce};
use serde::{Deserialize, Serialize};

use super::keys::FleetKeys;
use crate::domain::pairs::scope::Scope;

/// With more pairs, the message names all pairs of the user that they have in common.
const PAIRS_MAX: usize = 500;
/// With more users, the message names the whole app.
const USERS_MAX: usize = 100;

#[derive(Serialize, Deserialize)]
enum DecodedMessage {
    Pairs { from: String, to: Vec<String> },
    Users(Vec<String>),
    All,
}

/// Returns the scope, or the next wider one that fits the maximum length of a message.
pub(crate) fn bounded(scope: &Scope) -> Scope {
    match scope {
        Scope::Pairs { from, to } if to.len() > PAIRS_MAX => Scope::Users(vec![from.clone()]),
        Scope::Users(users) if users.len() > USERS_MAX => Scope::All,
        scope => scope.clone(),
    }
}

/// Encrypts a scope. A nonce must never repeat; 96 random bits do not.
pub(crate) fn seal(keys: &FleetKeys, scope: &Scope, nonce: [u8; NONCE_LEN]) -> Vec<u8> {
    let message = match scope.clone() {
        Scope::Pairs { from, to } => DecodedMessage::Pairs { from, to },
        Scope::Users(users) => DecodedMessage::Users(users),
        Scope::All => DecodedMessage::All,
    };
    let mut text = serde_json::to_vec(&message).expect("strings always serialize");
    let sealed = keys.events.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::empty(), &mut text);
    sealed.expect("a message is far shorter than the cipher's limit");
    [&nonce[..], &text].concat()
}

/// Decrypts a message; `None` if it was not encrypted with this key.
pub(crate) fn open(keys: &FleetKeys, sealed: &[u8]) -> Option<Scope> {
    let (nonce, text) = sealed.split_first_chunk::<NONCE_LEN>()?;
    let mut text = text.to_vec();
    let nonce = Nonce::assume_unique_for_key(*nonce);
    let message = serde_json::from_slice(keys.events.open_in_place(nonce, Aad::empty(), &mut text).ok()?).ok()?;
    Some(match message {
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
    fn message_opens_only_with_its_key() {
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
    fn long_scope_is_widened() {
        let names = |count: usize| (0..count).map(|n| n.to_string()).collect::<Vec<_>>();
        let pairs = |count| Scope::Pairs { from: "ann".into(), to: names(count) };
        assert_eq!(bounded(&pairs(PAIRS_MAX)), pairs(PAIRS_MAX));
        assert_eq!(bounded(&pairs(PAIRS_MAX + 1)), Scope::Users(vec!["ann".into()]));
        assert_eq!(bounded(&Scope::Users(names(USERS_MAX + 1))), Scope::All);
    }
}
