//! Where the primary is: under a fixed address, where the sentinels say, or where the nodes of a Redis Cluster say.
//!
//! Everything else in [`crate::fleet`] knows one connection to one primary, whatever the form of Redis. That is enough
//! in a Redis Cluster too: all keys of an app have one hash tag, so one node has all of them, and [`super::Connections`]
//! opens a connection for each app. The client library has connections of its own for sentinels and clusters. They
//! reconnect and resubscribe behind our back, while a replica must know when it may have missed an invalidation.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use redis::{AsyncConnectionConfig, ErrorKind, RedisError, ServerErrorKind};
use rustls::ClientConfig;
use tokio::task::JoinSet;

use super::reach::{Address, LinkError, Node};
use super::sentinel::Sentinels;
use super::{CONNECT_TIMEOUT, FleetError};
use crate::clock;
use crate::config::{self, RedisForm, RedisLogin};

/// How long one node of a Redis Cluster has before the next one is asked too.
const ASK_NEXT_AFTER: Duration = Duration::from_millis(150);
/// Maximum number of nodes that are asked at the same time. During an outage every app of every replica asks.
const ASKED_MAX: usize = 2;

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
    /// The last primary, which is asked first, and helps if all configured nodes are down.
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
    /// Asks the known nodes one after another, and returns the first answer. A node with an outdated answer costs one
    /// failed attempt to connect.
    async fn primary_of(&self, key: &str, tls: Option<Arc<ClientConfig>>) -> Result<Address, LinkError> {
        let ask = |node| ask_for_primary(node, key.to_owned(), self.login.clone(), tls.clone());
        let primary = first_answer(self.in_order(clock::random_u32()), ask).await?;
        *self.last.lock() = Some(primary.clone());
        Ok(primary)
    }

    /// Returns the nodes in the order in which they are asked: the last primary, then the configured ones from a random
    /// one on.
    fn in_order(&self, random: u32) -> Vec<Address> {
        let mut nodes: Vec<Address> = self.last.lock().iter().cloned().collect();
        let is_last = |node: &&Address| nodes.first().is_some_and(|last| last.node == node.node);
        let mut configured: Vec<Address> = self.configured.iter().filter(|node| !is_last(node)).cloned().collect();
        let first = random as usize % configured.len().max(1);
        configured.rotate_left(first);
        nodes.append(&mut configured);
        nodes
    }
}

/// Asks the nodes in this order, and returns the first answer. The next node is asked if one fails, and after
/// [`ASK_NEXT_AFTER`]; the oldest of [`ASKED_MAX`] questions is abandoned for it. The last ones wait for their answers.
async fn first_answer<F>(nodes: Vec<Address>, ask: impl Fn(Address) -> F) -> Result<Address, LinkError>
where
    F: Future<Output = Result<Address, LinkError>>,
{
    let mut nodes = nodes.into_iter();
    let (mut asked, mut last_error) = (VecDeque::with_capacity(ASKED_MAX), LinkError::Dns);
    loop {
        if let Some(node) = nodes.next() {
            if asked.len() == ASKED_MAX {
                asked.pop_front();
            }
            asked.push_back(Box::pin(ask(node)));
        } else if asked.is_empty() {
            return Err(last_error);
        }
        let answering = any(&mut asked);
        let answer = match nodes.len() {
            0 => Some(answering.await),
            _ => tokio::time::timeout(ASK_NEXT_AFTER, answering).await.ok(),
        };
        match answer {
            Some((_, Ok(primary))) => return Ok(primary),
            Some((at, Err(error))) => {
                asked.remove(at);
                last_error = error;
            }
            None => {}
        }
    }
}

/// Returns the first result of these futures, with the position of its future.
async fn any<F: Future>(futures: &mut VecDeque<Pin<Box<F>>>) -> (usize, F::Output) {
    poll_fn(|context| {
        for (at, future) in futures.iter_mut().enumerate() {
            if let Poll::Ready(output) = future.as_mut().poll(context) {
                return Poll::Ready((at, output));
            }
        }
        Poll::Pending
    })
    .await
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
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    fn address(port: u16) -> Address {
        Address::of_node(Node { host: "h".to_owned(), port }, &RedisLogin::default())
    }

    /// Counts questions that are neither answered nor abandoned.
    struct Open<'a>(&'a AtomicUsize);

    impl Drop for Open<'_> {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Ordering::Relaxed);
        }
    }

    #[tokio::test]
    async fn at_most_two_nodes_are_asked_at_the_same_time() {
        let (open, most, asked) = (AtomicUsize::new(0), AtomicUsize::new(0), Mutex::new(Vec::new()));
        let ask = |node: Address| {
            let (open, most, asked) = (&open, &most, &asked);
            async move {
                most.fetch_max(open.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
                let _open = Open(open);
                asked.lock().push(node.node.port);
                match node.node.port {
                    5 => Ok(node),
                    2 => Err(LinkError::TimedOut),
                    _ => std::future::pending().await,
                }
            }
        };
        let found = first_answer([1, 2, 3, 4, 5, 6].map(address).into(), ask).await.expect("an answer");
        assert_eq!((found.node.port, &**asked.lock()), (5, &[1, 2, 3, 4, 5][..]));
        assert_eq!((most.load(Ordering::Relaxed), open.load(Ordering::Relaxed)), (2, 0));
        // The first node answers although the second one was asked after it.
        let ask = |node: Address| async move {
            if node.node.port == 1 {
                tokio::time::sleep(ASK_NEXT_AFTER * 3).await;
                return Ok(node);
            }
            std::future::pending().await
        };
        assert_eq!(first_answer([1, 2].map(address).into(), ask).await.expect("an answer").node.port, 1);
        let ask = |_| async { Err(LinkError::TimedOut) };
        assert!(matches!(first_answer([1, 2, 3].map(address).into(), ask).await, Err(LinkError::TimedOut)));
    }

    #[test]
    fn last_primary_is_asked_first_and_each_node_once() {
        let nodes = |last: Option<u16>| ClusterNodes {
            configured: [1, 2, 3].map(address).into(),
            login: RedisLogin::default(),
            last: Mutex::new(last.map(address)),
        };
        let order = |last, random| {
            let nodes: Vec<_> = nodes(last).in_order(random).into_iter().map(|address| address.node.port).collect();
            nodes
        };
        assert_eq!(order(None, 3), [1, 2, 3]);
        assert_eq!(order(None, 4), [2, 3, 1]);
        assert_eq!(order(Some(2), 1), [2, 3, 1]);
        assert_eq!(order(Some(9), 2), [9, 3, 1, 2]);
    }

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
