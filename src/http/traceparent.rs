//! The header `traceparent`, which continues a caller's trace (W3C Trace Context, sections 3.2 and 4.3).

use http::{HeaderName, HeaderValue};

use super::headers::RequestHeaders;

/// The header.
pub(crate) const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// Length of a value of version 00, in bytes.
const VERSION_0_LEN: usize = 55;
/// Maximum length of a value, in bytes. Later versions may append fields, which are not read.
const LEN_MAX: usize = 128;

/// A valid `traceparent`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Traceparent {
    /// Trace ID, not 0.
    pub trace: [u8; 16],
    /// ID of the caller's span, not 0.
    pub span: [u8; 8],
    /// All flags, also unknown ones.
    pub flags: u8,
}

impl Traceparent {
    /// Reads `VERSION-TRACE_ID-PARENT_ID-FLAGS`.
    pub(crate) fn parse(value: &[u8]) -> Option<Self> {
        let (known, appended) = value.split_at_checked(VERSION_0_LEN)?;
        let version = hex_byte(&known[..2])?;
        // Version 255 is forbidden. Later versions separate what they append by a hyphen.
        let may_end = match appended {
            [] => true,
            [b'-', ..] => version != 0 && value.len() <= LEN_MAX && appended.iter().all(u8::is_ascii_graphic),
            _ => false,
        };
        let has_hyphens = known[2] == b'-' && known[35] == b'-' && known[52] == b'-';
        if version == 0xff || !may_end || !has_hyphens {
            return None;
        }
        let (mut trace, mut span) = ([0; 16], [0; 8]);
        for (byte, digits) in trace.iter_mut().zip(known[3..35].chunks(2)) {
            *byte = hex_byte(digits)?;
        }
        for (byte, digits) in span.iter_mut().zip(known[36..52].chunks(2)) {
            *byte = hex_byte(digits)?;
        }
        let flags = hex_byte(&known[53..])?;
        (trace != [0; 16] && span != [0; 8]).then_some(Self { trace, span, flags })
    }
}

/// Returns the caller's `traceparent` as it was sent, if there is exactly one and it is valid. It is forwarded and logged,
/// so fields that a later version appended must be of the same characters.
pub(crate) fn traceparent(headers: &RequestHeaders<'_>) -> Option<HeaderValue> {
    let is_plain = |value: &[u8]| value.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f' | b'-'));
    let may_pass = |value: &&HeaderValue| is_plain(value.as_bytes()) && Traceparent::parse(value.as_bytes()).is_some();
    headers.traceparent.single().filter(may_pass).cloned()
}

/// Reads two hexadecimal digits, lower case as the standard requires.
fn hex_byte(digits: &[u8]) -> Option<u8> {
    let digit = |at: usize| match digits.get(at)? {
        digit @ b'0'..=b'9' => Some(digit - b'0'),
        digit @ b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    };
    Some(digit(0)? << 4 | digit(1)?)
}

#[cfg(test)]
mod tests {
    use http::HeaderMap;

    use super::*;

    const GOOD: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn valid_traceparent_is_read() {
        let read = Traceparent::parse(GOOD.as_bytes()).expect("valid");
        assert_eq!(u128::from_be_bytes(read.trace), 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c);
        assert_eq!((u64::from_be_bytes(read.span), read.flags), (0xb7ad_6b71_6920_3331, 1));
        let flags = |flags: &str| Traceparent::parse(GOOD.replace("-01", flags).as_bytes()).map(|read| read.flags);
        assert_eq!((flags("-00"), flags("-ff")), (Some(0), Some(0xff)));
    }

    #[test]
    fn only_later_versions_may_append_fields() {
        assert!(Traceparent::parse(GOOD.replace("00-0", "01-0").as_bytes()).is_some());
        assert!(Traceparent::parse(format!("01{}-more", &GOOD[2..]).as_bytes()).is_some());
        for bad in [
            String::new(),
            "00".to_owned(),
            GOOD[..54].to_owned(),
            format!("{GOOD}-more"),
            format!("01{}more", &GOOD[2..]),
            format!("01{}-mo re", &GOOD[2..]),
            format!("01{}-{}", &GOOD[2..], "x".repeat(100)),
            GOOD.replace("00-0", "ff-0"),
            GOOD.replace("0af", "0AF"),
            GOOD.replace("0af", "0xf"),
            GOOD.replace("-01", "-0g"),
            GOOD.replace('-', "_"),
            GOOD.replace("0af7651916cd43dd8448eb211c80319c", &"0".repeat(32)),
            GOOD.replace("b7ad6b7169203331", &"0".repeat(16)),
        ] {
            assert_eq!(Traceparent::parse(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn repeated_or_invalid_traceparent_is_ignored() {
        let of = |values: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(TRACEPARENT, HeaderValue::from_static(value));
            }
            traceparent(&RequestHeaders::of(&headers))
        };
        assert_eq!(of(&[GOOD]), Some(HeaderValue::from_static(GOOD)));
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[GOOD, GOOD]), None);
        assert_eq!(of(&["00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01"]), None);
    }
}
