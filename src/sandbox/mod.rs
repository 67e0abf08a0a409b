//! A stand-in for Chat that says no.
//!
//! It checks every signature and parameter, keeps a real follow graph, holds to the call limit,
//! posts signed webhooks and takes orders, so that a gateway and its callers can be tried without an
//! account. A call passes these steps:
//!
//! 1. `server`: connections, TLS (`tls`), bounds; `link` is what a call may do to its connection;
//! 2. `chat`: method, path, parameters and signature (`auth`), limit (`rate`), body;
//! 3. `faults`: whether something is to go wrong;
//! 4. `commands`: the follow family and accounts, on the `graph`; the others answer OK;
//! 5. `journal`: what came, without signatures; `webhook`: what others are told.
//!
//! Orders come on `/__sandbox/` (`orders`). The clock (`skew`) can be set wrong.
//! What goes wrong on order and what that does to the command stands in `faults`.

mod args;
mod auth;
mod chat;
mod commands;
mod date;
mod faults;
mod graph;
mod journal;
mod link;
mod orders;
mod rate;
mod refusal;
mod server;
mod skew;
mod tls;
mod webhook;

#[cfg(test)]
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
pub use graph::{EDGES_MAX, FOLLOWING_MAX, GraphHandle, SeedError, SeedGraph, USERS_MAX};
pub use tls::{CA_FILE, MakeError};
pub use webhook::{WebhookTarget, WebhookUrlError};

use crate::domain::chat::app::{Identifier, SdkAppId, SecretKey};

/// What a sandbox is made of.
#[derive(Debug, Clone)]
pub struct SandboxConfig {
    /// Where it listens. Whoever reaches it can give it orders.
    pub listen: SocketAddr,
    /// The one app it knows.
    pub sdkappid: SdkAppId,
    /// The app's one administrator, who also exists as a user.
    pub identifier: Identifier,
    /// The key that signatures are checked with.
    pub secret_key: SecretKey,
    /// Whether it serves HTTPS.
    pub tls: SandboxTls,
    /// Calls of a command in any second, beyond which it answers 60007.
    pub qps: NonZeroU32,
    /// Wait before each answer. The answer is from before the wait.
    pub latency: Duration,
    /// Where webhooks go, if anywhere.
    pub webhook: Option<WebhookTarget>,
    /// Users and follows to begin with, and to go back to on the order `reset`.
    pub seed_graph: Option<SeedGraph>,
}

/// Whether a sandbox serves HTTPS, with a certificate for localhost, 127.0.0.1 and ::1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SandboxTls {
    /// Plain HTTP.
    Off,
    /// HTTPS; the CA is had from [`Sandbox::ca_pem`].
    Memory,
    /// HTTPS; the CA is also written into the directory, as `ca.pem`.
    Dir(PathBuf),
}

/// Why a sandbox cannot start.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// The address cannot be listened on.
    #[error("the sandbox cannot listen on {address}")]
    Listen {
        /// That address.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// No certificate.
    #[error("the sandbox has no certificate")]
    Tls(#[from] MakeError),
    /// The CA cannot be written.
    #[error("the sandbox cannot write {CA_FILE} into {}", .dir.display())]
    CaFile {
        /// The directory.
        dir: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The graph to begin with is not right.
    #[error("the sandbox's first users and follows are not right")]
    Seed(#[from] SeedError),
}

/// A sandbox that holds its address and waits to be run.
pub struct Sandbox {
    listener: TcpListener,
    address: SocketAddr,
    chat: Arc<chat::Chat>,
    tls: Option<(TlsAcceptor, String)>,
    worker: Option<webhook::Worker>,
}

impl Sandbox {
    /// Takes the address and makes the certificate. Connections wait until [`Sandbox::run`].
    pub async fn bind(config: SandboxConfig) -> Result<Sandbox, SandboxError> {
        let seed = config.seed_graph.unwrap_or_default();
        // Checked here, so that it can be taken again at every reset.
        GraphHandle::default().seed(&seed, 0)?;
        let tls = match config.tls {
            SandboxTls::Off => None,
            SandboxTls::Memory | SandboxTls::Dir(_) => Some(tls::make()?),
        };
        if let (SandboxTls::Dir(dir), Some((_, pem))) = (&config.tls, &tls) {
            tls::write_ca(dir, pem).map_err(|source| SandboxError::CaFile { dir: dir.clone(), source })?;
        }
        let at_address = |source| SandboxError::Listen { address: config.listen, source };
        let listener = TcpListener::bind(config.listen).await.map_err(at_address)?;
        let address = listener.local_addr().map_err(at_address)?;
        let clock = skew::SkewedClock::default();
        let (webhooks, worker) =
            config.webhook.map(|target| webhook::Webhooks::new(target, config.sdkappid, clock.clone())).unzip();
        let account = auth::Account { app: config.sdkappid, identifier: config.identifier, key: config.secret_key };
        let chat = Arc::new(chat::Chat::new(account, config.qps, config.latency, seed, clock, webhooks));
        Ok(Sandbox { listener, address, chat, tls, worker })
    }

    /// Where it listens; the real port if port 0 was asked for.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The CA of its certificate, in PEM; `None` without TLS.
    pub fn ca_pem(&self) -> Option<&str> {
        self.tls.as_ref().map(|(_, pem)| pem.as_str())
    }

    /// The users and follows, to seed and to look at. The order `reset` forgets what was seeded here.
    pub fn graph(&self) -> GraphHandle {
        self.chat.graph.clone()
    }

    /// Serves until the token is cancelled, then finishes what is under way, for at most two seconds.
    pub async fn run(self, shutdown: CancellationToken) {
        info!(listener = "sandbox", address = %self.address, "listening");
        let tracker = TaskTracker::new();
        if let Some(worker) = self.worker {
            tracker.spawn(worker.run(shutdown.clone()));
        }
        let tls = self.tls.map(|(acceptor, _)| acceptor);
        server::serve(self.listener, self.chat, tls, shutdown, tracker).await;
    }
}
