//! The two messages of OTLP (opentelemetry-proto 1.x, `collector/trace/v1/trace_service.proto`) in the binary format of
//! Protocol Buffers: encodes spans, and reads how many of them the collector rejected.
//!
//! A field begins with its key: number and wire type. A message in a field, a text, and bytes follow their length.

use std::collections::BTreeMap;

use super::context::Context;
use super::{Attribute, Span, SpanRole, Value};

/// Wire types (protobuf.dev/programming-guides/encoding).
const VARINT: u32 = 0;
const FIXED64: u32 = 1;
const LENGTH: u32 = 2;
const FIXED32: u32 = 5;

/// `SpanKind` of a request that chatgate serves.
const KIND_SERVER: u64 = 2;
/// `SpanKind` of a call that chatgate makes.
const KIND_CLIENT: u64 = 3;
/// `Status.code` of a span that counts as an error.
const STATUS_ERROR: u64 = 2;
/// `Span.flags`: the next flag is meaningful.
const FLAG_KNOWS_PARENT: u32 = 0x100;
/// `Span.flags`: the parent span belongs to another program.
const FLAG_REMOTE_PARENT: u32 = 0x200;

/// The source of all spans, encoded once: `Resource` and `InstrumentationScope`.
#[derive(Debug)]
pub(super) struct Source {
    resource: Vec<u8>,
    scope: Vec<u8>,
}

impl Source {
    /// Encodes the configured attributes, and those that name the program. A configured one replaces its default.
    pub(super) fn new(configured: &BTreeMap<String, String>) -> Self {
        const VERSION: &str = env!("CARGO_PKG_VERSION");
        let mut attributes = BTreeMap::from([
            ("service.version", VERSION),
            ("telemetry.sdk.language", "rust"),
            ("telemetry.sdk.name", "chatgate"),
            ("telemetry.sdk.version", VERSION),
        ]);
        attributes.extend(configured.iter().map(|(name, value)| (name.as_str(), value.as_str())));
        let (mut resource, mut scope) = (Vec::new(), Vec::new());
        for (name, value) in attributes {
            message(&mut resource, 1, |out| text_attribute(out, name, value));
        }
        bytes(&mut scope, 1, b"chatgate");
        bytes(&mut scope, 2, VERSION.as_bytes());
        Self { resource, scope }
    }

    /// Returns an `ExportTraceServiceRequest` with these spans, about 1 KiB each.
    pub(super) fn encode(&self, spans: &[Span]) -> Vec<u8> {
        let mut request = Vec::with_capacity(spans.len() * 1024);
        // `ResourceSpans`, with one `ScopeSpans`.
        message(&mut request, 1, |out| {
            bytes(out, 1, &self.resource);
            message(out, 2, |out| {
                bytes(out, 1, &self.scope);
                for span in spans {
                    message(out, 2, |out| encode_span(out, span));
                }
            });
        });
        request
    }
}

fn encode_span(out: &mut Vec<u8>, span: &Span) {
    let Span { handle, ended_at, end } = span;
    let is_request = handle.role == SpanRole::Request;
    let began_at = ended_at.saturating_sub(end.took);
    bytes(out, 1, &handle.context.trace);
    bytes(out, 2, &handle.context.span);
    if let Some(parent) = &handle.parent {
        bytes(out, 4, parent);
    }
    bytes(out, 5, end.name.as_bytes());
    number(out, 6, if is_request { KIND_SERVER } else { KIND_CLIENT });
    fixed64(out, 7, nanoseconds(began_at));
    fixed64(out, 8, nanoseconds(*ended_at));
    for Attribute { name, value } in &end.attributes {
        message(out, 9, |out| match value {
            Value::Text(text) => text_attribute(out, name, text),
            Value::Number(value) => number_attribute(out, name, *value),
        });
    }
    for link in &end.links {
        message(out, 13, |out| {
            bytes(out, 1, &link.trace);
            bytes(out, 2, &link.span);
            flags(out, 6, *link, false);
        });
    }
    if end.is_error {
        // Without a description, because the kind of error is an attribute.
        message(out, 15, |out| number(out, 3, STATUS_ERROR));
    }
    flags(out, 16, handle.context, is_request && handle.parent.is_some());
}

/// Writes a `KeyValue` with a text.
fn text_attribute(out: &mut Vec<u8>, name: &str, value: &str) {
    bytes(out, 1, name.as_bytes());
    message(out, 2, |out| bytes(out, 1, value.as_bytes()));
}

/// Writes a `KeyValue` with a number.
fn number_attribute(out: &mut Vec<u8>, name: &str, value: i64) {
    bytes(out, 1, name.as_bytes());
    // A negative number is sent as its two's complement.
    message(out, 2, |out| number(out, 3, value.cast_unsigned()));
}

