//! The deadline of a request: `upstream.timeout`, or an earlier one that its caller sets.

use std::time::{Duration, Instant};

use crate::config::parse_duration;
use crate::domain::chat::command::CommandKind;
use crate::error::GatewayError;
use crate::http::headers::RequestHeaders;

/// The part of a deadline that is reserved for the call itself: a tenth of the whole time, up to this much.
const RESERVE_MAX: Duration = Duration::from_millis(250);
/// Shortest time that a caller may set. Less could never be met.
const TIMEOUT_MIN: Duration = Duration::from_millis(1);

/// Reads `Chatgate-Timeout`: how long the caller waits, if it says so.
///
/// # Errors
/// `bad_parameter` if it is not a single duration of at least 1 ms.
pub(super) fn caller_timeout(headers: &RequestHeaders<'_>) -> Result<Option<Duration>, GatewayError> {
    if !headers.timeout.is_present() {
        return Ok(None);
    }
    let text = headers.timeout.single().and_then(|value| value.to_str().ok());
    match text.and_then(parse_duration).filter(|timeout| *timeout >= TIMEOUT_MIN) {
        Some(timeout) => Ok(Some(timeout)),
        None => {
            let text = "header Chatgate-Timeout must be one duration of at least 1ms, such as 300ms or 2s";
            Err(GatewayError::BadParameter(text.to_owned()))
        }
    }
}

/// When a request and its calls end.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Deadline {
    /// The caller has its response by then.
    pub(super) response: Instant,
    /// A call must have its permit by then. A permit in the last moment would be wasted: the call would be cut off, and
    /// if it is a write, it would be unknown whether it was applied.
    pub(super) permit: Instant,
    /// A write that has left ends by then, whether its caller still waits or not.
    write: Instant,
}

impl Deadline {
    /// Begins now. `own` is what the caller set; it never exceeds `timeout`, which is `upstream.timeout`.
    pub(super) fn new(now: Instant, own: Option<Duration>, timeout: Duration) -> Self {
        let wait = own.map_or(timeout, |own| own.min(timeout));
        let reserve = (wait / 10).min(RESERVE_MAX);
        Self { response: now + wait, permit: now + (wait - reserve), write: now + timeout }
    }

    /// Returns when a call that has left must have ended.
    pub(super) fn of_call(&self, kind: CommandKind) -> Instant {
        match kind {
            CommandKind::Read => self.response,
            CommandKind::Write => self.write,
        }
    }

    /// Returns whether a write may continue after its caller has got a response.
    pub(super) fn may_outlive_its_caller(&self) -> bool {
        self.response < self.write
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderValue};

    use super::*;
    use crate::clock;

    fn read(values: &[&'static str]) -> Result<Option<Duration>, &'static str> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append("chatgate-timeout", HeaderValue::from_static(value));
        }
        caller_timeout(&RequestHeaders::of(&headers)).map_err(|error| error.wire().slug.text())
    }

    #[test]
    fn timeout_is_one_duration_of_at_least_a_millisecond() {
        assert_eq!(read(&[]), Ok(None));
        for (text, millis) in [("1ms", 1), ("300ms", 300), ("2s", 2000), ("1m 30s", 90_000)] {
            assert_eq!(read(&[text]), Ok(Some(Duration::from_millis(millis))), "{text}");
        }
        for text in ["", "0s", "999us", "300", "-1s", "soon", "99999999999999999999s"] {
            assert_eq!(read(&[text]), Err("bad_parameter"), "{text}");
        }
        assert_eq!(read(&["1s", "1s"]), Err("bad_parameter"));
    }

    #[test]
    fn callers_deadline_shortens_all_but_a_write_that_has_left() {
        let (now, ms) = (clock::now(), Duration::from_millis);
        for (own, response, permit) in [(None, 5000, 4750), (Some(300), 300, 270), (Some(9000), 5000, 4750)] {
            let deadline = Deadline::new(now, own.map(ms), ms(5000));
            assert_eq!((deadline.response - now, deadline.permit - now), (ms(response), ms(permit)), "{own:?}");
            assert_eq!(deadline.of_call(CommandKind::Read) - now, ms(response));
            assert_eq!(deadline.of_call(CommandKind::Write) - now, ms(5000));
            assert_eq!(deadline.may_outlive_its_caller(), response < 5000);
        }
    }
}
