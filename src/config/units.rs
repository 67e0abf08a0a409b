//! Parsers of values: durations, sizes, rates, counts, and their bounds.

use std::num::NonZeroU32;
use std::ops::RangeInclusive;
use std::time::Duration;

use super::tree::Node;

/// Maximum rate in calls per second. Chat's limits are in the hundreds; benchmarks with a simulator need more.
const RATE_MAX: u32 = 10_000_000;

/// Maximum length of a duration in bytes. humantime adds the parts and would overflow on parts near 2^64 seconds, which
/// have more digits.
const DURATION_LEN_MAX: usize = 16;

/// Parses `250ms`, `30s`, `5m`, `24h` and sums such as `1m 30s`.
pub fn parse_duration(text: &str) -> Option<Duration> {
    if text.len() > DURATION_LEN_MAX {
        return None;
    }
    humantime::parse_duration(text).ok()
}

/// Formats a duration in the largest unit that gives a whole number: `24h`, `90s`, `3500ms`.
pub fn show_duration(duration: Duration) -> String {
    const UNITS: [(u128, &str); 5] =
        [(3_600_000_000, "h"), (60_000_000, "m"), (1_000_000, "s"), (1_000, "ms"), (1, "us")];
    let micros = duration.as_micros();
    if micros == 0 {
        return "0s".to_owned();
    }
    let (size, unit) = UNITS.into_iter().find(|(size, _)| micros.is_multiple_of(*size)).unwrap_or((1, "us"));
    format!("{}{unit}", micros / size)
}

/// Parses a size in bytes: a whole number with `B`, `KB`, `MB`, `GB` (powers of 1000), `KiB`, `MiB`, `GiB` (powers of
/// 1024), or no unit for bytes.
pub fn parse_size(text: &str) -> Option<usize> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let factor = SIZE_UNITS.iter().find(|(name, _)| *name == unit.trim_start_matches(' '))?.1;
    number.parse::<usize>().ok()?.checked_mul(factor)
}

/// Formats a size in the largest binary unit that gives a whole number.
pub fn show_size(bytes: usize) -> String {
    const SHOWN: [(usize, &str); 3] = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    let fits = SHOWN.into_iter().find(|(size, _)| bytes >= *size && bytes.is_multiple_of(*size));
    fits.map_or_else(|| format!("{bytes}B"), |(size, unit)| format!("{}{unit}", bytes / size))
}

/// Units of a size, in bytes.
const SIZE_UNITS: [(&str, usize); 8] = [
    ("", 1),
    ("B", 1),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
];

/// Parses `200/s`: a whole number of calls per second, from 1 to 10,000,000.
pub fn parse_rate(text: &str) -> Option<NonZeroU32> {
    let digits = text.strip_suffix("/s")?;
    let plain = digits.bytes().all(|byte| byte.is_ascii_digit());
    digits.parse().ok().filter(|rate: &NonZeroU32| plain && rate.get() <= RATE_MAX)
}

/// Message for a value that is not a string.
pub(super) const NOT_A_STRING: &str = "must be a string in quotes";

/// Message for a value that does not name a command.
pub(super) const NOT_A_COMMAND: &str = "not a command; use \"service/command\"";

/// A parsed value, or the message that describes what is wrong with it.
pub(super) type ParseResult<T> = Result<T, String>;

/// Parses a duration within bounds.
pub(super) fn duration(bounds: RangeInclusive<Duration>) -> impl Fn(&Node) -> ParseResult<Duration> {
    move |node| {
        let (least, most) = (show_duration(*bounds.start()), show_duration(*bounds.end()));
        match node.text().and_then(parse_duration) {
            Some(duration) if bounds.contains(&duration) => Ok(duration),
            Some(_) => Err(format!("out of range; use a duration from \"{least}\" to \"{most}\"")),
            None => Err(format!(
                "not a duration; use a number with ms, s, m, or h in quotes, from \"{least}\" to \"{most}\""
            )),
        }
    }
}

/// Parses a size within bounds.
pub(super) fn size(bounds: RangeInclusive<usize>) -> impl Fn(&Node) -> ParseResult<usize> {
    move |node| {
        let (least, most) = (show_size(*bounds.start()), show_size(*bounds.end()));
        // A number without quotes is in bytes.
        let bytes = node.integer().and_then(|number| usize::try_from(number).ok());
        match bytes.or_else(|| node.text().and_then(parse_size)) {
            Some(size) if bounds.contains(&size) => Ok(size),
            Some(_) => Err(format!("out of range; use a size from \"{least}\" to \"{most}\"")),
            None => Err(format!(
                "not a size; use a number with B, KB, MB, GB, KiB, MiB, or GiB in quotes, from \"{least}\" to \
                 \"{most}\""
            )),
        }
    }
}

/// Parses an integer within bounds.
pub(super) fn count(bounds: RangeInclusive<usize>) -> impl Fn(&Node) -> ParseResult<usize> {
    move |node| {
        let number = node.integer().and_then(|number| usize::try_from(number).ok());
        number.filter(|number| bounds.contains(number)).ok_or_else(|| {
            format!("must be a whole number from {} to {}, without quotes", bounds.start(), bounds.end())
        })
    }
}

