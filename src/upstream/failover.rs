//! Connecting: the primary domain or the standby, and the way back.

use std::pin::pin;
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};

use super::attempt::AttemptError;
use super::pool::PooledConnection;
use super::{Domain, Upstream};
use crate::clock;
use crate::domain::policy::connect::{ConnectSession, ConnectStep};
use crate::domain::policy::failover::{Failover, Side};
use crate::domain::policy::proxy::ProxyFailure;

/// The failover state of an app, shared by all threads.
#[derive(Debug)]
pub(crate) struct SharedFailover(Mutex<Failover>);

impl SharedFailover {
    /// Returns a state in which calls go to the primary domain.
    pub(crate) fn new(has_standby: bool) -> Arc<Self> {
        Arc::new(Self(Mutex::new(Failover::new(has_standby))))
    }

    /// Returns the domain that calls go to.
    pub(crate) fn side(&self) -> Side {
        self.state().side()
    }

    /// Returns why the proxy fails, if there is one and it does.
    pub(crate) fn proxy_failure(&self) -> Option<ProxyFailure> {
        self.state().proxy_failure()
    }

    fn state(&self) -> MutexGuard<'_, Failover> {
        self.0.lock()
    }
}

/// A connection that carries one call.
pub(crate) struct LeasedConnection {
    pub(super) inner: PooledConnection,
    pub(super) side: Side,
}

impl LeasedConnection {
    /// Returns the domain that it leads to.
    pub(crate) fn side(&self) -> Side {
        self.side
    }
}

impl Upstream {
    /// Returns a connection for one call. Call it before taking a permit, so that the time to connect does not lie
    /// between permit and socket. It takes at most twice `upstream.connect_timeout`, and after repeated failures a
    /// pause of up to one second.
    ///
    /// # Errors
    /// [`AttemptError::NotSent`] if neither domain is reachable, [`AttemptError::Proxy`] if the proxy fails.
    pub(crate) async fn connect(&self) -> Result<LeasedConnection, AttemptError> {
        let (mut now, mut first_error) = (clock::now(), None);
        let (mut session, mut step) = ConnectSession::start(&mut self.failover.state(), clock::tick_at(now));
        loop {
            step = match step {
                ConnectStep::Probe => {
                    self.probe_primary();
                    session.on_probe_started(&self.failover.state(), clock::tick_at(now))
                }
                ConnectStep::Pause(pause) => {
                    tokio::time::sleep(pause).await;
                    now = clock::now();
                    session.on_paused(&self.failover.state())
                }
                ConnectStep::Connect(side) => match pin!(self.domain(side).pool.acquire(now)).await {
                    Ok(inner) => {
                        self.on_connected(session, side, inner.reused);
                        return Ok(LeasedConnection { inner, side });
                    }
                    Err(error) => {
                        now = clock::now();
                        let failure = error.connect_failure();
                        self.report_proxy_failure(&error);
                        first_error.get_or_insert(error);
                        session.on_failed(failure, &mut self.failover.state(), clock::tick_at(now))
                    }
                },
                ConnectStep::Fail => {
                    let unreachable = || AttemptError::NotSent("no domain was tried".to_owned());
                    return Err(first_error.unwrap_or_else(unreachable));
                }
            };
        }
    }

    fn on_connected(&self, session: ConnectSession, side: Side, reused: bool) {
        // The shared state stays as it is for a connection that is reused, as nearly every one is.
        if reused {
            return;
        }
        let moved = session.on_connected(reused, &mut self.failover.state(), clock::tick());
        let proxy_works_again = self.domain(side).pool.has_proxy() && self.failover.state().set_proxy_failure(None);
        if proxy_works_again {
            tracing::info!(app = self.app, "the proxy opens connections again");
        }
        if moved {
            tracing::warn!(
                app = self.app,
                domain = side_name(side),
                "switched domains; the previous one is unreachable"
            );
        }
    }

    /// Reports that the proxy fails, once until it works again or fails in another way.
    fn report_proxy_failure(&self, error: &AttemptError) {
        let AttemptError::Proxy(failure, cause) = error else { return };
        if self.failover.state().set_proxy_failure(Some(*failure)) {
            tracing::warn!(app = self.app, failure = failure.text(), cause, "the proxy opens no connections");
        }
    }

    /// Probes the primary domain while calls go to the standby: one connection with its TLS handshake, and no call.
    fn probe_primary(&self) {
        let (primary, failover, app) = (Arc::clone(&self.primary), Arc::clone(&self.failover), self.app.clone());
        tokio::spawn(async move {
            let probe = primary.pool.connect().await;
            let result = probe.as_ref().map(|_| ()).map_err(AttemptError::connect_failure);
            let is_back = failover.state().on_probe(result);
            if let Ok(connection) = probe {
                primary.pool.release(connection);
            }
            if is_back {
                tracing::info!(app, "switched back to the primary domain; it is reachable again");
            }
        });
    }

    pub(super) fn domain(&self, side: Side) -> &Domain {
        match (side, &self.standby) {
            (Side::Standby, Some(standby)) => standby,
            _ => &self.primary,
        }
    }

    /// Takes back a connection on which no call was sent.
    pub(crate) fn release(&self, connection: LeasedConnection) {
        self.domain(connection.side).pool.release(connection.inner);
    }
}

/// Returns the name of a domain in logs.
const fn side_name(side: Side) -> &'static str {
    match side {
        Side::Primary => "primary",
        Side::Standby => "standby",
    }
}
