//! Where a connection came from.

use std::net::IpAddr;
use std::sync::Arc;

use crate::domain::caller::{CertificateName, QueueKey};

/// The transport of a connection, and what it says about the peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// TCP.
    Tcp {
        /// The address of this machine that the peer connected to.
        local: IpAddr,
    },
    /// A Unix socket.
    Unix {
        /// The user of the peer process, if the kernel reports it.
        uid: Option<u32>,
    },
}

impl Peer {
    /// Whether the peer may be on another machine: it came neither over loopback nor over a Unix socket.
    pub fn is_remote(self) -> bool {
        match self {
            Peer::Tcp { local } => !local.is_loopback(),
            Peer::Unix { .. } => false,
        }
    }
}

/// A connection, as its requests see it.
#[derive(Debug, Clone)]
pub struct ConnectionInfo {
    /// Its transport.
    pub peer: Peer,
    /// Key of its requests in the fair queues, unless they come from a configured caller.
    pub caller: QueueKey,
    /// Whether it uses TLS.
    pub tls: bool,
    /// Local port; 0 for a Unix socket.
    pub port: u16,
    /// Names in the client certificate, which TLS has verified; `None` without a certificate. Up to 64.
    pub certificate: Option<Arc<[CertificateName]>>,
}

impl ConnectionInfo {
    /// Describes a connection without TLS.
    pub fn plain(peer: Peer, caller: QueueKey, port: u16) -> Self {
        Self { peer, caller, tls: false, port, certificate: None }
    }
}
