//! Sentinels: which primary they name now, and when they name another one.
//!
//! All of them are asked and watched, because they learn of a failover one after another, within seconds. The newest
//! answer has the highest configuration epoch. A replica that follows it leaves the old primary when the first sentinel
//! does. The old primary may continue for seconds. It would grant permits and publish invalidations next to the new one.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use redis::AsyncConnectionConfig;
use rustls::ClientConfig;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

use super::CONNECT_TIMEOUT;
use super::reach::{Address, LinkError, Node};
use crate::clock;
use crate::config::RedisLogin;
use crate::domain::fleet::health::pause;

/// How long to wait for news from a sentinel before asking it again.
const ASK_INTERVAL: Duration = Duration::from_secs(1);
/// The channel on which a sentinel announces another primary.
const SWITCH_CHANNEL: &str = "+switch-master";

/// The sentinels of a primary.
pub(super) struct Sentinels {
    addresses: Vec<Address>,
    /// The name by which they know the primary.
    master: String,
    /// The login at the primary.
    login: RedisLogin,
    /// The latest answer of each sentinel; `None` while it is not connected.
    answers: watch::Sender<Vec<Option<Answer>>>,
}

/// The primary as one sentinel names it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Answer {
    config_epoch: u64,
    node: Node,
}

impl Sentinels {
    pub(super) fn new(addresses: Vec<Address>, master: &str, login: &RedisLogin) -> Arc<Self> {
        let answers = watch::Sender::new(vec![None; addresses.len()]);
        Arc::new(Self { addresses, master: master.to_owned(), login: login.clone(), answers })
    }

    /// Watches all sentinels until the result is dropped.
    pub(super) fn watch(self: &Arc<Self>, tls: &Arc<ArcSwapOption<ClientConfig>>) -> JoinSet<()> {
        let watch_one = |at| Arc::clone(self).watch_one(at, Arc::clone(tls));
        (0..self.addresses.len()).map(watch_one).collect()
    }

    /// Returns the primary, as soon as a sentinel names one.
    pub(super) async fn primary(&self) -> Result<Address, LinkError> {
        let mut answers = self.answers.subscribe();
        let found = tokio::time::timeout(CONNECT_TIMEOUT / 2, answers.wait_for(|answers| newest(answers).is_some()));
        let answers = found.await.map_err(|_| LinkError::NoPrimary)?.map_err(|_| LinkError::NoPrimary)?;
        let node = newest(&answers).ok_or(LinkError::NoPrimary)?.node.clone();
        Ok(Address::of_node(node, &self.login))
    }

    /// Returns once the sentinels name another primary than `node`. While no sentinel is connected, `node` stays.
    pub(super) async fn moved_from(&self, node: &Node) {
        let mut answers = self.answers.subscribe();
        let moved = |answers: &Vec<Option<Answer>>| newest(answers).is_some_and(|answer| answer.node != *node);
        // The sender lives as long as `self`.
        let _ = answers.wait_for(moved).await;
    }

    async fn watch_one(self: Arc<Self>, at: usize, tls: Arc<ArcSwapOption<ClientConfig>>) {
        let mut failures = 0;
        loop {
            let Err(error) = self.follow(at, tls.load_full()).await;
            tracing::debug!(sentinel = at, cause = %error, "no answer from a sentinel");
            let answered = self.record(at, None);
            failures = if answered { 0 } else { failures + 1 };
            tokio::time::sleep(pause(failures, clock::random_u32())).await;
        }
    }

    /// Records the answers of one sentinel until it fails.
    async fn follow(&self, at: usize, tls: Option<Arc<ClientConfig>>) -> Result<Infallible, LinkError> {
        let news = Arc::new(Notify::new());
        let notify = Arc::clone(&news);
        let config =
            AsyncConnectionConfig::new().set_response_timeout(Some(CONNECT_TIMEOUT)).set_push_sender(move |_| {
                notify.notify_one();
                Ok::<(), redis::aio::SendError>(())
            });
        let connecting = tokio::time::timeout(CONNECT_TIMEOUT, self.addresses[at].connect(tls, config));
        let (mut connection, _driver) = connecting.await.map_err(|_| LinkError::TimedOut)??;
        connection.subscribe(SWITCH_CHANNEL).await?;
        loop {
            let mut command = redis::cmd("SENTINEL");
            let fields: HashMap<String, String> =
                command.arg("MASTER").arg(&self.master).query_async(&mut connection).await?;
            let answer = parse(&fields).ok_or(LinkError::NoPrimary)?;
            self.record(at, Some(answer));
            let _ = tokio::time::timeout(ASK_INTERVAL, news.notified()).await;
        }
    }

    /// Records the answer of one sentinel. Returns whether there was one before.
    fn record(&self, at: usize, answer: Option<Answer>) -> bool {
        let mut before = None;
        self.answers.send_if_modified(|answers| {
            before = std::mem::replace(&mut answers[at], answer);
            answers[at] != before
        });
        before.is_some()
    }
}

/// Returns the answer with the highest configuration epoch.
fn newest(answers: &[Option<Answer>]) -> Option<&Answer> {
    answers.iter().flatten().max_by_key(|answer| answer.config_epoch)
}

/// Parses the response to `SENTINEL MASTER`.
fn parse(fields: &HashMap<String, String>) -> Option<Answer> {
    let field = |name: &str| fields.get(name).map(String::as_str);
    let node = Node { host: field("ip")?.to_owned(), port: field("port")?.parse().ok()? };
    Some(Answer { config_epoch: field("config-epoch")?.parse().ok()?, node })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn highest_configuration_epoch_wins() {
        let answer = |config_epoch, port| Some(Answer { config_epoch, node: Node { host: "h".to_owned(), port } });
        assert_eq!(newest(&[None, None]), None);
        assert_eq!(newest(&[answer(3, 1), None, answer(4, 2), answer(3, 1)]), answer(4, 2).as_ref());
        let fields = |epoch: &str| {
            let fields = [("ip", "h"), ("port", "2"), ("config-epoch", epoch), ("flags", "master")];
            parse(&fields.map(|(name, value)| (name.to_owned(), value.to_owned())).into())
        };
        assert_eq!(fields("4"), answer(4, 2));
        assert_eq!(fields("x"), None);
    }
}
