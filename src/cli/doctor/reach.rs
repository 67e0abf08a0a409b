//! Name, connection and TLS, one after the other, so that what fails can be told.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use rustls::{CertificateError, ClientConfig, Error as TlsError};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::cause::Cause;
use super::report::{Check, Status};
use crate::clock;
use crate::config::Endpoint;
use crate::error::display_chain;

/// For each step and address. Longer than the gateway waits, so that slow can be told from dead.
const STEP_TIMEOUT: Duration = Duration::from_secs(5);
/// Most addresses of a name that are tried, as in the gateway.
const ADDRESSES_MAX: usize = 16;

/// Why the endpoint cannot be reached.
pub(super) type Failure = (Cause, String);

/// Knocks at an endpoint as the gateway would, and writes down each step. No request is sent.
///
/// # Errors
/// The step that failed.
pub(super) async fn reach(
    endpoint: &Endpoint,
    tls: Arc<ClientConfig>,
    allowed: Duration,
    checks: &mut Vec<Check>,
) -> Result<(), Failure> {
    let begun = clock::now();
    let addresses = resolve(endpoint, checks).await?;
    let stream = connect(&addresses, checks).await?;
    if endpoint.tls {
        handshake(endpoint, tls, stream, checks).await?;
    } else {
        checks.push(Check::new("tls", Status::Skipped, "plain HTTP, which is for loopback only"));
    }
    let took = clock::now() - begun;
    if took > allowed {
        let text = format!("took {}, longer than upstream.connect_timeout allows", millis(took));
        checks.push(Check::new("speed", Status::Remark, text));
    }
    Ok(())
}

async fn resolve(endpoint: &Endpoint, checks: &mut Vec<Check>) -> Result<Vec<SocketAddr>, Failure> {
    let host = endpoint.host.trim_start_matches('[').trim_end_matches(']');
    let found = match timeout(STEP_TIMEOUT, lookup_host((host, endpoint.port))).await {
        Ok(Ok(addresses)) => Ok(addresses.take(ADDRESSES_MAX).collect::<Vec<_>>()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer within {}", millis(STEP_TIMEOUT))),
    };
    match found {
        Ok(addresses) if !addresses.is_empty() => {
            let shown: Vec<String> = addresses.iter().map(|address| address.ip().to_string()).collect();
            checks.push(Check::new("name", Status::Fine, format!("{host} is {}", shown.join(", "))));
            Ok(addresses)
        }
        Ok(_) => fail(checks, "name", Cause::Dns, format!("{host} has no address")),
        Err(why) => fail(checks, "name", Cause::Dns, format!("{host}: {why}")),
    }
}

/// The first connection that comes about. Every address is tried: a dead one among them costs callers time.
async fn connect(addresses: &[SocketAddr], checks: &mut Vec<Check>) -> Result<TcpStream, Failure> {
    let (mut first, mut dead) = (None, Vec::new());
    for address in addresses {
        let begun = clock::now();
        match timeout(STEP_TIMEOUT, TcpStream::connect(address)).await {
            Ok(Ok(stream)) if first.is_none() => first = Some((stream, *address, clock::now() - begun)),
            Ok(Ok(_)) => {}
            Ok(Err(error)) => dead.push(format!("{address}: {error}")),
            Err(_) => dead.push(format!("{address}: no answer within {}", millis(STEP_TIMEOUT))),
        }
    }
    let Some((stream, address, took)) = first else {
        return fail(checks, "connection", Cause::Connect, dead.join("; "));
    };
    checks.push(Check::new("connection", Status::Fine, format!("{address} in {}", millis(took))));
    if !dead.is_empty() {
        checks.push(Check::new("connection", Status::Remark, format!("not to all addresses: {}", dead.join("; "))));
    }
    Ok(stream)
}

async fn handshake(
    endpoint: &Endpoint,
    tls: Arc<ClientConfig>,
    stream: TcpStream,
    checks: &mut Vec<Check>,
) -> Result<(), Failure> {
    let host = endpoint.host.trim_start_matches('[').trim_end_matches(']');
    let name = match ServerName::try_from(host.to_owned()) {
        Ok(name) => name,
        Err(error) => return fail(checks, "tls", Cause::Tls, error.to_string()),
    };
    match timeout(STEP_TIMEOUT, TlsConnector::from(tls).connect(name, stream)).await {
        Ok(Ok(stream)) => {
            let version = match stream.get_ref().1.protocol_version() {
                Some(rustls::ProtocolVersion::TLSv1_3) => "TLS 1.3",
                Some(rustls::ProtocolVersion::TLSv1_2) => "TLS 1.2",
                _ => "TLS",
            };
            checks.push(Check::new("tls", Status::Fine, format!("{version}, a trusted certificate for {host}")));
            Ok(())
        }
        Ok(Err(error)) => fail(checks, "tls", cause_of(&error), display_chain(&error)),
        Err(_) => fail(checks, "tls", Cause::Tls, format!("no handshake within {}", millis(STEP_TIMEOUT))),
    }
}

fn cause_of(error: &io::Error) -> Cause {
    let Some(TlsError::InvalidCertificate(certificate)) =
        error.get_ref().and_then(|inner| inner.downcast_ref::<TlsError>())
    else {
        return Cause::Tls;
    };
    match certificate {
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => Cause::CertificateName,
        CertificateError::Expired
        | CertificateError::ExpiredContext { .. }
        | CertificateError::NotValidYet
        | CertificateError::NotValidYetContext { .. } => Cause::CertificateTime,
        _ => Cause::Certificate,
    }
}

fn fail<T>(checks: &mut Vec<Check>, name: &'static str, cause: Cause, detail: String) -> Result<T, Failure> {
    checks.push(Check::new(name, Status::Failed, detail.clone()));
    Err((cause, detail))
}

pub(super) fn millis(span: Duration) -> String {
    format!("{} ms", span.as_millis())
}
