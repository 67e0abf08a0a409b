//! The name of a request, by which its caller, the log and the answer mean the same one.

use std::borrow::Cow;

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::clock;

/// The header that has it, of a request and of its answer.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Longest id that is taken from a caller, in bytes.
const LEN_MAX: usize = 128;

/// An id. One of ours becomes text where it is written, which of most requests is once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RequestId {
    /// The caller's own: visible ASCII.
    Callers(HeaderValue),
    /// Made by us.
    Ours(u128),
}

impl RequestId {
    /// The caller's if it can stand in a log line and in a header (1 to 128 visible ASCII characters, given once), else
    /// one of ours.
    pub fn of(headers: &HeaderMap) -> Self {
        let mut ids = headers.get_all(&REQUEST_ID).iter();
        match (ids.next(), ids.next()) {
            (Some(id), None) if (1..=LEN_MAX).contains(&id.len()) && id.as_bytes().iter().all(u8::is_ascii_graphic) => {
                RequestId::Callers(id.clone())
            }
            _ => RequestId::Ours(clock::request_number()),
        }
    }

    /// As the log has it.
    pub fn text(&self) -> Cow<'_, str> {
        match self {
            RequestId::Callers(id) => String::from_utf8_lossy(id.as_bytes()),
            RequestId::Ours(number) => Cow::Owned(format!("{number:032x}")),
        }
    }

    /// As the answer has it.
    pub fn into_header(self) -> HeaderValue {
        match self {
            RequestId::Callers(id) => id,
            RequestId::Ours(number) => HeaderValue::from_bytes(&hex(number)).expect("digits"),
        }
    }
}

/// 32 digits. By hand, since every request has one made and formatting takes ten times as long.
fn hex(number: u128) -> [u8; 32] {
    let mut digits = [0; 32];
    for (at, digit) in digits.iter_mut().enumerate() {
        let four_bits = (number >> (4 * (31 - at))) & 0xf;
        *digit = b"0123456789abcdef"[four_bits as usize];
    }
    digits
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(values: &[&str]) -> RequestId {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(REQUEST_ID, HeaderValue::from_bytes(value.as_bytes()).expect("a value"));
        }
        RequestId::of(&headers)
    }

    #[test]
    fn a_caller_s_id_is_kept_if_it_can_stand_anywhere() {
        let longest = "x".repeat(LEN_MAX);
        for good in ["7", "a-b_c.d:e/f", "\"!~", &longest] {
            let id = of(&[good]);
            assert_eq!(id.text(), good);
            assert_eq!(id, RequestId::Callers(id.clone().into_header()));
        }
        for bad in [&[][..], &[""], &["a b"], &["a\tb"], &["\u{e9}"], &["a", "a"], &["a", "b"], &[&(longest + "x")]] {
            assert!(matches!(of(bad), RequestId::Ours(_)), "{bad:?}");
        }
        assert_ne!(of(&[]), of(&[]));
    }

    #[test]
    fn numbers_are_written_as_hexadecimal_digits() {
        for number in [0, 1, 0xf, 0x10, u128::MAX, 0x0123_4567_89ab_cdef_fedc_ba98_7654_3210, 1 << 127] {
            let id = RequestId::Ours(number);
            assert_eq!(id.text(), format!("{number:032x}"));
            assert_eq!(id.clone().into_header(), id.text().as_ref());
        }
    }
}