fn flags(out: &mut Vec<u8>, field: u32, context: Context, is_parent_remote: bool) {
    let remote = if is_parent_remote { FLAG_REMOTE_PARENT } else { 0 };
    key(out, field, FIXED32);
    out.extend_from_slice(&(u32::from(context.flags) | FLAG_KNOWS_PARENT | remote).to_le_bytes());
}

/// Writes a field that is a message. Its length precedes it, but is known only afterwards.
fn message(out: &mut Vec<u8>, field: u32, write: impl FnOnce(&mut Vec<u8>)) {
    key(out, field, LENGTH);
    let start = out.len();
    write(out);
    let end = out.len();
    varint(out, (end - start) as u64);
    let moved = out.len() - end;
    out[start..].rotate_right(moved);
}

fn bytes(out: &mut Vec<u8>, field: u32, value: &[u8]) {
    key(out, field, LENGTH);
    varint(out, value.len() as u64);
    out.extend_from_slice(value);
}

fn number(out: &mut Vec<u8>, field: u32, value: u64) {
    key(out, field, VARINT);
    varint(out, value);
}

fn fixed64(out: &mut Vec<u8>, field: u32, value: u64) {
    key(out, field, FIXED64);
    out.extend_from_slice(&value.to_le_bytes());
}

fn key(out: &mut Vec<u8>, field: u32, wire_type: u32) {
    varint(out, u64::from(field << 3 | wire_type));
}

/// Writes seven bits per byte, the lowest first. All bytes but the last have the highest bit set.
fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn nanoseconds(since_epoch: std::time::Duration) -> u64 {
    u64::try_from(since_epoch.as_nanos()).unwrap_or(u64::MAX)
}

/// Returns the number of rejected spans in an `ExportTraceServiceResponse`: `partial_success.rejected_spans`. It is 0 if
/// the response is not such a message, because some collectors answer with another type.
pub(super) fn rejected_spans(response: &[u8]) -> u64 {
    let Some(Field::Bytes(partial_success)) = find(response, 1) else { return 0 };
    match find(partial_success, 1) {
        // The field is signed, and a negative count is none.
        Some(Field::Number(count)) => u64::try_from(count.cast_signed()).unwrap_or(0),
        _ => 0,
    }
}

/// The value of a field that was read.
enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// Returns the last field with this number, which is the one that counts. `None` if there is none or the message is
/// invalid.
fn find(mut message: &[u8], field: u64) -> Option<Field<'_>> {
    let mut found = None;
    while !message.is_empty() {
        let key = read_varint(&mut message)?;
        let value = match (key & 7) as u32 {
            VARINT => Field::Number(read_varint(&mut message)?),
            FIXED64 => Field::Bytes(message.split_off(..8)?),
            LENGTH => {
                let len = usize::try_from(read_varint(&mut message)?).ok()?;
                Field::Bytes(message.split_off(..len)?)
            }
            FIXED32 => Field::Bytes(message.split_off(..4)?),
            _ => return None,
        };
        if key >> 3 == field {
            found = Some(value);
        }
    }
    found
}