pub(super) fn rate(node: &Node) -> ParseResult<NonZeroU32> {
    node.text()
        .and_then(parse_rate)
        .ok_or_else(|| format!("not a rate; use whole calls per second in quotes, from \"1/s\" to \"{RATE_MAX}/s\""))
}

/// Parses a number within bounds.
pub(super) fn fraction(bounds: RangeInclusive<f64>) -> impl Fn(&Node) -> ParseResult<f64> {
    move |node| {
        let number = node.number().filter(|number| bounds.contains(number));
        number.ok_or_else(|| format!("must be a number from {} to {}, without quotes", bounds.start(), bounds.end()))
    }
}

pub(super) fn boolean(node: &Node) -> ParseResult<bool> {
    node.boolean().ok_or_else(|| "must be true or false, without quotes".to_owned())
}

/// Parses a string that is not empty.
pub(super) fn text(node: &Node) -> ParseResult<String> {
    let text = node.text().ok_or_else(|| NOT_A_STRING.to_owned())?;
    if text.is_empty() { Err("must not be empty".to_owned()) } else { Ok(text.to_owned()) }
}

/// Parses a string with `FromStr`; its error is the message.
pub(super) fn parsed<T: std::str::FromStr<Err: std::fmt::Display>>(node: &Node) -> ParseResult<T> {
    let text = node.text().ok_or_else(|| NOT_A_STRING.to_owned())?;
    text.parse().map_err(|error: T::Err| error.to_string())
}

pub(super) const fn millis(number: u64) -> Duration {
    Duration::from_millis(number)
}

pub(super) const fn hours(number: u64) -> Duration {
    Duration::from_secs(number * 3600)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tree::parse_variable;

    fn node(raw: &str) -> Node {
        parse_variable(&"V".into(), raw.to_owned())
    }

    #[test]
    fn durations_are_parsed_and_formatted() {
        for (text, millis) in
            [("250ms", 250), ("30s", 30_000), ("5m", 300_000), ("24h", 86_400_000), ("1m 30s", 90_000), ("0s", 0)]
        {
            let duration = parse_duration(text).expect(text);
            assert_eq!(duration, Duration::from_millis(millis), "{text}");
            assert_eq!(parse_duration(&show_duration(duration)), Some(duration), "{text}");
        }
        assert_eq!(show_duration(Duration::from_secs(86_400)), "24h");
        assert_eq!(show_duration(Duration::from_millis(3500)), "3500ms");
        for bad in ["", "5", "s", "-5s", "5 parsecs", "1.s", "99999999999999999999s", "18446744073709551615s500ms500ms"]
        {
            assert_eq!(parse_duration(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn sizes_are_parsed_and_formatted() {
        for (text, bytes) in [
            ("1MiB", 1 << 20),
            ("256 KiB", 256 << 10),
            ("1GiB", 1 << 30),
            ("1KB", 1000),
            ("2MB", 2_000_000),
            ("1GB", 1_000_000_000),
            ("17B", 17),
            ("1048576", 1 << 20),
            ("0B", 0),
        ] {
            assert_eq!(parse_size(text), Some(bytes), "{text}");
            assert_eq!(parse_size(&show_size(bytes)), Some(bytes), "{text}");
        }
        for bad in ["", "MiB", "1mib", "1.5MiB", "-1B", "1TiB", "99999999999999999999B", "18446744073709551615KiB"] {
            assert_eq!(parse_size(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn rates_are_whole_and_positive() {
        assert_eq!(parse_rate("200/s"), NonZeroU32::new(200));
        assert_eq!(parse_rate("1/s"), NonZeroU32::new(1));
        assert_eq!(parse_rate("10000000/s"), NonZeroU32::new(RATE_MAX));
        for bad in ["0/s", "10000001/s", "200", "/s", "+5/s", "-5/s", "1.5/s", "200/m", "200 /s", "200/s "] {
            assert_eq!(parse_rate(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn bounds_are_inclusive() {
        let read = duration(Duration::from_millis(10)..=Duration::from_secs(60));
        assert!(read(&node("10ms")).is_ok() && read(&node("60s")).is_ok());
        for bad in ["9ms", "61s", "60001ms"] {
            assert!(read(&node(bad)).is_err_and(|message| message.contains("\"10ms\" to \"1m\"")), "{bad}");
        }
        let read = size(1024..=4096);
        assert!(read(&node("1KiB")).is_ok() && read(&node("4096")).is_ok());
        assert!(read(&node("1023B")).is_err() && read(&node("4097")).is_err() && read(&node("-1")).is_err());
        let read = count(1..=9);
        assert!(read(&node("1")).is_ok() && read(&node("9")).is_ok());
        assert!(read(&node("0")).is_err() && read(&node("10")).is_err() && read(&node("1.0")).is_err());
        let read = fraction(0.0..=1.0);
        assert!(read(&node("0")).is_ok() && read(&node("1.0")).is_ok());
        assert!(read(&node("1.01")).is_err() && read(&node("nan")).is_err() && read(&node("-0.1")).is_err());
    }
}
