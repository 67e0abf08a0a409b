//! `Cache-Control` in, `Cache-Status` out.

use std::time::Duration;

use http::HeaderMap;
use http::header::CACHE_CONTROL;

use crate::domain::pairs::check::CheckSummary;
use crate::domain::pairs::directives::CacheDirectives;

/// Reads the directives of a request (RFC 9111 section 5.2.1). Directives that cannot be read are ignored, as that
/// section requires.
pub fn read(headers: &HeaderMap) -> CacheDirectives {
    let mut directives = CacheDirectives::default();
    for value in headers.get_all(CACHE_CONTROL) {
        let Ok(text) = value.to_str() else { continue };
        for directive in text.split(',') {
            let (name, argument) = directive.split_once('=').unwrap_or((directive, ""));
            let seconds = || {
                let digits = argument.trim().trim_matches('"');
                let all_digits = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
                // A number that overflows counts as the largest one.
                all_digits.then(|| Duration::from_secs(digits.parse::<u32>().unwrap_or(u32::MAX).into()))
            };
            match name.trim().to_ascii_lowercase().as_str() {
                "no-cache" => directives.no_cache = true,
                "no-store" => directives.no_store = true,
                "only-if-cached" => directives.only_if_cached = true,
                "max-age" => directives.max_age = seconds().or(directives.max_age),
                "max-stale" => directives.max_stale = seconds().or(directives.max_stale),
                _ => {}
            }
        }
    }
    directives
}

/// Returns the value of `Cache-Status` (RFC 9211).
pub(super) fn cache_status(summary: &CheckSummary, directives: &CacheDirectives) -> String {
    let sources = &summary.sources;
    let outcome = if summary.served_stale {
        "fwd=stale"
    } else if sources.joined + sources.fetched + sources.missing == 0 {
        "hit"
    } else if directives.no_store {
        "fwd=bypass"
    } else if directives.no_cache || summary.rejected {
        "fwd=request"
    } else if sources.hit + sources.stale > 0 {
        "fwd=partial"
    } else if summary.expired {
        "fwd=stale"
    } else {
        "fwd=miss"
    };
    // Every response has one, and `format!` takes several times as long.
    let mut text = String::with_capacity(96);
    text.push_str("chatgate; ");
    text.push_str(outcome);
    text.push_str("; detail=\"hit=");
    push_number(&mut text, sources.hit);
    let rest = [
        (" joined=", sources.joined),
        (" fetched=", sources.fetched),
        (" flipped=", sources.flipped),
        (" stale=", sources.stale),
    ];
    for (name, count) in rest {
        text.push_str(name);
        push_number(&mut text, count);
    }
    if sources.missing > 0 {
        text.push_str(" missing=");
        push_number(&mut text, sources.missing);
    }
    text.push('"');
    text
}

fn push_number(text: &mut String, number: usize) {
    if number >= 10 {
        push_number(text, number / 10);
    }
    text.push(char::from(b'0' + (number % 10) as u8));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::pairs::directives::PairSources;

    fn directives(value: &'static str) -> CacheDirectives {
        let mut headers = HeaderMap::new();
        headers.insert(CACHE_CONTROL, http::HeaderValue::from_static(value));
        read(&headers)
    }

    #[test]
    fn directives_are_read_in_any_case_and_unreadable_ones_are_ignored() {
        let read = directives("No-Cache, max-age=7 ,MAX-STALE=\"9\",only-if-cached,foo=bar");
        assert!(read.no_cache && read.only_if_cached && !read.no_store);
        assert_eq!((read.max_age, read.max_stale), (Some(Duration::from_secs(7)), Some(Duration::from_secs(9))));
        assert_eq!(directives("max-age=-1, max-age=x, max-age"), CacheDirectives::default());
        assert_eq!(directives("max-age=99999999999999").max_age, Some(Duration::from_secs(u32::MAX.into())));
    }

    fn summary(hit: usize, joined: usize, fetched: usize) -> CheckSummary {
        CheckSummary {
            sources: PairSources { hit, joined, fetched, ..PairSources::default() },
            oldest: Duration::ZERO,
            rejected: false,
            expired: false,
            served_stale: false,
        }
    }

    #[test]
    fn cache_status_says_why_chat_was_asked() {
        let none = CacheDirectives::default();
        let (hit, partial, miss) = (summary(3, 0, 0), summary(1, 0, 2), summary(0, 1, 2));
        assert_eq!(cache_status(&hit, &none), "chatgate; hit; detail=\"hit=3 joined=0 fetched=0 flipped=0 stale=0\"");
        let sources = PairSources { hit: 1000, joined: 9, fetched: 10, flipped: 99, stale: 100, missing: 0 };
        let many = cache_status(&CheckSummary { sources, ..hit }, &none);
        assert!(many.ends_with("detail=\"hit=1000 joined=9 fetched=10 flipped=99 stale=100\""), "{many}");
        let sources = PairSources { hit: 27, missing: 3, ..PairSources::default() };
        let missing = cache_status(&CheckSummary { sources, ..hit }, &none);
        let detail = "detail=\"hit=27 joined=0 fetched=0 flipped=0 stale=0 missing=3\"";
        assert_eq!(missing, format!("chatgate; fwd=partial; {detail}"));
        let cases = [
            (CheckSummary { served_stale: true, ..hit }, none, "chatgate; fwd=stale; "),
            (partial, none, "chatgate; fwd=partial; "),
            (miss, none, "chatgate; fwd=miss; "),
            (CheckSummary { expired: true, ..miss }, none, "chatgate; fwd=stale; "),
            (miss, directives("no-store"), "chatgate; fwd=bypass; "),
            (miss, directives("no-cache"), "chatgate; fwd=request; "),
            (CheckSummary { rejected: true, ..partial }, directives("max-age=1"), "chatgate; fwd=request; "),
        ];
        for (summary, directives, start) in cases {
            let text = cache_status(&summary, &directives);
            assert!(text.starts_with(start), "{text} instead of {start}");
        }
    }
}
