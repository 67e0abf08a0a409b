//! Callers: names, bearer tokens, names in certificates, and the keys of the fair queue.

use std::fmt;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::ops::{Index, IndexMut};
use std::str::FromStr;

use aws_lc_rs::digest::{SHA256, digest};
use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};
use zeroize::Zeroizing;

use super::chat::app::{NameError, check_name};

/// The key of a caller in the fair queues. Callers with queued work are served round-robin by this key.
///
/// It is not an identity: without tokens, it distinguishes callers only as far as their connections do. The two lowest
/// bits are the kind of caller; 0 is a configured caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct QueueKey(pub u64);

impl QueueKey {
    /// chatgate itself, for calls on behalf of several callers.
    pub const SELF: QueueKey = QueueKey(0);

    /// Returns the key of a configured caller. It depends only on the name, so a reload does not change it.
    pub fn named(name: &CallerName) -> Self {
        let mut hasher = DefaultHasher::new();
        name.hash(&mut hasher);
        QueueKey((hasher.finish() << 2).max(4))
    }

    /// Whether it is the key of a configured caller.
    pub fn is_named(self) -> bool {
        self.0 & 3 == 0 && self != Self::SELF
    }
}

/// How urgent the requests of a caller are. Calls of an earlier class go first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub enum Class {
    /// Its users wait for responses.
    #[default]
    Interactive,
    /// No user waits: backfills, exports, reports.
    Batch,
    /// Nothing waits: chatgate looks a pair up again before it is needed. No caller has this class.
    Refresh,
}

impl Class {
    /// All classes, the first to be served first.
    pub const ALL: [Class; 3] = [Class::Interactive, Class::Batch, Class::Refresh];

    /// The class of callers that is served last.
    pub const LAST_OF_CALLERS: Class = Class::Batch;

    /// Returns its name in the configuration and in `/status`.
    pub const fn name(self) -> &'static str {
        match self {
            Class::Interactive => "interactive",
            Class::Batch => "batch",
            Class::Refresh => "refresh",
        }
    }

    /// Returns the classes that are served before this one.
    pub fn earlier(self) -> impl Iterator<Item = Class> {
        Class::ALL.into_iter().filter(move |class| *class < self)
    }

    /// Returns this class after those that are served before it.
    pub fn and_earlier(self) -> impl Iterator<Item = Class> {
        Class::ALL.into_iter().filter(move |class| *class <= self)
    }

    /// Returns this class and those that are served after it.
    pub fn and_later(self) -> impl Iterator<Item = Class> {
        Class::ALL.into_iter().filter(move |class| *class >= self)
    }
}

/// One value for each class.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ByClass<T>([T; Class::ALL.len()]);

impl<T> ByClass<T> {
    /// Makes a value for each class.
    pub fn new(value: impl FnMut(Class) -> T) -> Self {
        Self(Class::ALL.map(value))
    }
}

impl<T> Index<Class> for ByClass<T> {
    type Output = T;

    fn index(&self, class: Class) -> &T {
        &self.0[class as usize]
    }
}

impl<T> IndexMut<Class> for ByClass<T> {
    fn index_mut(&mut self, class: Class) -> &mut T {
        &mut self.0[class as usize]
    }
}

/// The queue of one caller, among the queues of its class.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CallerQueue {
    /// Queues of earlier classes are served first.
    pub class: Class,
    /// Queues of one class are served round-robin.
    pub caller: QueueKey,
}

impl CallerQueue {
    /// Returns the queue of an interactive caller.
    pub const fn interactive(caller: QueueKey) -> Self {
        Self { class: Class::Interactive, caller }
    }

    /// Returns the queue for calls that chatgate makes on behalf of several callers of a class.
    pub const fn of_chatgate(class: Class) -> Self {
        Self { class, caller: QueueKey::SELF }
    }
}

/// The configured name of a caller: `[a-z0-9-]{1,32}`.
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

/// Minimum length of a token, in bytes. 16 random characters of base64 are 96 bits.
const TOKEN_LEN_MIN: usize = 16;
/// Maximum length of a token, in bytes.
pub const TOKEN_LEN_MAX: usize = 1024;

/// Why a text cannot be a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum TokenError {
    #[error("the token is shorter than 16 characters; generate one with `openssl rand -hex 32`")]
    TooShort,
    #[error("the token is longer than 1024 characters; generate one with `openssl rand -hex 32`")]
    TooLong,
    #[error("the token contains a space or a non-ASCII character; generate one with `openssl rand -hex 32`")]
    Alphabet,
}

/// A bearer token, which authenticates its holder: 16 to 1024 visible ASCII characters. That is wider than `b64token`
/// (RFC 6750, section 2.1), because tokens come from many tools.
///
/// It has no `Display`, `Debug` hides it, and its memory is wiped on drop.
#[derive(Clone)]
pub struct BearerToken(Zeroizing<Box<str>>);

impl BearerToken {
    /// Checks a text and returns it as a token.
    ///
    /// # Errors
    /// A text of another form.
    pub fn new(text: &str) -> Result<Self, TokenError> {
        match text.len() {
            ..TOKEN_LEN_MIN => Err(TokenError::TooShort),
            _ if text.len() > TOKEN_LEN_MAX => Err(TokenError::TooLong),
            _ if !text.bytes().all(|byte| byte.is_ascii_graphic()) => Err(TokenError::Alphabet),
            _ => Ok(Self(Zeroizing::new(text.into()))),
        }
    }

