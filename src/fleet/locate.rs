//! Where the primary is: under a fixed address, where the sentinels say, or where the nodes of a Redis Cluster say.
//!
//! Everything else in [`crate::fleet`] knows one connection to one primary, whatever the form of Redis. That is enough
//! in a Redis Cluster too: all keys of an app have one hash tag, so one node has all of them, and [`super::Connections`]
//! opens a connection for each app. The client library has connections of its own for sentinels and clusters. They
//! reconnect and resubscribe behind our back, while a replica must know when it may have missed an invalidation.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use redis::{AsyncConnectionConfig, ErrorKind, RedisError, ServerErrorKind};
use rustls::ClientConfig;
use tokio::task::JoinSet;

use super::reach::{Address, LinkError, Node};
use super::sentinel::Sentinels;
use super::{CONNECT_TIMEOUT, FleetError};
use crate::config::{self, RedisForm, RedisLogin};

/// Finds the primary.
pub(super) enum Locator {
    /// It is always here.
    Fixed(Address),
    /// The sentinels name it.
    Sentinel(Arc<Sentinels>),
    /// The nodes of a Redis Cluster name it.
    Cluster(ClusterNodes),
}

/// The nodes of a Redis Cluster that are asked for the primary of a key.
pub(super) struct ClusterNodes {
    configured: Vec<Address>,
    login: RedisLogin,
    /// The last primary, which helps if all configured nodes are down.
    last: Mutex<Option<Address>>,
}

impl Locator {
    pub(super) fn new(config: &config::Fleet) -> Result<Self, FleetError> {
        let login = &config.login;
        Ok(match &config.redis {
            RedisForm::Primary(url) => Locator::Fixed(Address::new(url, login)?),
            RedisForm::Sentinel { sentinels, master, login: at_sentinels } => {
                let sentinels: Result<_, _> = sentinels.iter().map(|url| Address::new(url, at_sentinels)).collect();
                Locator::Sentinel(Sentinels::new(sentinels?, master, login))
            }
            RedisForm::Cluster(nodes) => {
                let configured: Result<_, _> = nodes.iter().map(|url| Address::new(url, login)).collect();
                let login = login.clone();
                Locator::Cluster(ClusterNodes { configured: configured?, login, last: Mutex::default() })
            }
        })
    }

    /// Watches the sentinels, if there are any, until the result is dropped.
    pub(super) fn watch(&self, tls: &Arc<ArcSwapOption<ClientConfig>>) -> JoinSet<()> {
        match self {
            Locator::Sentinel(sentinels) => sentinels.watch(tls),
            Locator::Fixed(_) | Locator::Cluster(_) => JoinSet::new(),
        }
    }

    /// Returns the primary, in a Redis Cluster that of `key`.
    pub(super) async fn find(&self, key: &str, tls: Option<Arc<ClientConfig>>) -> Result<Address, LinkError> {
        match self {
            Locator::Fixed(address) => Ok(address.clone()),
            Locator::Sentinel(sentinels) => sentinels.primary().await,
            Locator::Cluster(nodes) => nodes.primary_of(key, tls).await,
        }
    }

    /// Returns once the primary is known to be elsewhere. A cluster node says so itself, in response to a command.
    pub(super) async fn moved_from(&self, address: &Address) {
        match self {
            Locator::Sentinel(sentinels) => sentinels.moved_from(&address.node).await,
            Locator::Fixed(_) | Locator::Cluster(_) => std::future::pending().await,
        }
    }

    /// Returns whether the primary is a node of a Redis Cluster.
    pub(super) fn is_cluster(&self) -> bool {
        matches!(self, Locator::Cluster(_))
    }
}

impl ClusterNodes {
    /// Asks all known nodes at the same time, and returns the first answer. A node with an outdated answer costs one
    /// failed attempt to connect.
    async fn primary_of(&self, key: &str, tls: Option<Arc<ClientConfig>>) -> Result<Address, LinkError> {
        let mut asking = JoinSet::new();
        let last = self.last.lock().clone();
        for node in self.configured.iter().cloned().chain(last) {
            asking.spawn(ask_for_primary(node, key.to_owned(), self.login.clone(), tls.clone()));
        }
        let mut last_error = LinkError::Dns;
        while let Some(answer) = asking.join_next().await {
            match answer {
                Ok(Ok(primary)) => {
                    *self.last.lock() = Some(primary.clone());
                    return Ok(primary);
                }
                Ok(Err(error)) => last_error = error,
                Err(_) => {}
            }
        }
        Err(last_error)
    }
}

/// Sends a command for a key. The node executes it if it is the primary of the key, and otherwise names the primary.
async fn ask_for_primary(
    node: Address,
    key: String,
    login: RedisLogin,
    tls: Option<Arc<ClientConfig>>,
) -> Result<Address, LinkError> {
    let config = AsyncConnectionConfig::new().set_response_timeout(Some(CONNECT_TIMEOUT));
    let (mut connection, _driver) = node.connect(tls, config).await?;
    match redis::cmd("EXISTS").arg(key).query_async::<u64>(&mut connection).await {
        Ok(_) => Ok(node),
        Err(error) => match moved_to(&error, &node.node) {
            Some(primary) => Ok(Address::of_node(primary, &login)),
            None => Err(error.into()),
        },
    }
}

/// Returns the node that a redirection names. Without a host, it is the host that was asked.
fn moved_to(error: &RedisError, asked: &Node) -> Option<Node> {
    if error.kind() != ErrorKind::Server(ServerErrorKind::Moved) {
        return None;
    }
    let (host, port) = error.redirect_node()?.0.rsplit_once(':')?;
    let host = if host.is_empty() || host == "?" { &*asked.host } else { host.trim_matches(['[', ']']) };
    Some(Node { host: host.to_owned(), port: port.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirections_name_host_and_port() {
        let asked = Node { host: "asked".to_owned(), port: 1 };
        let of = |line: &str| {
            let value = redis::parse_redis_value(format!("-{line}\r\n").as_bytes()).expect("an error reply");
            let error = value.extract_error().map(drop).expect_err("an error");
            moved_to(&error, &asked).map(|node| (node.host, node.port))
        };
        let node = |host: &str, port| Some((host.to_owned(), port));
        assert_eq!(of("MOVED 3999 10.0.0.1:6381"), node("10.0.0.1", 6381));
        assert_eq!(of("MOVED 3999 node.test:6381"), node("node.test", 6381));
        assert_eq!(of("MOVED 3999 ::1:6381"), node("::1", 6381));
        assert_eq!(of("MOVED 3999 :6381"), node("asked", 6381));
        assert_eq!(of("MOVED 3999 ?:6381"), node("asked", 6381));
        for other in ["ASK 3999 10.0.0.1:6381", "MOVED 3999 10.0.0.1", "MOVED 3999 h:99999", "MOVED", "ERR no"] {
            assert_eq!(of(other), None, "{other}");
        }
    }
}
