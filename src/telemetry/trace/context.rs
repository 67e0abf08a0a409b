//! The trace context of a request or a call, and its header `traceparent` (W3C Trace Context).

use http::{HeaderMap, HeaderValue};

use crate::http::traceparent::{TRACEPARENT, Traceparent};

/// The defined flags, which are propagated: the trace is sampled, and its ID is random.
const FLAGS_KNOWN: u8 = SAMPLED | 0x02;
const SAMPLED: u8 = 0x01;

/// A trace ID in network byte order. Byte arrays, because integers of this size would enlarge every type that contains a
/// context.
pub(super) type TraceId = [u8; 16];
/// A span ID in network byte order.
pub(super) type SpanId = [u8; 8];

/// The context of a span: trace ID, span ID, and flags.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Context {
    pub(super) trace: TraceId,
    pub(super) span: SpanId,
    pub(super) flags: u8,
}

impl Context {
    /// Returns the context of the first span of a trace. Neither ID may be 0.
    pub(super) fn root(trace: u128, span: u64) -> Self {
        Self { trace: trace.to_be_bytes(), span: span.to_be_bytes(), flags: 0 }
    }

    /// Returns the context of another span of the same trace, sampled if this one is.
    pub(super) fn with_span(self, span: u64) -> Self {
        Self { span: span.to_be_bytes(), ..self }
    }

    pub(super) fn sampled(self, sampled: bool) -> Self {
        Self { flags: if sampled { self.flags | SAMPLED } else { self.flags & !SAMPLED }, ..self }
    }

    /// Returns the context of the caller's `traceparent`; `None` if there is not exactly one, or if it is invalid.
    pub(crate) fn of_caller(headers: &HeaderMap) -> Option<Self> {
        let mut values = headers.get_all(TRACEPARENT).iter();
        match (values.next(), values.next()) {
            (Some(value), None) => Traceparent::parse(value.as_bytes()).map(Self::from),
            _ => None,
        }
    }

    /// Returns the header `traceparent`.
    pub(crate) fn header(&self) -> HeaderValue {
        let Self { span, flags, .. } = self;
        let text = format!("00-{}-{:016x}-{flags:02x}", self.trace_id(), u64::from_be_bytes(*span));
        HeaderValue::try_from(text).expect("hexadecimal digits and hyphens are valid in a header")
    }

    /// Returns the trace ID as 32 hexadecimal digits, as in logs and headers.
    pub(crate) fn trace_id(&self) -> String {
        format!("{:032x}", u128::from_be_bytes(self.trace))
    }

    /// Returns whether the span is recorded and sent to the collector.
    pub(crate) fn is_sampled(&self) -> bool {
        self.flags & SAMPLED != 0
    }

    /// Returns the sampling key: the last 63 bits of the trace ID, as OpenTelemetry's samplers use them.
    pub(super) fn sample_key(&self) -> u64 {
        let [.., a, b, c, d, e, f, g, h] = self.trace;
        u64::from_be_bytes([a, b, c, d, e, f, g, h]) >> 1
    }
}

impl From<Traceparent> for Context {
    fn from(Traceparent { trace, span, flags }: Traceparent) -> Self {
        Self { trace, span, flags: flags & FLAGS_KNOWN }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VALID: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn parse(value: &str) -> Option<Context> {
        Traceparent::parse(value.as_bytes()).map(Context::from)
    }

    #[test]
    fn header_contains_the_parsed_context() {
        let context = parse(VALID).expect("a valid header");
        assert_eq!(context.header(), VALID);
        assert!(context.is_sampled());
        assert_eq!(context.trace_id(), "0af7651916cd43dd8448eb211c80319c");
        assert_eq!(context.sample_key(), 0x8448_eb21_1c80_319c >> 1);
        let child = context.with_span(7).sampled(false);
        assert_eq!(child.header(), "00-0af7651916cd43dd8448eb211c80319c-0000000000000007-00");
        // Unknown flags are dropped; both known ones are kept.
        let flags = |flags: &str| parse(&VALID.replace("-01", flags)).map(|context| context.flags);
        assert_eq!((flags("-00"), flags("-03"), flags("-ff"), flags("-fe")), (Some(0), Some(3), Some(3), Some(2)));
        assert_eq!(child.trace_id(), context.trace_id());
        assert!(!child.is_sampled());
    }

    #[test]
    fn repeated_headers_are_ignored() {
        let mut headers = HeaderMap::new();
        assert_eq!(Context::of_caller(&headers), None);
        headers.append(TRACEPARENT, HeaderValue::from_static(VALID));
        assert!(Context::of_caller(&headers).is_some());
        headers.append(TRACEPARENT, HeaderValue::from_static(VALID));
        assert_eq!(Context::of_caller(&headers), None);
    }
}
