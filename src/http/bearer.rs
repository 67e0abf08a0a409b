//! The token in `Authorization: Bearer TOKEN`.

use http::HeaderMap;
use http::header::AUTHORIZATION;

use crate::domain::caller::TOKEN_LEN_MAX;

/// Returns the token of a request with exactly one `Authorization` header. The scheme `Bearer` may have any case
/// (RFC 6750 section 2.1, RFC 9110 section 11.1). `None` if the token is longer than any valid token.
pub(crate) fn bearer_token(headers: &HeaderMap) -> Option<&[u8]> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let (Some(value), None) = (values.next(), values.next()) else { return None };
    let (scheme, rest) = value.as_bytes().split_at_checked("Bearer ".len())?;
    let token = rest.trim_ascii_start();
    (scheme.eq_ignore_ascii_case(b"bearer ") && (1..=TOKEN_LEN_MAX).contains(&token.len())).then_some(token)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn token_of(values: &[&'static str]) -> Option<String> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(AUTHORIZATION, HeaderValue::from_static(value));
        }
        bearer_token(&headers).map(|token| String::from_utf8_lossy(token).into_owned())
    }

    #[test]
    fn bearer_token_is_read_from_a_single_header() {
        for good in ["Bearer abc", "bearer abc", "BEARER abc", "Bearer   abc"] {
            assert_eq!(token_of(&[good]).as_deref(), Some("abc"), "{good}");
        }
        for bad in ["", "Bearer", "Bearer ", "Bearer\tabc", "Basic abc", "abc", "Bearerabc", " Bearer abc"] {
            assert_eq!(token_of(&[bad]), None, "{bad:?}");
        }
        assert_eq!(token_of(&[]), None);
        assert_eq!(token_of(&["Bearer abc", "Bearer abc"]), None);
        // A comma does not separate tokens.
        assert_eq!(token_of(&["Bearer a, Bearer b"]).as_deref(), Some("a, Bearer b"));
        let mut headers = HeaderMap::new();
        for (len, is_token) in [(TOKEN_LEN_MAX, true), (TOKEN_LEN_MAX + 1, false)] {
            let value = HeaderValue::try_from(format!("Bearer {}", "x".repeat(len))).expect("visible");
            headers.insert(AUTHORIZATION, value);
            assert_eq!(bearer_token(&headers).is_some(), is_token, "{len}");
        }
    }
}
