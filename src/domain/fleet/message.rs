//! Messages between replicas: invalidations, encrypted with a key derived from the app's secret key.
//!
//! Redis and its other users can neither read the user IDs nor forge a message.

use std::borrow::Cow;

use aws_lc_rs::aead::{Aad, NONCE_LEN, Nonce};
use serde::{Deserialize, Serialize};

use super::keys::FleetKeys;
use crate::domain::pairs::scope::{Scope, UserPairs};
use crate::domain::reads::scope::ReadScope;

/// With more pairs, the message names all pairs of the users that they have in common.
const PAIRS_MAX: usize = 500;
/// With more users, the message names the whole app.
const USERS_MAX: usize = 100;

#[derive(Serialize, Deserialize)]
enum DecodedMessage {
    Pairs(Vec<DecodedPairs>),
    Users(Vec<String>),
    All,
    Services(Vec<Cow<'static, str>>),
    Reads,
}

/// An invalidation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Message {
    /// Of pairs; [`Scope::All`] also covers all cached reads.
    Pairs(Scope),
    /// Of cached reads.
    Reads(ReadScope),
}

#[derive(Serialize, Deserialize)]
struct DecodedPairs {
    from: String,
    to: Vec<String>,
}

/// Returns the scope, or the next wider one that fits the maximum length of a message.
pub(crate) fn bounded(scope: &Scope) -> Scope {
    let widened = match scope {
        Scope::Pairs(pairs) if pairs.iter().map(|pairs| pairs.to.len()).sum::<usize>() > PAIRS_MAX => {
            Scope::Users(pairs.iter().map(|pairs| pairs.from.clone()).collect())
        }
        scope => scope.clone(),
    };
    match widened {
        Scope::Users(users) if users.len() > USERS_MAX => Scope::All,
        scope => scope,
    }
}

/// Encrypts a message. A nonce must never repeat; 96 random bits do not.
pub(crate) fn seal(keys: &FleetKeys, message: &Message, nonce: [u8; NONCE_LEN]) -> Vec<u8> {
    let message = match message.clone() {
        Message::Pairs(Scope::Pairs(pairs)) => {
            DecodedMessage::Pairs(pairs.into_iter().map(|UserPairs { from, to }| DecodedPairs { from, to }).collect())
        }
        Message::Pairs(Scope::Users(users)) => DecodedMessage::Users(users),
        Message::Pairs(Scope::All) => DecodedMessage::All,
        Message::Reads(ReadScope::Services(services)) => DecodedMessage::Services(services),
        Message::Reads(ReadScope::All) => DecodedMessage::Reads,
    };
    let mut text = serde_json::to_vec(&message).expect("strings always serialize");
    let sealed = keys.events.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::empty(), &mut text);
    sealed.expect("a message is far shorter than the cipher's limit");
    [&nonce[..], &text].concat()
}

/// Decrypts a message; `None` if it was not encrypted with this key.
pub(crate) fn open(keys: &FleetKeys, sealed: &[u8]) -> Option<Message> {
    let (nonce, text) = sealed.split_first_chunk::<NONCE_LEN>()?;
    let mut text = text.to_vec();
    let nonce = Nonce::assume_unique_for_key(*nonce);
    let message = serde_json::from_slice(keys.events.open_in_place(nonce, Aad::empty(), &mut text).ok()?).ok()?;
    Some(match message {
        DecodedMessage::Pairs(pairs) => {
            let pairs = pairs.into_iter().map(|DecodedPairs { from, to }| UserPairs { from, to });
            Message::Pairs(Scope::Pairs(pairs.collect()))
        }
        DecodedMessage::Users(users) => Message::Pairs(Scope::Users(users)),
        DecodedMessage::All => Message::Pairs(Scope::All),
        DecodedMessage::Services(services) => Message::Reads(ReadScope::Services(services)),
        DecodedMessage::Reads => Message::Reads(ReadScope::All),
    })
}

#[cfg(test)]
mod tests {
    use super::super::keys::for_test;
    use super::*;

    #[test]
    fn message_opens_only_with_its_key() {
        let keys = for_test("secret", 1);
        let mixed = ["ann", "bob"].map(|from| UserPairs { from: from.into(), to: vec!["cyd".into()] });
        for message in [
            Message::Pairs(Scope::pairs_of("ann", &["bob", "日本"])),
            Message::Pairs(Scope::Pairs(mixed.into())),
            Message::Pairs(Scope::Users(vec!["ann".into()])),
            Message::Pairs(Scope::All),
            Message::Reads(ReadScope::Services(vec!["announcements".into(), "profile".into()])),
            Message::Reads(ReadScope::All),
        ] {
            let sealed = seal(&keys, &message, [7; NONCE_LEN]);
            assert!(!sealed.windows(3).any(|part| part == b"ann"));
            assert_eq!(open(&keys, &sealed), Some(message));
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
        let pairs = |count| Scope::Pairs(vec![UserPairs { from: "ann".into(), to: names(count) }]);
        let mixed = |count: usize| {
            let pair = |from| UserPairs { from, to: names(PAIRS_MAX / count + 1) };
            Scope::Pairs(names(count).into_iter().map(pair).collect())
        };
        assert_eq!(bounded(&pairs(PAIRS_MAX)), pairs(PAIRS_MAX));
        assert_eq!(bounded(&pairs(PAIRS_MAX + 1)), Scope::Users(vec!["ann".into()]));
        assert_eq!(bounded(&mixed(USERS_MAX)), Scope::Users(names(USERS_MAX)));
        assert_eq!(bounded(&mixed(USERS_MAX + 1)), Scope::All);
        assert_eq!(bounded(&Scope::Users(names(USERS_MAX + 1))), Scope::All);
    }
}
