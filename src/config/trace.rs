//! `[trace]`: export of traces.

use std::collections::BTreeMap;
use std::fmt;

use http::header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HOST, TRANSFER_ENCODING};
use http::{HeaderName, HeaderValue, Uri};
use percent_encoding::percent_decode_str;
use rustls::pki_types::CertificateDer;

use super::address::{Endpoint, EndpointError};
use super::pem::{read_cas, read_named};
use super::section::{LoadContext, Section};
use super::tree::{Location, Node};
use super::units::{NOT_A_STRING, ParseResult, fraction};

/// `[trace]`: export of spans of requests and calls, in OTLP over HTTP.
#[derive(Debug, Clone, PartialEq)]
pub struct Trace {
    /// Receiver of the spans.
    pub otlp: OtlpUrl,
    /// Certificates trusted for the receiver in addition to the public roots.
    pub extra_roots: Vec<CertificateDer<'static>>,
    /// Fraction of the requests without a trace that start one, 0 to 1. Default 1. A request with a trace follows its
    /// sampling flag.
    pub sample: f64,
    /// Resource attributes of the spans, up to [`ATTRIBUTES_MAX`]: `service.name`, and the attributes from
    /// `OTEL_RESOURCE_ATTRIBUTES`.
    pub resource: BTreeMap<String, String>,
    /// Headers for the receiver, up to [`HEADERS_MAX`], from `OTEL_EXPORTER_OTLP_HEADERS`. `Debug` hides their values.
    pub headers: Vec<(HeaderName, HeaderValue)>,
}

/// The URL that spans are posted to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OtlpUrl {
    /// Scheme, host, and port.
    pub endpoint: Endpoint,
    /// Path, which ends with [`TRACES_PATH`].
    pub path: String,
}

/// Default of `trace.sample`.
pub const SAMPLE_DEFAULT: f64 = 1.0;
/// Maximum number of resource attributes.
pub const ATTRIBUTES_MAX: usize = 64;
/// Maximum number of headers for the receiver.
pub const HEADERS_MAX: usize = 32;
/// End of the path of every URL for traces (opentelemetry.io/docs/specs/otlp/#otlphttp-request).
pub const TRACES_PATH: &str = "/v1/traces";
/// Maximum length of the path of `trace.otlp`, in bytes.
const PATH_LEN_MAX: usize = 1024;
/// Maximum length of the name and of the value of an attribute, in bytes.
const TEXT_LEN_MAX: usize = 1024;
/// Maximum length of the value of a header, in bytes. Tokens can be long.
const HEADER_LEN_MAX: usize = 8 * 1024;
/// The port of receivers that speak only gRPC.
const GRPC_PORT: u16 = 4317;
/// Headers that chatgate sets.
const OWN_HEADERS: [HeaderName; 5] = [CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HOST, TRANSFER_ENCODING];

const SERVICE_NAME: &str = "service.name";
/// Default of `service.name`.
const SERVICE_DEFAULT: &str = "chatgate";

/// Warning for an attribute that is not used.
const INVALID_ATTRIBUTE: &str = "ignoring an attribute that is invalid or beyond the limit of 64; use NAME=VALUE";
/// Warning for a header that is not used.
const INVALID_HEADER: &str = "ignoring a header that is invalid, reserved, or beyond the limit of 32; use NAME=VALUE";
/// Problem of a URL that has more than origin and path.
const EXTRA_IN_URL: &str =
    "must be only \"http://HOST:4318\" and a path; put credentials into the variable OTEL_EXPORTER_OTLP_HEADERS";
/// Warning for a port at which receivers speak gRPC.
const SPEAKS_GRPC: &str =
    "4317 is the port for gRPC, but chatgate sends OTLP over HTTP; use the receiver's HTTP port, 4318";

impl Trace {
    /// Returns `service.name`.
    pub fn service(&self) -> &str {
        self.resource.get(SERVICE_NAME).map_or(SERVICE_DEFAULT, String::as_str)
    }

    /// Reads the section if it is present.
    pub(super) fn read(context: &LoadContext<'_>, root: &mut Section<'_>) -> Option<Self> {
        let is_present = root.has("trace");
        let mut section = root.section("trace");
        if !is_present {
            section.finish();
            return None;
        }
        let otlp = section.required("otlp", "otlp = \"http://HOST:4318\"", OtlpUrl::read);
        if otlp.as_ref().is_some_and(|otlp| otlp.endpoint.port == GRPC_PORT) {
            section.warning("otlp", SPEAKS_GRPC);
        }
        let mut sample = SAMPLE_DEFAULT;
        section.read("sample", &mut sample, fraction(0.0..=1.0));
        let extra_roots = read_named(&mut section, "ca_file", false, read_cas).unwrap_or_default();
        if !extra_roots.is_empty() && otlp.as_ref().is_some_and(|otlp| !otlp.endpoint.tls) {
            section.warning("ca_file", "has no effect, because otlp begins with \"http://\"; use \"https://\"");
        }
        section.finish();
        let (resource, headers) = (read_resource(context), read_headers(context));
        Some(Self { otlp: otlp?, extra_roots, sample, resource, headers })
    }
}

