//! Sending one call on a connection, and reading its response.

use std::pin::pin;
use std::time::UNIX_EPOCH;

use bytes::Bytes;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE, DATE};
use http::response::Parts;
use http::{HeaderMap, Method, Request};
use http_body_util::Full;
use hyper::body::Incoming;

use super::attempt::{AttemptError, AttemptTime, Call, ChatResponse};
use super::failover::LeasedConnection;
use super::pool::PooledConnection;
use super::signer::{Signature, Signer};
use super::{Upstream, redact};
use crate::capacity::CapacityGuard;
use crate::clock;
use crate::domain::chat::envelope::Envelope;
use crate::error::display_chain;
use crate::http::body::{BodyError, read_whole};
use crate::http::traceparent::TRACEPARENT;
use crate::http::wakeups::FilteredBody;

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
        if let Some(chat_now) = date_of(&head.headers) {
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
        })
    }
}

/// Returns the `Date` header in seconds since 1970, if there is a valid one.
fn date_of(headers: &HeaderMap) -> Option<u64> {
    let date = httpdate::parse_http_date(headers.get(DATE)?.to_str().ok()?).ok()?;
    Some(date.duration_since(UNIX_EPOCH).ok()?.as_secs())
}
