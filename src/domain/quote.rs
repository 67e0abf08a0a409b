//! Texts in messages: their maximum length, and values that a message may repeat.
//!
//! A message may quote the value that is wrong, on one line and shortened, but never a part that could be a credential: a
//! key is easily pasted where a name or a path belongs.

use std::borrow::Cow;

/// Maximum length of a message to a caller and of a line of the log, in bytes.
pub const MESSAGE_LEN_MAX: usize = 1024;

/// Minimum number of letters and digits in a piece that could be a key. The console's keys have 64, `openssl rand -hex 16`
/// prints 32, and names of files and hosts are rarely that long.
const KEY_LEN_MIN: usize = 32;
/// Maximum length of a shown value, in bytes.
const SHOWN_LEN_MAX: usize = 240;
/// Maximum length of a name that [`plain_name`] accepts, in bytes.
const NAME_LEN_MAX: usize = 64;
/// What a message shows in place of an omitted part.
const OMITTED: &str = "...";

/// Returns whether a part of a text could be a key: a piece without blanks, `/`, `.`, `-`, and `_` that has at least 32
/// letters and digits.
pub fn looks_like_key(text: &str) -> bool {
    text.split(is_separator).any(is_key)
}

/// Returns whether a name of a file or of a variable could be a secret itself: a key, or base64, in which `/` and `-` are
/// not separators.
pub fn looks_like_secret(text: &str) -> bool {
    looks_like_key(text) || looks_like_base64(text)
}

/// Returns a value in quotes, as [`shown`] shows it.
pub fn quoted(value: &str) -> String {
    format!("\"{}\"", shown(value))
}

/// Returns a value on one line, of at most 240 bytes. Parts that could be a key, and credentials in front of an `@`, become
/// `...`.
pub fn shown(value: &str) -> String {
    let value = without_credentials(value);
    let mut shown = format!("{:?}", without_keys(&value));
    shown.pop();
    shown.remove(0);
    if shown.len() > SHOWN_LEN_MAX {
        // Both ends, because the end of a path is its name.
        let half = (SHOWN_LEN_MAX - OMITTED.len()) / 2;
        let (start, end) = (floor(&shown, half), floor(&shown, shown.len() - half + 3));
        shown.replace_range(start..end, OMITTED);
    }
    shown
}

/// Returns a text with `...` in place of each piece that could be a key.
pub fn without_keys(text: &str) -> String {
    pieces(text).map(|piece| if is_key(piece) { OMITTED } else { piece }).collect()
}

/// Returns a name from outside if a message may repeat it: 1 to 64 ASCII letters, digits, `_`, and `-` that cannot be a key
/// or a part of a signature.
pub fn plain_name(name: &str) -> Option<&str> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
    // Every UserSig begins so: it is zlib in base64.
    let is_safe = !looks_like_secret(name) && !name.starts_with("eJ");
    Some(name).filter(|name| (1..=NAME_LEN_MAX).contains(&name.len()) && name.bytes().all(is_plain) && is_safe)
}

/// Inserts the wrong value into a message `<what is wrong>; <remedy>`, in front of the remedy.
pub fn with_value(message: &str, shown: &str) -> String {
    match message.split_once("; ") {
        Some((what, remedy)) => format!("{what}: {shown}; {remedy}"),
        None => format!("{message}: {shown}"),
    }
}

/// Shortens a text to [`MESSAGE_LEN_MAX`] bytes.
pub fn shorten(text: &str) -> Cow<'_, str> {
    shorten_to(text, MESSAGE_LEN_MAX)
}

/// Shortens a text to `max` bytes, at least 3. A shortened text ends with `...`.
pub fn shorten_to(text: &str, max: usize) -> Cow<'_, str> {
    if text.len() <= max {
        return Cow::Borrowed(text);
    }
    Cow::Owned(format!("{}{OMITTED}", &text[..floor(text, max - OMITTED.len())]))
}

/// Returns the largest character boundary up to `at`.
fn floor(text: &str, at: usize) -> usize {
    (0..=at.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0)
}

fn is_separator(character: char) -> bool {
    matches!(character, '/' | '.' | '-' | '_') || character.is_whitespace() || character.is_control()
}

fn is_key(piece: &str) -> bool {
    piece.bytes().filter(u8::is_ascii_alphanumeric).count() >= KEY_LEN_MIN
}

/// Splits a text into pieces and the separators between them.
fn pieces(text: &str) -> impl Iterator<Item = &str> {
    text.split_inclusive(is_separator).flat_map(|piece| {
        let separator = piece.chars().next_back().filter(|last| is_separator(*last)).map_or(0, char::len_utf8);
        let (piece, separator) = piece.split_at(piece.len() - separator);
        [piece, separator]
    })
}

/// Omits what precedes the last `@`, which in a URL are a name and a password, and the query of a URL. In a path, `@` has no
/// meaning.
fn without_credentials(value: &str) -> Cow<'_, str> {
    if value.starts_with('/') {
        return Cow::Borrowed(value);
    }
    let (scheme, rest) = value.split_at(value.find("://").map_or(0, |at| at + 3));
    let (credentials, rest) = rest.split_at(rest.rfind('@').unwrap_or(0));
    let (rest, query) = rest.split_at(rest.find('?').filter(|_| !scheme.is_empty()).map_or(rest.len(), |at| at + 1));
    if credentials.is_empty() && query.is_empty() {
        return Cow::Borrowed(value);
    }
    let omitted = |part: &str| if part.is_empty() { "" } else { OMITTED };
    Cow::Owned([scheme, omitted(credentials), rest, omitted(query)].concat())
}

