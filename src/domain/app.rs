//! Who an app is towards Chat: its number, its administrator and its key.

use std::fmt;
use std::str::FromStr;

use zeroize::Zeroizing;

/// The number Chat gives an app (unsigned 32-bit, never 0).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SdkAppId(u32);

impl SdkAppId {
    /// `None` for 0, which no app has.
    pub const fn new(number: u32) -> Option<Self> {
        if number == 0 { None } else { Some(Self(number)) }
    }

    /// The number itself.
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl fmt::Display for SdkAppId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A text that cannot be what it was given for, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum NameError {
    #[error("is empty")]
    Empty,
    #[error("is longer than 32 bytes")]
    TooLong,
    #[error("has a control character")]
    Control,
    #[error("may only have a-z, 0-9 and '-'")]
    Alphabet,
}

/// Longest user name and identifier, in bytes (vendor page "Use Limits", 1047/34381).
pub const USER_ID_LEN_MAX: usize = 32;

/// Checks a user name the way Chat bounds it: not empty, at most 32 bytes, no control characters.
/// The rest of the alphabet is left to Chat, whose pages disagree about it.
pub fn check_user_id(text: &str) -> Result<(), NameError> {
    if text.is_empty() {
        return Err(NameError::Empty);
    }
    if text.len() > USER_ID_LEN_MAX {
        return Err(NameError::TooLong);
    }
    // ASCII first: it is nearly every id, and the test of a byte is one comparison.
    let control = if text.is_ascii() {
        text.bytes().any(|byte| byte < 0x20 || byte == 0x7f)
    } else {
        text.chars().any(char::is_control)
    };
    if control { Err(NameError::Control) } else { Ok(()) }
}

/// The app administrator that signs every call, bounded like any user name.
///
/// A control character is refused because the text that is signed consists of lines: an identifier
/// with a line feed in it could imitate the lines after its own.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Identifier(Box<str>);

impl Identifier {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Identifier {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        check_user_id(text)?;
        Ok(Self(text.into()))
    }
}

/// What operators and callers call an app: `[a-z0-9-]{1,32}`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AppName(Box<str>);

impl AppName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for AppName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for AppName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        check_name(text)?;
        Ok(Self(text.into()))
    }
}

/// Checks what operators name apps and callers: `[a-z0-9-]{1,32}`.
pub(super) fn check_name(text: &str) -> Result<(), NameError> {
    if text.is_empty() {
        return Err(NameError::Empty);
    }
    if text.len() > 32 {
        return Err(NameError::TooLong);
    }
    if !text.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-')) {
        return Err(NameError::Alphabet);
    }
    Ok(())
}

/// The app's secret: whoever has it is administrator of every user of the app.
///
/// It has no `Display`, its `Debug` shows nothing of it, and its memory is wiped when it goes.
/// The console shows 64 hex digits, but the text itself is the key: it is never decoded.
#[derive(Clone)]
pub struct SecretKey(Zeroizing<Box<[u8]>>);

impl SecretKey {
    /// `None` if the text is empty.
    pub fn new(text: &str) -> Option<Self> {
        (!text.is_empty()).then(|| Self(Zeroizing::new(text.as_bytes().into())))
    }

    /// The key's bytes, for the code that signs and for nothing else.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// Whether the text looks as the console shows keys. `doctor` remarks on one that does not.
    pub fn is_64_hex_digits(&self) -> bool {
        self.0.len() == 64 && self.0.iter().all(u8::is_ascii_hexdigit)
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretKey(hidden)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_never_prints_itself() {
        let key = SecretKey::new("b2dbdd29fed7a43f").expect("not empty");
        assert_eq!(format!("{key:?}"), "SecretKey(hidden)");
        assert!(!key.is_64_hex_digits());
        assert!(SecretKey::new("").is_none());
    }

    #[test]
    fn user_ids_are_bounded_in_bytes_and_have_no_control_characters() {
        for good in ["a", "@RBT#001", "@TOA#_x", " ", "日本", &"x".repeat(32)] {
            assert_eq!(check_user_id(good), Ok(()), "{good:?}");
        }
        assert_eq!(check_user_id(""), Err(NameError::Empty));
        assert_eq!(check_user_id(&"x".repeat(33)), Err(NameError::TooLong));
        assert_eq!(check_user_id(&"日".repeat(11)), Err(NameError::TooLong));
        for bad in ["a\nb", "\0", "\x7f", "日\u{85}"] {
            assert_eq!(check_user_id(bad), Err(NameError::Control), "{bad:?}");
        }
    }

    #[test]
    fn app_names_have_a_small_alphabet() {
        assert!("main".parse::<AppName>().is_ok());
        assert!("eu-2".parse::<AppName>().is_ok());
        for bad in ["", "Main", "a_b", "a/b", &"a".repeat(33)] {
            assert!(bad.parse::<AppName>().is_err(), "{bad:?}");
        }
    }
}