/// Reads a number of at most ten bytes; further bits are lost.
fn read_varint(message: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..70).step_by(7) {
        let byte = *message.split_off_first()?;
        value |= u64::from(byte & 0x7f).checked_shl(shift).unwrap_or(0);
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use opentelemetry_proto::tonic::collector::trace::v1::{
        ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse,
    };
    use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value};
    use opentelemetry_proto::tonic::resource::v1::Resource;
    use opentelemetry_proto::tonic::trace::v1::{self as proto, span};
    use proptest::prelude::*;
    use prost::Message as _;

    use super::super::{SpanEnd, SpanHandle};
    use super::*;

    const PARENT: [u8; 8] = [9; 8];

    fn context(flags: u8) -> Context {
        Context { trace: [7; 16], span: [8; 8], flags }
    }

    fn span(role: SpanRole, parent: Option<[u8; 8]>, attributes: Vec<Attribute>) -> Span {
        let handle = SpanHandle { context: context(3), parent, role };
        let took = Duration::from_millis(5);
        let end = SpanEnd { name: "a name".into(), took, attributes, links: vec![context(1)], is_error: true };
        Span { handle, ended_at: Duration::from_secs(1_700_000_000), end }
    }

    fn attribute(key: &str, value: any_value::Value) -> KeyValue {
        KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }), ..KeyValue::default() }
    }

    fn text(value: &str) -> any_value::Value {
        any_value::Value::StringValue(value.to_owned())
    }

    /// Decodes with the generated code of OpenTelemetry.
    fn decode(source: &Source, spans: &[Span]) -> proto::ResourceSpans {
        let bytes = source.encode(spans);
        let mut request = ExportTraceServiceRequest::decode(&*bytes).expect("a message");
        // Encoding it again shows that no field was skipped as unknown.
        assert_eq!(request.encoded_len(), bytes.len());
        assert_eq!(request.resource_spans.len(), 1);
        request.resource_spans.remove(0)
    }

    #[test]
    fn encoded_spans_decode_to_every_field() {
        let attributes = vec![Attribute::new("text", "a".repeat(300)), Attribute::new("number", -1)];
        let request = span(SpanRole::Request, Some(PARENT), attributes);
        let mut call = span(SpanRole::Call, None, Vec::new());
        call.end.is_error = false;
        call.end.links.clear();
        let configured = BTreeMap::from([("service.version".to_owned(), "mine".to_owned())]);
        let decoded = decode(&Source::new(&configured), &[request, call]);
        let attributes = vec![
            attribute("service.version", text("mine")),
            attribute("telemetry.sdk.language", text("rust")),
            attribute("telemetry.sdk.name", text("chatgate")),
            attribute("telemetry.sdk.version", text(env!("CARGO_PKG_VERSION"))),
        ];
        assert_eq!(decoded.resource, Some(Resource { attributes, ..Resource::default() }));
        let [scope] = decoded.scope_spans.as_slice() else { panic!("{decoded:#?}") };
        let version = env!("CARGO_PKG_VERSION").to_owned();
        let expected = InstrumentationScope { name: "chatgate".to_owned(), version, ..Default::default() };
        assert_eq!(scope.scope, Some(expected));
        let link = span::Link { trace_id: vec![7; 16], span_id: vec![8; 8], flags: 0x101, ..Default::default() };
        let request = proto::Span {
            trace_id: vec![7; 16],
            span_id: vec![8; 8],
            parent_span_id: PARENT.to_vec(),
            flags: 0x303,
            name: "a name".to_owned(),
            kind: span::SpanKind::Server.into(),
            start_time_unix_nano: 1_699_999_999_995_000_000,
            end_time_unix_nano: 1_700_000_000_000_000_000,
            attributes: vec![
                attribute("text", text(&"a".repeat(300))),
                attribute("number", any_value::Value::IntValue(-1)),
            ],
            links: vec![link],
            status: Some(proto::Status { code: proto::status::StatusCode::Error.into(), message: String::new() }),
            ..proto::Span::default()
        };
        let call = proto::Span {
            parent_span_id: Vec::new(),
            flags: 0x103,
            kind: span::SpanKind::Client.into(),
            attributes: Vec::new(),
            links: Vec::new(),
            status: None,
            ..request.clone()
        };
        assert_eq!(scope.spans, [request, call]);
    }

    #[test]
    fn partial_success_yields_its_count_and_other_bodies_none() {
        let response = |rejected_spans, error_message: &str| {
            let partial = ExportTracePartialSuccess { rejected_spans, error_message: error_message.to_owned() };
            ExportTraceServiceResponse { partial_success: Some(partial) }.encode_to_vec()
        };
        assert_eq!(rejected_spans(&response(300, "too old")), 300);
        assert_eq!(rejected_spans(&response(0, "a remark")), 0);
        assert_eq!(rejected_spans(&response(-1, "")), 0);
        let truncated = &response(300, "too old")[..5];
        for other in [b"".as_slice(), b"{\"partialSuccess\":{}}", b"ok", truncated, &[0xff; 20], &[0x0a, 0xff, 0x7f]] {
            assert_eq!(rejected_spans(other), 0, "{other:?}");
        }
    }

    proptest! {
        #[test]
        fn any_attribute_decodes_to_itself(value in ".{0,200}", count in any::<i64>()) {
            let attributes = vec![Attribute::new("text", value.clone()), Attribute::new("number", count)];
            let decoded = decode(&Source::new(&BTreeMap::new()), &[span(SpanRole::Call, Some(PARENT), attributes)]);
            let expected = [attribute("text", text(&value)), attribute("number", any_value::Value::IntValue(count))];
            prop_assert_eq!(&decoded.scope_spans[0].spans[0].attributes, &expected);
        }

        #[test]
        fn any_response_is_read_without_a_panic(response in proptest::collection::vec(any::<u8>(), 0..64)) {
            let ours = rejected_spans(&response);
            if let Ok(decoded) = ExportTraceServiceResponse::decode(&*response) {
                let theirs = decoded.partial_success.map_or(0, |partial| partial.rejected_spans);
                prop_assert_eq!(ours, u64::try_from(theirs).unwrap_or(0));
            }
        }
    }
}
