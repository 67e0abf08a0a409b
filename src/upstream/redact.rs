//! Redaction of responses: a UserSig that Chat echoes never reaches the caller.

use bytes::Bytes;
use http::HeaderValue;
use memchr::{memchr, memchr3, memmem};

/// How many first bytes of a UserSig are searched for.
const PREFIX_LEN_MAX: usize = 16;
const HEX: &[u8; 16] = b"0123456789abcdef";

/// Returns the body with every occurrence of `usersig` replaced by asterisks. The length stays.
///
/// Each character may be plain, percent-encoded, or a JSON escape.
pub(super) fn redact(body: Bytes, usersig: &str) -> Bytes {
    let wanted = usersig.as_bytes();
    let Some(&first) = wanted.first().filter(|_| !cannot_contain(&body, wanted)) else { return body };
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(next) = memchr3(first, b'%', b'\\', &body[at..]) {
        at += next;
        match match_encoded(&body[at..], wanted) {
            Some(len) => {
                found.push(at..at + len);
                at += len;
            }
            None => at += 1,
        }
    }
    if found.is_empty() {
        return body;
    }
    let mut redacted = body.to_vec();
    found.into_iter().for_each(|range| redacted[range].fill(b'*'));
    Bytes::from(redacted)
}

/// Whether `text` certainly does not contain `wanted` in any encoding. This holds for nearly every response.
///
/// No encoding needs to change letters and digits. Unless a response escapes them all the same, every occurrence thus
/// has the same first bytes. A short prefix is enough: preparing the search for a long one takes longer than the search.
fn cannot_contain(text: &[u8], wanted: &[u8]) -> bool {
    // No encoding is shorter than the text.
    if text.len() < wanted.len() {
        return true;
    }
    let plain = wanted.iter().take(PREFIX_LEN_MAX).take_while(|byte| byte.is_ascii_alphanumeric()).count();
    let has = |needle: &[u8]| memmem::find(text, needle).is_some();
    !has(&wanted[..plain.max(1).min(wanted.len())]) && memchr(b'%', text).is_none() && !has(b"\\u00")
}

/// Redacts the value of a header.
pub(super) fn redact_header(value: &HeaderValue, usersig: &str) -> HeaderValue {
    if cannot_contain(value.as_bytes(), usersig.as_bytes()) {
        return value.clone();
    }
    let redacted = redact(Bytes::copy_from_slice(value.as_bytes()), usersig);
    HeaderValue::from_maybe_shared(redacted).unwrap_or_else(|_| HeaderValue::from_static("application/json"))
}

/// Returns how many bytes at the start of `text` encode `wanted`, if they do.
fn match_encoded(text: &[u8], wanted: &[u8]) -> Option<usize> {
    let mut at = 0;
    for character in wanted {
        let rest = text.get(at..)?;
        let hex = [character >> 4, character & 15].map(|digit| HEX[usize::from(digit)]);
        let is_hex = |escape: Option<&[u8]>| escape.is_some_and(|digits| digits.eq_ignore_ascii_case(&hex));
        at += match rest {
            [plain, ..] if plain == character => 1,
            [b'%', ..] if is_hex(rest.get(1..3)) => 3,
            [b'\\', b'u', b'0', b'0', ..] if is_hex(rest.get(4..6)) => 6,
            _ => return None,
        };
    }
    Some(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn redacted(text: &'static str) -> String {
        let body = redact(Bytes::from_static(text.as_bytes()), "eJw*a-b_");
        String::from_utf8(body.to_vec()).expect("UTF-8")
    }

    #[test]
    fn every_encoding_is_redacted_and_the_rest_stays() {
        assert_eq!(redacted("x eJw*a-b_ y eJw*a-b_"), "x ******** y ********");
        assert_eq!(redacted("x eJw%2Aa%2db%5F y"), "x ************** y");
        assert_eq!(redacted(r"x eJw\u002aa-b_ y"), "x ************* y");
        assert_eq!(redacted(r"x \u0065Jw*a-\u0062_ y"), "x ****************** y", "letters that need no escape");
        assert_eq!(redacted("x %65%4a%77%2a%61%2d%62%5f y"), "x ************************ y");
        assert_eq!(redacted(r"100 % \u00e4 eJw*a-b_"), r"100 % \u00e4 ********");
        for clean in ["", "nothing here", "eJw", "eJw*a-b", "eJw*a-bx", "eJw%2", r"\u0065Jw", "%65%4", "\\"] {
            assert_eq!(redacted(clean), clean);
        }
    }

    #[test]
    fn usersig_after_a_prefix_of_itself_is_redacted() {
        assert_eq!(redacted("eJw*eJw*a-b_"), "eJw*********");
    }
}