/// Returns whether a text could be a key in base64: long, without a dot, not an absolute path, and with capitals, small
/// letters, and digits.
fn looks_like_base64(text: &str) -> bool {
    let is_base64 = |byte: u8| byte.is_ascii_alphanumeric() || b"+/=-_*".contains(&byte);
    let has = |kind: fn(&u8) -> bool| text.as_bytes().iter().any(kind);
    text.len() >= KEY_LEN_MIN
        && !text.starts_with('/')
        && text.bytes().all(is_base64)
        && has(u8::is_ascii_uppercase)
        && has(u8::is_ascii_lowercase)
        && has(u8::is_ascii_digit)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KEY: &str = "0badc0de5ec2e70badc0de5ec2e70badc0de5ec2e70badc0de5ec2e70badc0de";

    #[test]
    fn thirty_two_letters_and_digits_in_one_piece_look_like_a_key() {
        for key in [KEY, &KEY[..32], &format!("/run/{KEY}"), &format!("{KEY}.txt"), &format!("x {KEY}")] {
            assert!(looks_like_key(key), "{key}");
        }
        // Punctuation that names rarely have is not a separator.
        assert!(looks_like_key("abcdefgh+ijklmnopqr=stuvwxyz0123456789"));
        for name in
            ["", "main", &KEY[..31], "a-name-of-many-words-that-is-much-longer", "/a/path/to/some/file/in/a/tree"]
        {
            assert!(!looks_like_key(name), "{name}");
        }
    }

    #[test]
    fn base64_looks_like_a_secret_and_paths_do_not() {
        for secret in [KEY, "kq3/Xw9+Zt1/Ab2+Qe8/Rr5+Mm0/Pp7+Ss4=", "kq3-Xw9_Zt1-Ab2_Qe8-Rr5_Mm0-Pp7_Ss4"] {
            assert!(looks_like_secret(secret), "{secret}");
        }
        for path in ["/run/Secrets2/chat/key/of/the/main/app", "secrets/chat/key/of/the/main/app", "chat-key", "Key.2"]
        {
            assert!(!looks_like_secret(path), "{path}");
        }
    }

    #[test]
    fn values_are_quoted_without_keys_and_credentials() {
        for (value, expected) in [
            ("mars", r#""mars""#),
            ("", r#""""#),
            ("a \"b\"\n\u{1b}", r#""a \"b\"\n\u{1b}""#),
            (KEY, r#""...""#),
            (&format!("/etc/chatgate/{KEY}"), r#""/etc/chatgate/...""#),
            (&format!("{KEY}/x-{KEY}.pem"), r#"".../x-....pem""#),
            ("https://me:secret@host/x", r#""https://...@host/x""#),
            ("https://host/x?token=secret", r#""https://host/x?...""#),
            ("redis://:a/b?c@d@host", r#""redis://...@host""#),
            (":secret@host:6379", r#""...@host:6379""#),
            ("@RBT#1", r#""@RBT#1""#),
            ("/etc/chatgate@main.toml", r#""/etc/chatgate@main.toml""#),
        ] {
            assert_eq!(quoted(value), expected, "{value}");
        }
    }

    #[test]
    fn only_short_plain_names_are_repeated() {
        for name in ["x", "callback", "sdk_appid", "Chatgate-App", &"a-".repeat(32)] {
            assert_eq!(plain_name(name), Some(name));
        }
        let signature = "eJwtzLsOgjAYQOF3-WcT";
        for name in ["", "a b", "a[]", "a%20", "a.b", "ä", "a\n", signature, KEY, &"a-".repeat(33)] {
            assert_eq!(plain_name(name), None, "{name}");
        }
    }

    #[test]
    fn value_precedes_the_remedy() {
        assert_eq!(
            with_value("unknown region; valid regions: china", "\"mars\""),
            "unknown region: \"mars\"; valid regions: china"
        );
        assert_eq!(with_value("is empty", "\"\""), "is empty: \"\"");
    }

    #[test]
    fn long_texts_are_shortened_at_a_character() {
        assert_eq!(shorten("short"), "short");
        let text = "ä".repeat(MESSAGE_LEN_MAX);
        assert!((MESSAGE_LEN_MAX - 1..=MESSAGE_LEN_MAX).contains(&shorten(&text).len()));
        assert!(shorten(&text).ends_with("ä..."));
        let path = format!("/{}/name", "a b/".repeat(100));
        assert!(quoted(&path).len() <= SHOWN_LEN_MAX + 2 && quoted(&path).ends_with("/name\""), "{}", quoted(&path));
    }

    proptest! {
        #[test]
        fn quoted_values_have_one_line_a_bound_and_no_key(before in "\\PC{0,80}", after in any::<String>(), key in "[A-Za-z0-9]{32,80}") {
            let quoted = quoted(&format!("{before}{key}{after}"));
            prop_assert!(quoted.len() <= SHOWN_LEN_MAX + 2 && !quoted.contains('\n'), "{}", quoted);
            prop_assert!(!quoted.contains(&key[8..24]), "{}", quoted);
        }

        #[test]
        fn shortened_texts_are_bounded(text in any::<String>(), max in 3usize..40) {
            let short = shorten_to(&text, max);
            prop_assert!(short.len() <= max);
            prop_assert!(text.starts_with(short.trim_end_matches(OMITTED)) || short == text);
        }
    }
}
