//! The Chat simulator (`chatgate sandbox`).
//!
//! It verifies every signature and parameter, stores follows, friends, and blocklists, enforces the rate limit, and posts
//! signed webhooks, so that a gateway and its callers can be tested without an account. A call passes these steps:
//!
//! 1. `server`: connections, TLS (`tls`), and their bounds; `connection` is the part of a connection that calls use.
//! 2. `chat`: method, path, parameters and signature (`auth`), rate limit (`rate_limit`), and body.
//! 3. `faults`: the injected fault, if one matches.
//! 4. `commands`: the simulated commands, which use the `graph`; all other commands answer OK.
//! 5. `journal`: the record of the call, without signatures. `webhook`: the event it causes.
//!
//! The control API under `/__sandbox/` (`control`) injects faults, seeds the graph, and sets the clock (`skew`).

mod args;
mod auth;
mod chat;
mod chat_error;
mod commands;
mod connection;
mod control;
mod faults;
mod graph;
mod journal;
mod rate_limit;
mod server;
mod skew;
mod tls;
mod webhook;

#[cfg(test)]
#[path = "../../tests/unit/sandbox.rs"]
mod tests;

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::info;

pub use args::{SandboxArgs, SandboxArgsError};
pub use graph::{GraphHandle, GraphSize, SeedError, SeedGraph};
use tls::CA_FILE;
pub use tls::CertificateError;
pub use webhook::{WebhookTarget, WebhookUrlError};

use crate::domain::chat::app::{Identifier, SdkAppId, SecretKey};

/// The settings of a sandbox.
#[derive(Debug, Clone)]
pub struct SandboxConfig {
    /// Address to listen on. Any client that can connect can use the control API.
    pub listen: SocketAddr,
    /// The only app.
    pub sdkappid: SdkAppId,
    /// The only administrator of the app, which exists as a user too.
    pub identifier: Identifier,
    /// Key that verifies signatures.
    pub secret_key: SecretKey,
    /// HTTP or HTTPS.
    pub tls: SandboxTls,
    /// Rate limit in calls per second and command; calls over the limit get 60007.
    pub qps: NonZeroU32,
    /// Delay before each response. The content of the response is from before the delay.
    pub latency: Duration,
    /// Target of webhooks; `None` sends none.
    pub webhook: Option<WebhookTarget>,
    /// Initial users and relations, which `reset` restores.
    pub seed_graph: Option<SeedGraph>,
}

/// HTTP, or HTTPS with a certificate for localhost, 127.0.0.1, ::1, and the address of `listen`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SandboxTls {
    /// Plain HTTP.
    Off,
    /// HTTPS; [`Sandbox::ca_pem`] returns the CA.
    Memory,
    /// HTTPS; the CA is also written into this directory, as `ca.pem`.
    Dir(PathBuf),
}

/// Why a sandbox cannot start.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// The address cannot be bound.
    #[error("the simulator cannot listen on {address}")]
    Listen {
        /// The address of `listen`.
        address: SocketAddr,
        /// The cause.
        source: std::io::Error,
    },
    /// Creating the certificate failed.
    #[error("the simulator cannot create its certificate")]
    Tls(#[from] CertificateError),
    /// The CA cannot be written.
    #[error("the simulator cannot write {CA_FILE} into {}", .dir.display())]
    CaFile {
        /// The directory.
        dir: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The initial graph is invalid.
    #[error("the initial users and relations of the simulator are invalid")]
    Seed(#[from] SeedError),
}

/// A sandbox that has bound its address and is ready to run.
pub struct Sandbox {
    listener: TcpListener,
    address: SocketAddr,
    chat: Arc<chat::SimulatedChat>,
    tls: Option<(TlsAcceptor, String)>,
    webhook_sender: Option<webhook::WebhookSender>,
}

impl Sandbox {
    /// Binds the address and creates the certificate. Connections wait until [`Sandbox::run`].
    ///
    /// # Errors
    /// See [`SandboxError`].
    pub async fn bind(config: SandboxConfig) -> Result<Sandbox, SandboxError> {
        let seed = config.seed_graph.unwrap_or_default();
        // Validated here, so that every reset can add it again.
        GraphHandle::default().seed(&seed, 0)?;
        let tls = match config.tls {
            SandboxTls::Off => None,
            SandboxTls::Memory | SandboxTls::Dir(_) => Some(tls::generate(config.listen.ip())?),
        };
        if let (SandboxTls::Dir(dir), Some((_, pem))) = (&config.tls, &tls) {
            tls::write_ca(dir, pem).map_err(|source| SandboxError::CaFile { dir: dir.clone(), source })?;
        }
        let at_address = |source| SandboxError::Listen { address: config.listen, source };
        let listener = TcpListener::bind(config.listen).await.map_err(at_address)?;
        let address = listener.local_addr().map_err(at_address)?;
        let clock = skew::SkewedClock::default();
        let (webhooks, webhook_sender) =
            config.webhook.map(|target| webhook::WebhookQueue::new(target, config.sdkappid, clock.clone())).unzip();
        let account = auth::AppAccount { app: config.sdkappid, identifier: config.identifier, key: config.secret_key };
        let (qps, latency) = (config.qps, config.latency);
        let parts = chat::SimulatedChatParts { account, qps, latency, seed, clock, webhooks };
        let chat = Arc::new(chat::SimulatedChat::new(parts));
        Ok(Sandbox { listener, address, chat, tls, webhook_sender })
    }

    /// Returns the bound address, with the actual port if the configured port is 0.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns the CA of the certificate in PEM; `None` without TLS.
    pub fn ca_pem(&self) -> Option<&str> {
        self.tls.as_ref().map(|(_, pem)| pem.as_str())
    }

    /// Returns a handle to the graph. `POST reset` removes what was seeded through it.
    pub fn graph(&self) -> GraphHandle {
        self.chat.graph.clone()
    }

    /// Serves until the token is cancelled, then finishes the requests in flight, for at most two seconds.
    pub async fn run(self, shutdown: CancellationToken) {
        info!(listener = "sandbox", address = %self.address, "listening");
        let tracker = TaskTracker::new();
        if let Some(sender) = self.webhook_sender {
            tracker.spawn(sender.run(shutdown.clone()));
        }
        let tls = self.tls.map(|(acceptor, _)| acceptor);
        server::serve(self.listener, self.chat, tls, shutdown, tracker).await;
    }
}
