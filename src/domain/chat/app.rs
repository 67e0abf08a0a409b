//! An app of Chat: its SDKAppID, its administrator, and its key.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
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
        } else if is_usual(text) {
            KeyShape::Usual
        } else {
            KeyShape::of_unusual(text)
        }
    }
}

/// Returns whether a key has 64 hex digits, as the console shows keys.
fn is_usual(text: &[u8]) -> bool {
    text.len() == 64 && text.iter().all(u8::is_ascii_hexdigit)
}

/// Returns whether a text is `NAME=VALUE`, as in a shell or in a file of environment variables. Padding of base64 is no
/// value.
fn is_assignment(text: &[u8]) -> bool {
    let text = text.strip_prefix(b"export ").unwrap_or(text);
    let Some(at) = text.iter().position(|byte| *byte == b'=') else { return false };
    let (name, value) = (&text[..at], &text[at + 1..]);
    let is_name = name.iter().all(|byte| byte.is_ascii_alphanumeric() || b"_-. ".contains(byte));
    is_name && name.first().is_some_and(|first| !first.is_ascii_digit()) && value.iter().any(|byte| *byte != b'=')
}

/// Returns whether a text is a JSON object or array, as of a secret manager.
fn is_json(text: &[u8]) -> bool {
    let is_bracketed = matches!(text, [b'{', .., b'}'] | [b'[', .., b']']);
    is_bracketed && serde_json::from_slice::<serde::de::IgnoredAny>(text).is_ok()
}

/// Returns whether a text is base64 of a key in the console's format, or any base64 with padding.
fn is_base64(text: &[u8]) -> bool {
    let Ok(decoded) = STANDARD.decode(text).map(Zeroizing::new) else { return false };
    is_usual(decoded.trim_ascii_end()) || text.ends_with(b"=") && text.len() >= BASE64_LEN_MIN
}

/// Minimum length of padded base64 that a key is taken for, in bytes. It encodes 16 bytes, the shortest secret in use.
const BASE64_LEN_MIN: usize = 24;

/// The format of a key. As text it describes the format for a person, without any of the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyShape {
    /// 64 hex digits, as the console shows keys.
    Usual,
    /// PEM, as in version 1 of the signature.
    Pem,
    /// Whitespace, a control character, or a byte order mark at one end.
    Blanks,
    /// A text in quotes.
    Quoted,
    /// `NAME=VALUE`.
    Assignment,
    /// A placeholder of a template or of a shell, such as `${NAME}`.
    Placeholder,
    /// A JSON object or array.
    Json,
    /// Base64, as in a Kubernetes Secret.
    Base64,
    /// Any other text, with its length in bytes.
    Unusual(usize),
}

impl KeyShape {
    fn of_unusual(text: &[u8]) -> Self {
        let is_quoted = text.len() > 2 && matches!(text, [first @ (b'"' | b'\'' | b'`'), .., last] if first == last);
        let is_placeholder = || {
            let contains = |part: &[u8]| text.windows(part.len()).any(|window| window == part);
            contains(b"${")
                || contains(b"{{")
                || text.starts_with(b"$")
                || text.starts_with(b"<") && text.ends_with(b">")
        };
        match () {
            () if is_quoted => KeyShape::Quoted,
            () if is_placeholder() => KeyShape::Placeholder,
            () if is_json(text) => KeyShape::Json,
            () if is_assignment(text) => KeyShape::Assignment,
            () if is_base64(text) => KeyShape::Base64,
            () => KeyShape::Unusual(text.len()),
        }
    }

    /// Returns whether it is a format that a key has by mistake. Any text may still be the key.
    pub fn is_likely_mistake(self) -> bool {
        matches!(
            self,
            KeyShape::Quoted | KeyShape::Assignment | KeyShape::Placeholder | KeyShape::Json | KeyShape::Base64
        )
    }
}

impl fmt::Display for KeyShape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            KeyShape::Usual => "64 hex digits, like the keys in the console",
            KeyShape::Pem => "PEM, which is not a secret key",
            KeyShape::Blanks => "begins or ends with whitespace or a byte order mark",
            KeyShape::Quoted => "looks like a key in quotes, which are part of it; write it without quotes",
            KeyShape::Assignment => "looks like NAME=VALUE, all of which is the key; write only the value",
            KeyShape::Placeholder => "looks like a placeholder such as ${NAME}; write the key itself",
            KeyShape::Json => "looks like JSON, all of which is the key; write only the key",
            KeyShape::Base64 => "looks like base64, which is not decoded; write the key itself, 64 hex digits",
            KeyShape::Unusual(len) => return write!(f, "{len} bytes that are not 64 hex digits"),
        })
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
        let key = "0aF9".repeat(16);
        for text in [format!("\"{key}\""), format!("'{key}'"), "`k`".to_owned()] {
            assert_eq!(shape(&text), KeyShape::Quoted, "{text}");
        }
        for text in [format!("CHAT_KEY={key}"), format!("export KEY={key}"), "secret_key = \"k\"".to_owned()] {
            assert_eq!(shape(&text), KeyShape::Assignment, "{text}");
        }
        for text in ["${CHAT_KEY}", "$CHAT_KEY", "{{ .Values.key }}", "<secret key>", "KEY=${CHAT_KEY}"] {
            assert_eq!(shape(text), KeyShape::Placeholder, "{text}");
        }
        for text in [STANDARD.encode(&key), STANDARD.encode(format!("{key}\n")), STANDARD.encode([0xff; 16])] {
            assert_eq!(shape(&text), KeyShape::Base64, "{text}");
        }
        for text in [format!("{{\"key\":\"{key}\"}}"), format!("[\"{key}\"]")] {
            assert_eq!(shape(&text), KeyShape::Json, "{text}");
        }
        for text in ["{key}", "[1", "\"", "\"\"", "a key", "x==", "1=a", "0aF90aF90aF90aF90aF90aF9", "p$ssw{rd"] {
            assert_eq!(shape(text), KeyShape::Unusual(text.len()), "{text}");
        }
    }

    #[test]
    fn descriptions_of_key_shapes_contain_no_key() {
        let key = "0badc0de5ec2e70badc0de5ec2e70badc0de5ec2e70badc0de5ec2e70badc0de";
        for text in [format!("'{key}'"), format!("KEY={key}"), format!("${{{key}}}"), key[1..].to_owned()] {
            let shape = SecretKey::new(&text).expect("not empty").shape();
            assert!(!shape.to_string().contains("0badc0de"), "{shape}");
        }
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
