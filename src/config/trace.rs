//! `[trace]`: export of traces.

use std::collections::BTreeMap;

use percent_encoding::percent_decode_str;
use rustls::pki_types::CertificateDer;

use super::address::{Endpoint, EndpointError};
use super::pem::{read_cas, read_named};
use super::section::{LoadContext, Section};
use super::tree::{Location, Node};
use super::units::{NOT_A_STRING, ParseResult, fraction};

/// `[trace]`: export of spans of requests and calls, in OTLP over gRPC.
#[derive(Debug, Clone, PartialEq)]
pub struct Trace {
    /// Endpoint of the OTLP receiver.
    pub otlp: Endpoint,
    /// Certificates trusted for the receiver in addition to the public roots.
    pub extra_roots: Vec<CertificateDer<'static>>,
    /// Fraction of the requests without a trace that start one, 0 to 1. Default 1. A request with a trace follows its
    /// sampling flag.
    pub sample: f64,
    /// Resource attributes of the spans, up to [`ATTRIBUTES_MAX`]: `service.name`, and the attributes from
    /// `OTEL_RESOURCE_ATTRIBUTES`.
    pub resource: BTreeMap<String, String>,
}

/// Default of `trace.sample`.
pub const SAMPLE_DEFAULT: f64 = 1.0;
/// Maximum number of resource attributes.
pub const ATTRIBUTES_MAX: usize = 64;
/// Maximum length of the name and of the value of an attribute, in bytes.
const TEXT_LEN_MAX: usize = 1024;

const SERVICE_NAME: &str = "service.name";
/// Default of `service.name`.
const SERVICE_DEFAULT: &str = "chatgate";

/// Warning for an attribute that is not used.
const INVALID_ATTRIBUTE: &str = "ignoring an attribute that is invalid or beyond the limit of 64; use NAME=VALUE";

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
        let otlp = section.required("otlp", "otlp = \"http://HOST:4317\"", receiver);
        let mut sample = SAMPLE_DEFAULT;
        section.read("sample", &mut sample, fraction(0.0..=1.0));
        let extra_roots = read_named(&mut section, "ca_file", false, read_cas).unwrap_or_default();
        if !extra_roots.is_empty() && otlp.as_ref().is_some_and(|otlp| !otlp.tls) {
            section.warning("ca_file", "has no effect, because otlp begins with \"http://\"; use \"https://\"");
        }
        section.finish();
        Some(Self { otlp: otlp?, extra_roots, sample, resource: read_resource(context) })
    }
}

/// Parses the endpoint of the receiver. Plain HTTP is allowed to any machine, because spans contain no secrets.
fn receiver(node: &Node) -> ParseResult<Endpoint> {
    let text = node.text().ok_or_else(|| NOT_A_STRING.to_owned())?;
    Endpoint::parse_any(text).map_err(|error| match error {
        EndpointError::Extra => {
            "must be only \"http://HOST:4317\"; put credentials into the variable OTEL_EXPORTER_OTLP_HEADERS".to_owned()
        }
        _ => "not the URL of an OTLP receiver; use \"http://HOST:4317\" or \"https://HOST:4317\"".to_owned(),
    })
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

/// Parses a percent-encoded `NAME=VALUE`.
fn attribute(pair: &str) -> Option<(String, String)> {
    let (name, value) = pair.split_once('=')?;
    let decoded = |text: &str| percent_decode_str(text.trim()).decode_utf8().ok().map(|text| text.into_owned());
    let (name, value) = (decoded(name)?, decoded(value)?);
    (!name.is_empty() && name.len() <= TEXT_LEN_MAX && value.len() <= TEXT_LEN_MAX).then_some((name, value))
}
