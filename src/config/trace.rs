//! `[trace]`: where traces go, and how much of them.

use std::collections::BTreeMap;

use percent_encoding::percent_decode_str;
use rustls::pki_types::CertificateDer;

use super::address::{Endpoint, EndpointError};
use super::secret::read_ca_file;
use super::section::{Reader, Section};
use super::tls::file;
use super::tree::{Node, Place};
use super::units::{Reading, fraction};

/// `[trace]`: spans of requests and calls, sent in OTLP over gRPC.
#[derive(Debug, Clone, PartialEq)]
pub struct Trace {
    /// Who takes them.
    pub otlp: Endpoint,
    /// Certificates trusted there beside the public roots.
    pub extra_roots: Vec<CertificateDer<'static>>,
    /// Of the requests that come without a trace, the part that begins one, 0 to 1. Default 1. One that comes with a
    /// trace does as that says.
    pub sample: f64,
    /// What the spans are said to come from, by the names of OpenTelemetry's conventions: `service.name` always, and
    /// what `OTEL_RESOURCE_ATTRIBUTES` adds. At most [`ATTRIBUTES_MAX`].
    pub resource: BTreeMap<String, String>,
}

/// The default of `trace.sample`.
pub const SAMPLE_DEFAULT: f64 = 1.0;
/// Most attributes of the resource.
pub const ATTRIBUTES_MAX: usize = 64;
/// Longest name and longest value of an attribute, in bytes.
const TEXT_LEN_MAX: usize = 1024;

const SERVICE_NAME: &str = "service.name";
/// The name unless the environment has another.
const SERVICE: &str = "chatgate";

impl Trace {
    /// What `service.name` says.
    pub fn service(&self) -> &str {
        self.resource.get(SERVICE_NAME).map_or(SERVICE, String::as_str)
    }
}

/// The section, if it was written.
pub(super) fn trace(reader: &Reader<'_>, root: &mut Section<'_>) -> Option<Trace> {
    let written = root.has("trace");
    let mut section = root.section("trace");
    if !written {
        section.finish();
        return None;
    }
    let otlp = section.required("otlp", "otlp = \"http://HOST:4317\"", collector);
    let mut sample = SAMPLE_DEFAULT;
    section.read("sample", &mut sample, fraction(0.0..=1.0));
    let extra_roots = file(&mut section, "ca_file", false, read_ca_file).unwrap_or_default();
    if !extra_roots.is_empty() && otlp.as_ref().is_some_and(|otlp| !otlp.tls) {
        section.warning("ca_file", "is for TLS, and otlp begins with \"http://\"");
    }
    section.finish();
    Some(Trace { otlp: otlp?, extra_roots, sample, resource: resource(reader) })
}

/// Spans hold nothing that is secret, so clear text may go further than to this machine.
fn collector(node: &Node) -> Reading<Endpoint> {
    let text = node.text().ok_or_else(|| "must be a text in quotes".to_owned())?;
    Endpoint::parse_any(text).map_err(|error| match error {
        EndpointError::Extra => {
            "has more than scheme, host and port; write only \"http://HOST:4317\", and credentials \
                                 into the variable OTEL_EXPORTER_OTLP_HEADERS"
                .to_owned()
        }
        _ => "is not the address of an OTLP receiver; write \"http://HOST:4317\" or \"https://HOST:4317\"".to_owned(),
    })
}

/// What the variables say that OpenTelemetry has for it in every language.
fn resource(reader: &Reader<'_>) -> BTreeMap<String, String> {
    const ATTRIBUTES: &str = "OTEL_RESOURCE_ATTRIBUTES";
    let mut resource = BTreeMap::from([(SERVICE_NAME.to_owned(), SERVICE.to_owned())]);
    let listed = reader.variable(ATTRIBUTES).unwrap_or_default();
    for pair in listed.split(',').filter(|pair| !pair.trim().is_empty()) {
        // What is no good is left out, as OpenTelemetry wants it: no service stands still for want of a label.
        match attribute(pair) {
            Some((name, value)) if resource.len() < ATTRIBUTES_MAX || resource.contains_key(&name) => {
                resource.insert(name, value);
            }
            _ => {
                let place = Place::Variable(ATTRIBUTES.into());
                reader.warning(&place, "", "holds something that is not NAME=VALUE, or too much; it is left out");
            }
        }
    }
    let own = reader.variable("OTEL_SERVICE_NAME").filter(|name| (1..=TEXT_LEN_MAX).contains(&name.len()));
    if let Some(name) = own {
        resource.insert(SERVICE_NAME.to_owned(), name.to_owned());
    }
    resource
}

fn attribute(pair: &str) -> Option<(String, String)> {
    let (name, value) = pair.split_once('=')?;
    let decoded = |text: &str| percent_decode_str(text.trim()).decode_utf8().ok().map(|text| text.into_owned());
    let (name, value) = (decoded(name)?, decoded(value)?);
    (!name.is_empty() && name.len() <= TEXT_LEN_MAX && value.len() <= TEXT_LEN_MAX).then_some((name, value))
}
