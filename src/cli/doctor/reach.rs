//! DNS, connection, proxy, and TLS handshake with a domain, as separate steps.

use std::io;
use std::net::{IpAddr, SocketAddr};
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
use crate::config::{Endpoint, Proxy};
use crate::domain::policy::proxy::{ConnectFailure, ProxyFailure};
use crate::error::display_chain;
use crate::upstream::tunnel::{self, Target};

/// Timeout per step and address. It is longer than the gateway's, to distinguish slow from unreachable.
const STEP_TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum number of addresses that are tried per name, as in the gateway.
const ADDRESSES_MAX: usize = 16;
/// The check of the proxy.
const PROXY: &str = "proxy";

/// The reason why a step failed.
pub(super) struct Failure {
    pub(super) cause: Cause,
    /// Observed error.
    pub(super) detail: String,
}

/// Connects to an endpoint like the gateway, without sending a request. Adds a check per step.
///
/// # Errors
/// The failure of the first step that failed.
pub(super) async fn reach(
    endpoint: &Endpoint,
    tls: Arc<ClientConfig>,
    proxy: Option<&Proxy>,
    connect_timeout: Duration,
    checks: &mut Vec<Check>,
) -> Result<(), Failure> {
    let started = clock::now();
    let stream = match proxy {
        Some(proxy) => connect_through(proxy, endpoint, checks).await?,
        None => {
            let addresses = resolve(endpoint, checks).await?;
            connect(&addresses, checks).await?
        }
    };
    if endpoint.tls {
        handshake(endpoint, tls, stream, checks).await?;
    } else {
        checks.push(Check::new("tls", Status::Skipped, "plain HTTP, which is allowed for loopback only"));
    }
    let took = clock::now() - started;
    if took > connect_timeout {
        let text = format!("took {}, which exceeds upstream.connect_timeout", millis(took));
        checks.push(Check::new("speed", Status::Remark, text));
    }
    Ok(())
}

/// Resolves the name of the endpoint.
async fn resolve(endpoint: &Endpoint, checks: &mut Vec<Check>) -> Result<Vec<SocketAddr>, Failure> {
    let host = endpoint.host.trim_start_matches('[').trim_end_matches(']');
    match look_up(host, endpoint.port).await {
        Ok(addresses) => {
            checks.push(Check::new("name", Status::Ok, describe_name(host, &addresses)));
            Ok(addresses)
        }
        Err(cause) => fail(checks, "name", Cause::Dns, cause),
    }
}

/// Returns the addresses of a name, at least one.
async fn look_up(host: &str, port: u16) -> Result<Vec<SocketAddr>, String> {
    match timeout(STEP_TIMEOUT, lookup_host((host, port))).await {
        Ok(Ok(addresses)) => match addresses.take(ADDRESSES_MAX).collect::<Vec<_>>() {
            none if none.is_empty() => Err(format!("{host} has no address")),
            addresses => Ok(addresses),
        },
        Ok(Err(error)) => Err(format!("{host}: {error}")),
        Err(_) => Err(format!("{host}: no response within {}", millis(STEP_TIMEOUT))),
    }
}