impl OtlpUrl {
    /// Parses a base URL, as in `OTEL_EXPORTER_OTLP_ENDPOINT`: [`TRACES_PATH`] is appended unless the URL ends with it.
    /// Plain HTTP is allowed to any machine, because spans contain no secrets.
    fn read(node: &Node) -> ParseResult<Self> {
        let text = node.text().ok_or_else(|| NOT_A_STRING.to_owned())?;
        let path_start = text.find("://").and_then(|scheme| Some(scheme + 3 + text[scheme + 3..].find('/')?));
        let (origin, base) = text.split_at(path_start.unwrap_or(text.len()));
        let endpoint = Endpoint::parse_any(origin).map_err(|error| match error {
            EndpointError::Extra => EXTRA_IN_URL,
            _ => "not the URL of an OTLP receiver; use \"http://HOST:4318\" or \"https://HOST:4318\"",
        })?;
        if base.contains(['?', '#']) {
            return Err(EXTRA_IN_URL.to_owned());
        }
        let base = base.trim_end_matches('/');
        let path = if base.ends_with(TRACES_PATH) { base.to_owned() } else { format!("{base}{TRACES_PATH}") };
        if path.len() > PATH_LEN_MAX || path.parse::<Uri>().is_err() {
            return Err(
                "the path is not valid in a URL or exceeds 1024 bytes; use \"http://HOST:4318/PATH\"".to_owned()
            );
        }
        Ok(Self { endpoint, path })
    }
}

impl fmt::Display for OtlpUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.endpoint, self.path)
    }
}

/// Reads the resource attributes from the standard environment variables of OpenTelemetry.
fn read_resource(context: &LoadContext<'_>) -> BTreeMap<String, String> {
    const ATTRIBUTES: &str = "OTEL_RESOURCE_ATTRIBUTES";
    let mut resource = BTreeMap::from([(SERVICE_NAME.to_owned(), SERVICE_DEFAULT.to_owned())]);
    let listed = context.variable(ATTRIBUTES).unwrap_or_default();
    for pair in listed.split(',').filter(|pair| !pair.trim().is_empty()) {
        // Invalid attributes are ignored with a warning, as OpenTelemetry specifies: a label must not stop a service.
        match attribute(pair) {
            Some((name, value)) if resource.len() < ATTRIBUTES_MAX || resource.contains_key(&name) => {
                resource.insert(name, value);
            }
            _ => {
                let location = Location::Variable(ATTRIBUTES.into());
                context.warning(&location, "", INVALID_ATTRIBUTE);
            }
        }
    }
    let own = context.variable("OTEL_SERVICE_NAME").filter(|name| (1..=TEXT_LEN_MAX).contains(&name.len()));
    if let Some(name) = own {
        resource.insert(SERVICE_NAME.to_owned(), name.to_owned());
    }
    resource
}

/// Reads the headers for the receiver from the standard environment variable of OpenTelemetry. Their values may be
/// credentials, so no warning repeats one.
fn read_headers(context: &LoadContext<'_>) -> Vec<(HeaderName, HeaderValue)> {
    const HEADERS: &str = "OTEL_EXPORTER_OTLP_HEADERS";
    let mut headers = Vec::new();
    let listed = context.variable(HEADERS).unwrap_or_default();
    for pair in listed.split(',').filter(|pair| !pair.trim().is_empty()) {
        match header(pair) {
            Some(header) if headers.len() < HEADERS_MAX => headers.push(header),
            _ => context.warning(&Location::Variable(HEADERS.into()), "", INVALID_HEADER),
        }
    }
    headers
}

/// Parses a header, `NAME=VALUE` with a percent-encoded value.
fn header(pair: &str) -> Option<(HeaderName, HeaderValue)> {
    let (name, value) = pair.split_once('=')?;
    let name: HeaderName = name.trim().parse().ok()?;
    let value: Vec<u8> = percent_decode_str(value.trim()).collect();
    let mut value = HeaderValue::from_bytes(&value).ok().filter(|value| value.len() <= HEADER_LEN_MAX)?;
    value.set_sensitive(true);
    (!OWN_HEADERS.contains(&name)).then_some((name, value))
}

/// Parses a percent-encoded `NAME=VALUE`.
fn attribute(pair: &str) -> Option<(String, String)> {
    let (name, value) = pair.split_once('=')?;
    let decoded = |text: &str| percent_decode_str(text.trim()).decode_utf8().ok().map(|text| text.into_owned());
    let (name, value) = (decoded(name)?, decoded(value)?);
    (!name.is_empty() && name.len() <= TEXT_LEN_MAX && value.len() <= TEXT_LEN_MAX).then_some((name, value))
}
