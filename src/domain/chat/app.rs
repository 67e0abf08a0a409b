//! An app of Chat: its SDKAppID, its administrator, and its key.

use std::fmt;
use std::str::FromStr;

use zeroize::Zeroizing;

/// The number that Chat assigns to an app: unsigned, 32 bits, never 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SdkAppId(u32);

impl SdkAppId {
    /// Returns `None` for 0, which no app has.
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

/// Why a text is not a valid name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum NameError {
    #[error("is empty")]
    Empty,
    #[error("is longer than 32 bytes")]
    TooLong,
    #[error("contains a control character")]
    Control,
    #[error("may contain only a-z, 0-9, and '-'")]
    Alphabet,
}

/// Maximum length of a UserID or identifier, in bytes (vendor page "Use Limits", 1047/34381).
pub const USER_ID_LEN_MAX: usize = 32;

/// Checks a UserID against the limits of Chat: 1 to 32 bytes, no control characters. The remaining rules are left to
/// Chat, because the vendor's pages disagree about them.
pub fn check_user_id(text: &str) -> Result<(), NameError> {
    if text.is_empty() {
        return Err(NameError::Empty);
    }
    if text.len() > USER_ID_LEN_MAX {
        return Err(NameError::TooLong);
    }
    // ASCII first: nearly every ID is ASCII, and checking a byte takes one comparison.
    let control = if text.is_ascii() {
        text.bytes().any(|byte| byte < 0x20 || byte == 0x7f)
    } else {
        text.chars().any(char::is_control)
    };
    if control { Err(NameError::Control) } else { Ok(()) }
}

/// The app administrator that signs every call, with the limits of any UserID.
///
/// Control characters are rejected because the signed text consists of lines: an identifier with a line feed could
/// imitate the lines that follow it.
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

/// The configured name of an app: `[a-z0-9-]{1,32}`.
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

/// Checks the configured name of an app or caller: `[a-z0-9-]{1,32}`.
pub(crate) fn check_name(text: &str) -> Result<(), NameError> {
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

/// The secret key of an app. It gives administrator rights over every user of the app.
///
/// It has no `Display`, `Debug` hides it, and its memory is wiped on drop. The console shows 64 hex digits, but the
/// text itself is the key: it is never decoded.
#[derive(Clone)]
pub struct SecretKey(Zeroizing<Box<[u8]>>);

impl SecretKey {
    /// Returns `None` if the text is empty.
    pub fn new(text: &str) -> Option<Self> {
        (!text.is_empty()).then(|| Self(Zeroizing::new(text.as_bytes().into())))
    }

    /// Returns the key's bytes. Only the code that signs may call it.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// Returns the format of the text, for `chatgate doctor`. Any text is accepted as a key.
    pub fn shape(&self) -> KeyShape {
        let text = &self.0;
        let is_space =
            |byte: Option<&u8>| byte.is_some_and(|byte| byte.is_ascii_whitespace() || byte.is_ascii_control());
        if text.trim_ascii_start().starts_with(b"-----BEGIN") {
            KeyShape::Pem
        } else if text.starts_with("\u{feff}".as_bytes()) || is_space(text.first()) || is_space(text.last()) {
            KeyShape::Blanks
        } else if text.len() == 64 && text.iter().all(u8::is_ascii_hexdigit) {
            KeyShape::Usual
        } else {
            KeyShape::Unusual(text.len())
        }
    }
}

/// The format of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyShape {
    /// 64 hex digits, as the console shows keys.
    Usual,
    /// PEM, as in version 1 of the signature.
    Pem,
    /// Whitespace, a control character, or a byte order mark at one end.
    Blanks,
    /// Any other text, with its length in bytes.
    Unusual(usize),
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
    fn debug_hides_the_key() {
        let key = SecretKey::new("b2dbdd29fed7a43f").expect("not empty");
        assert_eq!(format!("{key:?}"), "SecretKey(hidden)");
        assert!(SecretKey::new("").is_none());
    }

    #[test]
    fn key_shapes_are_recognized() {
        let shape = |text: &str| SecretKey::new(text).expect("not empty").shape();
        assert_eq!(shape(&"0aF9".repeat(16)), KeyShape::Usual);
        assert_eq!(shape(&"0aF9".repeat(15)), KeyShape::Unusual(60));
        assert_eq!(shape(&"0aG9".repeat(16)), KeyShape::Unusual(64));
        for text in [" key", "key ", "key\t", "\u{feff}key"] {
            assert_eq!(shape(text), KeyShape::Blanks, "{text:?}");
        }
        assert_eq!(shape("-----BEGIN PRIVATE KEY-----\\nMIG\\n"), KeyShape::Pem);
    }

    #[test]
    fn user_ids_have_1_to_32_bytes_without_control_characters() {
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
    fn app_names_have_a_limited_alphabet() {
        assert!("main".parse::<AppName>().is_ok());
        assert!("eu-2".parse::<AppName>().is_ok());
        for bad in ["", "Main", "a_b", "a/b", &"a".repeat(33)] {
            assert!(bad.parse::<AppName>().is_err(), "{bad:?}");
        }
    }
}
