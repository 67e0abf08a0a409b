//! Who asks: a caller with a name and a token, or one of those who have none.

use std::fmt;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::str::FromStr;

use aws_lc_rs::digest::{SHA256, digest};
use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};
use zeroize::Zeroizing;

use super::chat::app::{NameError, check_name};

/// One caller among those who share a quota: with work waiting each gets its turn. Two are told
/// apart as far as that is possible without asking who they are.
///
/// The two lowest bits say what kind of caller the number stands for; 0 is one that has a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct QueueKey(pub u64);

impl QueueKey {
    /// chatgate itself, when it calls for several callers at once.
    pub const SELF: QueueKey = QueueKey(0);

    /// The caller of that name. It depends on nothing else, so it stays when others come or go.
    pub fn named(name: &CallerName) -> Self {
        let mut hasher = DefaultHasher::new();
        name.hash(&mut hasher);
        QueueKey((hasher.finish() << 2).max(4))
    }
}

/// What operators call a caller: `[a-z0-9-]{1,32}`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CallerName(Box<str>);

impl CallerName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for CallerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for CallerName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        check_name(text)?;
        Ok(Self(text.into()))
    }
}

/// Shortest token, in bytes. 16 random characters of base64 are 96 bits.
pub const TOKEN_LEN_MIN: usize = 16;
/// Longest token, in bytes.
pub const TOKEN_LEN_MAX: usize = 1024;

/// The text cannot be a token, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum TokenError {
    #[error("the token is shorter than 16 characters, so it could be guessed; `openssl rand -hex 32` makes a good one")]
    TooShort,
    #[error("the token is longer than 1024 characters")]
    TooLong,
    #[error("the token has a blank or a character that is not ASCII, which cannot stand in the header")]
    Alphabet,
}

/// A text that shows who somebody is: whoever has it, is it. 16 to 1024 visible ASCII characters,
/// which is more than RFC 6750 section 2.1 has (b64token), since tokens come from many places.
///
/// No `Display`, `Debug` shows nothing of it, and its memory is wiped when it goes.
#[derive(Clone)]
pub struct BearerToken(Zeroizing<Box<str>>);

impl BearerToken {
    /// Takes a text for a token.
    ///
    /// # Errors
    /// If it is not of the form above.
    pub fn new(text: &str) -> Result<Self, TokenError> {
        match text.len() {
            ..TOKEN_LEN_MIN => Err(TokenError::TooShort),
            _ if text.len() > TOKEN_LEN_MAX => Err(TokenError::TooLong),
            _ if !text.bytes().all(|byte| byte.is_ascii_graphic()) => Err(TokenError::Alphabet),
            _ => Ok(Self(Zeroizing::new(text.into()))),
        }
    }

    /// The text, for who sends it and for nothing else.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// What is enough to know it again.
    pub fn digest(&self) -> TokenDigest {
        TokenDigest::of(self.0.as_bytes())
    }
}

impl PartialEq for BearerToken {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_bytes().ct_eq(other.0.as_bytes()).into()
    }
}

impl Eq for BearerToken {}

impl fmt::Debug for BearerToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BearerToken(hidden)")
    }
}

/// SHA-256 of a token: enough to know the token again, and no way back to it. It is not shown
/// either, since a token that is no good could be guessed by it.
///
/// In four words: comparing with one takes 10 ns, with all of a thousand 10 µs.
#[derive(Clone, Copy)]
pub struct TokenDigest([u64; 4]);

impl TokenDigest {
    /// Of a text that somebody sent, whatever it is.
    pub fn of(token: &[u8]) -> Self {
        let digest = digest(&SHA256, token);
        let mut words = [0; 4];
        for (word, bytes) in words.iter_mut().zip(digest.as_ref().chunks_exact(8)) {
            *word = u64::from_le_bytes(bytes.try_into().expect("chunks of 8"));
        }
        Self(words)
    }

    /// The number of the one that is equal, if any. How long it takes says nothing of how much of
    /// which one is equal: all of all are compared.
    pub fn find_in<'a>(&self, digests: impl IntoIterator<Item = &'a TokenDigest>) -> Option<usize> {
        // 0 is none.
        let mut found = 0_u64;
        for (digest, number) in digests.into_iter().zip(1_u64..) {
            found.conditional_assign(&number, self.ct_eq(digest));
        }
        usize::try_from(found).ok()?.checked_sub(1)
    }
}

impl ConstantTimeEq for TokenDigest {
    fn ct_eq(&self, other: &Self) -> Choice {
        self.0[..].ct_eq(&other.0[..])
    }
}

impl fmt::Debug for TokenDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenDigest(hidden)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_long_enough_and_fits_into_a_header() {
        for good in ["0123456789abcdef", "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~", &"x".repeat(1024)] {
            assert_eq!(BearerToken::new(good).expect(good).expose(), good);
        }
        assert_eq!(BearerToken::new("0123456789abcde").err(), Some(TokenError::TooShort));
        assert_eq!(BearerToken::new("").err(), Some(TokenError::TooShort));
        assert_eq!(BearerToken::new(&"x".repeat(1025)).err(), Some(TokenError::TooLong));
        for bad in ["0123456789 abcdef", "0123456789abcdef\t", "0123456789abcdefä", "0123456789abcdef\x7f"] {
            assert_eq!(BearerToken::new(bad).err(), Some(TokenError::Alphabet), "{bad:?}");
        }
    }

    #[test]
    fn neither_token_nor_digest_shows_itself() {
        let token = BearerToken::new("a-token-that-is-long").expect("long enough");
        assert_eq!(format!("{token:?} {:?}", token.digest()), "BearerToken(hidden) TokenDigest(hidden)");
    }

    #[test]
    fn a_token_is_found_among_many_and_what_is_none_is_not() {
        let text = |number: usize| format!("token-of-caller-{number}");
        let digests: Vec<TokenDigest> = (0..1000).map(|number| TokenDigest::of(text(number).as_bytes())).collect();
        for number in [0, 1, 500, 999] {
            assert_eq!(TokenDigest::of(text(number).as_bytes()).find_in(&digests), Some(number));
        }
        for other in ["", "token-of-caller-", "token-of-caller-1000", "token-of-caller-1 ", "Token-of-caller-1"] {
            assert_eq!(TokenDigest::of(other.as_bytes()).find_in(&digests), None, "{other:?}");
        }
        assert_eq!(TokenDigest::of(b"x").find_in([]), None);
    }

    #[test]
    fn it_is_sha_256() {
        // FIPS 180-2, appendix B.1: the digest of "abc" begins with ba7816bf 8f01cfea.
        assert_eq!(TokenDigest::of(b"abc").0[0], u64::from_be_bytes(0xba78_16bf_8f01_cfea_u64.to_le_bytes()));
    }

    #[test]
    fn the_number_of_a_name_is_of_its_own_kind_and_never_chatgate_s() {
        let id = |name: &str| QueueKey::named(&name.parse().expect(name));
        assert_eq!(id("feed"), id("feed"));
        assert_ne!(id("feed"), id("chat"));
        for name in ["a", "feed", "0", "-"] {
            assert_ne!(id(name), QueueKey::SELF);
            assert_eq!(id(name).0 & 3, 0);
        }
    }
}
