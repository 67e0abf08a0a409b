//! Sending one call on a connection, and reading its response.

use std::pin::pin;
use std::time::UNIX_EPOCH;

use bytes::Bytes;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE, DATE};
use http::response::Parts;
use http::{Method, Request};
use http_body_util::Full;
use hyper::body::Incoming;
use parking_lot::Mutex;

use super::attempt::{AttemptError, AttemptTime, Call, ChatResponse};
use super::failover::LeasedConnection;
use super::pool::PooledConnection;
use super::signer::{Signature, Signer};
use super::{Upstream, redact};
use crate::capacity::CapacityGuard;
use crate::clock;
use crate::domain::chat::envelope::Envelope;
use crate::error::display_chain;
use crate::http::body::{BAD_TRAILER, BodyError, read_whole};
use crate::http::traceparent::TRACEPARENT;
use crate::http::wakeups::FilteredBody;

/// Length of a `Date` in the format that is sent today (RFC 9110 section 5.6.7).
const DATE_LEN: usize = 29;
const COMPRESSED: &str = "it is compressed, which was not requested";
const TOO_LARGE: &str = "it exceeds upstream.max_answer";
const NO_ERROR_CODE: &str = "it is not a JSON object with an integer ErrorCode";

impl Upstream {
    /// Signs and sends a call, and reads the complete response. The permit and the slot must have been taken.
    ///
    /// The result is there by the deadline, and within `upstream.attempt_timeout`. Dropping the future aborts the call,
    /// so the future of a write must not be dropped.
    ///
    /// # Errors
    /// [`AttemptError`].
    pub(crate) async fn send(
        &self,
        connection: LeasedConnection,
        signer: &Signer,
        signature: &Signature,
        call: Call<'_>,
        time: AttemptTime,
    ) -> Result<ChatResponse, AttemptError> {
        let until = time.deadline.min(time.begun + self.attempt_timeout);
        let exchange = pin!(self.exchange(connection, signer, signature, call));
        tokio::time::timeout_at(until.into(), exchange).await.unwrap_or(Err(AttemptError::TimedOut))
    }

    async fn exchange(
        &self,
        connection: LeasedConnection,
        signer: &Signer,
        signature: &Signature,
        call: Call<'_>,
    ) -> Result<ChatResponse, AttemptError> {
        let LeasedConnection { mut inner, side } = connection;
        let domain = self.domain(side);
        let mut request = Request::new(Full::new(call.body));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = signature.target(call.name, clock::random_u32()).into();
        *request.headers_mut() = domain.headers.clone();
        if let Some(traceparent) = call.traceparent {
            request.headers_mut().insert(TRACEPARENT, traceparent);
        }
        let response = domain.pool.send(&mut inner, request).await?;
        let (head, body) = response.into_parts();
        let (body, held) = self.read_body(&mut inner, &head, body).await?;
        domain.pool.release(inner);
        let error_code =
            Envelope::error_code(&body).map_err(|_| AttemptError::Invalid(NO_ERROR_CODE, head.status.as_u16()))?;
        // Only a response that is surely from Chat shows Chat's time.
        if let Some(chat_now) = head.headers.get(DATE).and_then(|date| self.last_date.seconds(date.as_bytes())) {
            signer.observe(chat_now, clock::unix_now());
        }
        let usersig = signature.usersig();
        let content_type = head.headers.get(CONTENT_TYPE).map(|value| redact::redact_header(value, usersig));
        let body = redact::redact(body, usersig);
        Ok(ChatResponse { status: head.status, version: head.version, content_type, body, error_code, held })
    }

    async fn read_body(
        &self,
        connection: &mut PooledConnection,
        head: &Parts,
        body: Incoming,
    ) -> Result<(Bytes, CapacityGuard), AttemptError> {
        let status = head.status.as_u16();
        if head.headers.get(CONTENT_ENCODING).is_some_and(|encoding| encoding != "identity") {
            return Err(AttemptError::Invalid(COMPRESSED, status));
        }
        let body = FilteredBody::new(connection.body(body), head.version);
        let read = pin!(read_whole(body, self.max_answer, &self.buffered)).await;
        read.map_err(|error| match error {
            BodyError::TooLarge => AttemptError::Invalid(TOO_LARGE, status),
            BodyError::NoRoom => AttemptError::OverCapacity,
            BodyError::Broken(error) => AttemptError::Broken(display_chain(&error)),
            BodyError::Trailer => AttemptError::Invalid(BAD_TRAILER, status),
        })
    }
}

/// The last valid `Date`, and its seconds since 1970. All responses of a second have the same one, and comparing takes a
/// tenth of the time of parsing.
#[derive(Default)]
pub(super) struct LastDate(Mutex<Option<([u8; DATE_LEN], u64)>>);

impl LastDate {
    /// Returns a `Date` in seconds since 1970, if it is valid.
    fn seconds(&self, date: &[u8]) -> Option<u64> {
        let Ok(bytes) = <[u8; DATE_LEN]>::try_from(date) else { return parse_date(date) };
        let mut last = self.0.lock();
        if let Some((_, seconds)) = last.filter(|(known, _)| *known == bytes) {
            return Some(seconds);
        }
        let seconds = parse_date(date)?;
        *last = Some((bytes, seconds));
        Some(seconds)
    }
}

fn parse_date(date: &[u8]) -> Option<u64> {
    let date = httpdate::parse_http_date(std::str::from_utf8(date).ok()?).ok()?;
    Some(date.duration_since(UNIX_EPOCH).ok()?.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_valid_date_is_read_whatever_came_before() {
        let last = LastDate::default();
        let cases = [
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(784_111_777)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(784_111_777)),
            ("Sun, 06 Nov 1994 08:49:38 GMT", Some(784_111_778)),
            ("Sun, 06 Nov 1994 08:49:61 GMT", None),
            ("Sunday, 06-Nov-94 08:49:37 GMT", Some(784_111_777)),
            ("", None),
            ("Sun, 06 Nov 1994 08:49:38 GMT", Some(784_111_778)),
        ];
        for (date, seconds) in cases {
            assert_eq!(last.seconds(date.as_bytes()), seconds, "{date}");
        }
    }
}