    /// Returns the text. Only code that sends it may call this.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Returns its digest, which is enough to recognize it.
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

/// The SHA-256 of a token: enough to recognize the token, but not to recover it. `Debug` hides it too, because a weak
/// token could be guessed from it.
///
/// It is stored in four words: one comparison takes 10 ns, so finding one of 1000 tokens takes 10 µs.
#[derive(Clone, Copy)]
pub struct TokenDigest([u64; 4]);

impl TokenDigest {
    /// Returns the digest of a text that a client sent.
    pub fn of(token: &[u8]) -> Self {
        let digest = digest(&SHA256, token);
        let mut words = [0; 4];
        for (word, bytes) in words.iter_mut().zip(digest.as_ref().chunks_exact(8)) {
            *word = u64::from_le_bytes(bytes.try_into().expect("chunks of 8"));
        }
        Self(words)
    }

    /// Returns the index of the equal digest. Takes constant time: it compares all bytes of all digests.
    pub fn find_in<'a>(&self, digests: impl IntoIterator<Item = &'a TokenDigest>) -> Option<usize> {
        // 0 means not found.
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

/// Maximum length of a URI in a certificate, in bytes (SPIFFE ID, section 2.3).
const URI_LEN_MAX: usize = 2048;
/// Maximum length of a DNS name, in bytes (RFC 1035, section 2.3.4).
const DNS_NAME_LEN_MAX: usize = 253;

/// A name of a client in its certificate: a subject alternative name (RFC 5280, section 4.2.1.6).
///
/// A URI and a DNS name never match each other, whatever their texts.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum CertificateName {
    /// A URI, compared byte by byte.
    Uri(Box<str>),
    /// A DNS name in lower case.
    Dns(Box<str>),
}

/// Why a text is not a name in a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum CertificateNameError {
    #[error("not a name in a certificate; use a URI such as \"spiffe://prod/feed\", or a DNS name")]
    Form,
    #[error("patterns are not supported; list each name")]
    Pattern,
    #[error("too long; a URI has up to 2048 characters, a DNS name up to 253")]
    TooLong,
}

impl CertificateName {
    /// Returns a URI of a certificate; `None` if no caller can have it.
    pub fn uri(text: &str) -> Option<Self> {
        let is_plain = text.bytes().all(|byte| byte.is_ascii_graphic());
        (is_plain && text.contains(':') && text.len() <= URI_LEN_MAX).then(|| Self::Uri(text.into()))
    }

    /// Returns a DNS name of a certificate; `None` if no caller can have it.
    pub fn dns(text: &str) -> Option<Self> {
        let is_label = |label: &str| {
            !label.is_empty() && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
        };
        let is_name = text.len() <= DNS_NAME_LEN_MAX && text.split('.').all(is_label);
        is_name.then(|| Self::Dns(text.to_ascii_lowercase().into()))
    }
}

impl fmt::Display for CertificateName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (CertificateName::Uri(text) | CertificateName::Dns(text)) = self;
        f.write_str(text)
    }
}

impl FromStr for CertificateName {
    type Err = CertificateNameError;

    /// A text with a colon is a URI, any other text a DNS name.
    fn from_str(text: &str) -> Result<Self, CertificateNameError> {
        let (name, len_max) = match text.contains(':') {
            true => (Self::uri(text), URI_LEN_MAX),
            false => (Self::dns(text), DNS_NAME_LEN_MAX),
        };
        name.ok_or(match () {
            () if text.len() > len_max => CertificateNameError::TooLong,
            () if text.contains('*') => CertificateNameError::Pattern,
            () => CertificateNameError::Form,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificate_name_is_a_uri_or_a_dns_name() {
        let parse = |text: &str| text.parse::<CertificateName>();
        let uri = "spiffe://prod/ns/feed/sa/feed";
        assert_eq!(parse(uri), Ok(CertificateName::Uri(uri.into())));
        assert_eq!(parse("Feed.Prod_1"), Ok(CertificateName::Dns("feed.prod_1".into())));
        assert_ne!(parse("spiffe://prod/A"), parse("spiffe://prod/a"));
        assert_eq!(CertificateName::dns(uri), None, "a DNS name of a certificate is no URI");
        assert_eq!(CertificateName::uri("feed.prod"), None);
        assert_eq!(parse("*.prod"), Err(CertificateNameError::Pattern));
        for bad in ["", ".", "a..b", "a.", "feed prod", "feed\0prod", "spiffe://a b", "spiffe://ä"] {
            assert_eq!(parse(bad), Err(CertificateNameError::Form), "{bad:?}");
        }
        assert!(parse(&"a".repeat(253)).is_ok() && parse(&format!("a:{}", "b".repeat(2046))).is_ok());
        assert_eq!(parse(&"a".repeat(254)), Err(CertificateNameError::TooLong));
        assert_eq!(parse(&format!("a:{}", "b".repeat(2047))), Err(CertificateNameError::TooLong));
    }

    #[test]
    fn token_has_16_to_1024_visible_ascii_characters() {
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
    fn debug_hides_token_and_digest() {
        let token = BearerToken::new("a-token-that-is-long").expect("long enough");
        assert_eq!(format!("{token:?} {:?}", token.digest()), "BearerToken(hidden) TokenDigest(hidden)");
    }

    #[test]
    fn token_is_found_among_many() {
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
    fn digest_is_sha_256() {
        // FIPS 180-2, appendix B.1: the digest of "abc" begins with ba7816bf 8f01cfea.
        assert_eq!(TokenDigest::of(b"abc").0[0], u64::from_be_bytes(0xba78_16bf_8f01_cfea_u64.to_le_bytes()));
    }

    #[test]
    fn key_of_a_named_caller_is_never_that_of_chatgate() {
        let id = |name: &str| QueueKey::named(&name.parse().expect(name));
        assert_eq!(id("feed"), id("feed"));
        assert_ne!(id("feed"), id("chat"));
        for name in ["a", "feed", "0", "-"] {
            assert_ne!(id(name), QueueKey::SELF);
            assert_eq!(id(name).0 & 3, 0);
        }
    }
}