/// Connects to the proxy and opens a tunnel to the endpoint, whose name the proxy resolves.
async fn connect_through(proxy: &Proxy, endpoint: &Endpoint, checks: &mut Vec<Check>) -> Result<TcpStream, Failure> {
    let host = proxy.host.trim_start_matches('[').trim_end_matches(']');
    let addresses = match look_up(host, proxy.port).await {
        Ok(addresses) => addresses,
        Err(cause) => return fail(checks, PROXY, Cause::ProxyUnreachable, cause),
    };
    let Connected { first, unreachable } = connect_to_all(&addresses).await;
    let Some((mut stream, address, took)) = first else {
        return fail(checks, PROXY, Cause::ProxyUnreachable, unreachable.join("; "));
    };
    checks.push(Check::new(PROXY, Status::Ok, format!("{proxy} at {address} in {}", millis(took))));
    checks.push(Check::new("name", Status::Skipped, "the proxy resolves it"));
    let (started, target) = (clock::now(), Target { host: &endpoint.host, port: endpoint.port });
    let mut asked = false;
    let opening = timeout(STEP_TIMEOUT, tunnel::open(&mut stream, proxy, target, &mut asked)).await;
    let (failure, detail) = match opening {
        Ok(Ok(())) => {
            let took = millis(clock::now() - started);
            checks.push(Check::new("connection", Status::Ok, format!("through the proxy in {took}")));
            return Ok(stream);
        }
        Ok(Err(error)) => (error.failure, error.cause),
        // As in the gateway, a proxy that is silent after the request waits for the target.
        Err(_) if asked => (ConnectFailure::Domain, format!("no answer of the proxy within {}", millis(STEP_TIMEOUT))),
        Err(_) => {
            let detail = format!("no answer of the proxy within {}", millis(STEP_TIMEOUT));
            (ConnectFailure::Proxy(ProxyFailure::Invalid), detail)
        }
    };
    fail(checks, "connection", Cause::of_connection(failure), detail)
}

/// Describes the addresses of a name. A literal IP address has no others.
fn describe_name(host: &str, addresses: &[SocketAddr]) -> String {
    if host.parse::<IpAddr>().is_ok() {
        return format!("{host} is an IP address");
    }
    let ips: Vec<String> = addresses.iter().map(|address| address.ip().to_string()).collect();
    format!("{host} resolves to {}", ips.join(", "))
}

/// The result of connecting to all addresses of a name.
struct Connected {
    /// The first connection, its address, and how long it took.
    first: Option<(TcpStream, SocketAddr, Duration)>,
    /// The addresses without a connection, each with its error.
    unreachable: Vec<String>,
}

/// Tries every address, because an unreachable one delays callers.
async fn connect_to_all(addresses: &[SocketAddr]) -> Connected {
    let (mut first, mut unreachable) = (None, Vec::new());
    for address in addresses {
        let started = clock::now();
        match timeout(STEP_TIMEOUT, TcpStream::connect(address)).await {
            Ok(Ok(stream)) if first.is_none() => first = Some((stream, *address, clock::now() - started)),
            Ok(Ok(_)) => {}
            Ok(Err(error)) => unreachable.push(format!("{address}: {error}")),
            Err(_) => unreachable.push(format!("{address}: no response within {}", millis(STEP_TIMEOUT))),
        }
    }
    Connected { first, unreachable }
}

/// Returns the first successful connection.
async fn connect(addresses: &[SocketAddr], checks: &mut Vec<Check>) -> Result<TcpStream, Failure> {
    let Connected { first, unreachable } = connect_to_all(addresses).await;
    let Some((stream, address, took)) = first else {
        return fail(checks, "connection", Cause::Connect, unreachable.join("; "));
    };
    checks.push(Check::new("connection", Status::Ok, format!("{address} in {}", millis(took))));
    if !unreachable.is_empty() {
        checks.push(Check::new(
            "connection",
            Status::Remark,
            format!("some addresses are unreachable: {}", unreachable.join("; ")),
        ));
    }
    Ok(stream)
}

/// Makes the TLS handshake.
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
            checks.push(Check::new("tls", Status::Ok, format!("{version}, trusted certificate for {host}")));
            Ok(())
        }
        Ok(Err(error)) => fail(checks, "tls", cause_of_tls_error(&error), display_chain(&error)),
        Err(_) => fail(checks, "tls", Cause::Tls, format!("handshake not completed within {}", millis(STEP_TIMEOUT))),
    }
}

/// Classifies an error of the TLS handshake.
fn cause_of_tls_error(error: &io::Error) -> Cause {
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

/// Adds a failed check and returns the failure.
fn fail<T>(checks: &mut Vec<Check>, name: &'static str, cause: Cause, detail: String) -> Result<T, Failure> {
    checks.push(Check::new(name, Status::Failed, detail.clone()));
    Err(Failure { cause, detail })
}

/// Formats a duration in milliseconds.
pub(super) fn millis(duration: Duration) -> String {
    format!("{} ms", duration.as_millis())
}
