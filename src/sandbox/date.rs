//! The `Date` header of a clock that may be wrong on purpose.

use std::time::{Duration, UNIX_EPOCH};

/// A moment as an HTTP date (RFC 9110, section 5.6.7), such as `Sun, 06 Nov 1994 08:49:37 GMT`.
/// Moments past the year 9999 are given as its end.
pub(super) fn http_date(unix: Duration) -> String {
    const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    const LAST_SECOND_OF_9999: u64 = 253_402_300_799;
    let seconds = unix.as_secs().min(LAST_SECOND_OF_9999);
    // "1994-11-06T08:49:37Z": the library knows the calendar, here the parts are put in order.
    let iso = humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(seconds)).to_string();
    let month = iso[5..7].parse::<usize>().map_or("Jan", |month| MONTHS[month - 1]);
    let day = DAYS[(seconds / 86_400 % 7) as usize];
    format!("{day}, {} {month} {} {} GMT", &iso[8..10], &iso[..4], &iso[11..19])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_of_the_standard_and_of_the_edges() {
        let date = |seconds| http_date(Duration::from_secs(seconds));
        assert_eq!(date(784_111_777), "Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(date(0), "Thu, 01 Jan 1970 00:00:00 GMT");
        assert_eq!(date(1_709_210_096), "Thu, 29 Feb 2024 12:34:56 GMT");
        assert_eq!(date(u64::MAX), "Fri, 31 Dec 9999 23:59:59 GMT");
    }
}
