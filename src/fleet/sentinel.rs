//! Sentinels: which primary they name now, and when they name another one.
//!
//! All of them are asked and watched, because they learn of a failover one after another, within seconds. The newest
//! answer has the highest configuration epoch. A replica that follows it leaves the old primary when the first sentinel
//! does. The old primary may continue for seconds. It would grant permits and publish invalidations next to the new one.
//! If that first sentinel is lost, its answer remains for a while, until the others know of the failover too.

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
use crate::domain::fleet::health::{failures_after, pause};
use crate::domain::tick::Tick;

/// How long to wait for news from a sentinel before asking it again.
const ASK_INTERVAL: Duration = Duration::from_secs(1);
/// How long the answer of a sentinel counts after it was lost, or names an older configuration. The other sentinels
/// learn of a failover from each other, with a message every 2 seconds.
const ANSWER_KEPT: Duration = Duration::from_secs(10);
/// The channel on which a sentinel announces another primary.
const SWITCH_CHANNEL: &str = "+switch-master";

/// The sentinels of a primary.
pub(super) struct Sentinels {
    addresses: Vec<Address>,
    /// The name by which they know the primary.
    master: String,
    /// The login at the primary.
    login: RedisLogin,
    /// The answer of each sentinel that counts; `None` if it has not been connected for [`ANSWER_KEPT`].
    answers: watch::Sender<Vec<Option<Answer>>>,
}

/// The primary as one sentinel names it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Answer {
    config_epoch: u64,
    node: Node,
    /// When the sentinel gave it.
    received_at: Tick,
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

    /// Returns once the sentinels name another primary than `node`. While no sentinel has an answer, `node` stays.
    pub(super) async fn moved_from(&self, node: &Node) {
        let mut answers = self.answers.subscribe();
        let moved = |answers: &Vec<Option<Answer>>| newest(answers).is_some_and(|answer| answer.node != *node);
        // The sender lives as long as `self`.
        let _ = answers.wait_for(moved).await;
    }

    async fn watch_one(self: Arc<Self>, at: usize, tls: Arc<ArcSwapOption<ClientConfig>>) {
        let mut failures = 0;
        loop {
            let begun = clock::tick();
            let Err(error) = self.follow(at, tls.load_full()).await;
            tracing::debug!(sentinel = at, cause = %error, "no answer from a sentinel");
            let lost_at = clock::tick();
            self.record(at, None, lost_at);
            failures = failures_after(failures, lost_at.since(begun));
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
            let received_at = clock::tick();
            let answer = parse(&fields, received_at).ok_or(LinkError::NoPrimary)?;
            self.record(at, Some(answer), received_at);
            let _ = tokio::time::timeout(ASK_INTERVAL, news.notified()).await;
        }
    }

    /// Records the answer of one sentinel, or that it has none. An answer with a newer configuration stays for
    /// [`ANSWER_KEPT`].
    fn record(&self, at: usize, answer: Option<Answer>, now: Tick) {
        self.answers.send_if_modified(|answers| {
            let is_newer = |before: &Answer| answer.as_ref().is_none_or(|new| new.config_epoch < before.config_epoch);
            let keeps = |before: &Answer| is_newer(before) && now.since(before.received_at) < ANSWER_KEPT;
            if answers[at].as_ref().is_some_and(keeps) {
                return false;
            }
            let before = std::mem::replace(&mut answers[at], answer);
            before.as_ref().map(Answer::primary) != answers[at].as_ref().map(Answer::primary)
        });
    }
}

impl Answer {
    /// Returns what a replica follows.
    fn primary(&self) -> (u64, &Node) {
        (self.config_epoch, &self.node)
    }
}

/// Returns the answer with the highest configuration epoch.
fn newest(answers: &[Option<Answer>]) -> Option<&Answer> {
    answers.iter().flatten().max_by_key(|answer| answer.config_epoch)
}

/// Parses the response to `SENTINEL MASTER`.
fn parse(fields: &HashMap<String, String>, received_at: Tick) -> Option<Answer> {
    let field = |name: &str| fields.get(name).map(String::as_str);
    let node = Node { host: field("ip")?.to_owned(), port: field("port")?.parse().ok()? };
    Some(Answer { config_epoch: field("config-epoch")?.parse().ok()?, node, received_at })
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(seconds: u64) -> Tick {
        Tick::from_micros(1_000_000 * seconds)
    }

    fn answer(config_epoch: u64, port: u16, seconds: u64) -> Option<Answer> {
        let node = Node { host: "h".to_owned(), port };
        Some(Answer { config_epoch, node, received_at: at(seconds) })
    }

    #[test]
    fn highest_configuration_epoch_wins() {
        assert_eq!(newest(&[None, None]), None);
        assert_eq!(newest(&[answer(3, 1, 9), None, answer(4, 2, 8), answer(3, 1, 9)]), answer(4, 2, 8).as_ref());
        let fields = |epoch: &str| {
            let fields = [("ip", "h"), ("port", "2"), ("config-epoch", epoch), ("flags", "master")];
            parse(&fields.map(|(name, value)| (name.to_owned(), value.to_owned())).into(), at(8))
        };
        assert_eq!(fields("4"), answer(4, 2, 8));
        assert_eq!(fields("x"), None);
    }

    #[test]
    fn loss_of_the_first_sentinel_that_knew_of_a_failover_leads_nowhere_for_ten_seconds() {
        let urls = ["redis://s1", "redis://s2"].map(|url| url.parse().expect("a URL"));
        let addresses = urls.iter().map(|url| Address::new(url, &RedisLogin::default()).expect("an address"));
        for lost in [None, answer(4, 1, 109)] {
            let sentinels = Sentinels::new(addresses.clone().collect(), "chat", &RedisLogin::default());
            let port = || newest(&sentinels.answers.borrow()).map(|answer| answer.node.port);
            sentinels.record(0, answer(4, 1, 99), at(99));
            sentinels.record(1, answer(5, 2, 99), at(99));
            sentinels.record(1, answer(5, 2, 100), at(100));
            let mut answers = sentinels.answers.subscribe();
            for seconds in [100, 109] {
                sentinels.record(1, lost.clone(), at(seconds));
                assert_eq!(port(), Some(2), "{seconds}");
            }
            assert!(!answers.has_changed().expect("a sender"));
            sentinels.record(1, lost.clone(), at(110));
            assert!(answers.has_changed().expect("a sender"), "replicas must be woken");
            assert_eq!(answers.borrow_and_update()[1], lost);
            assert_eq!(port(), Some(1));
            // A newer configuration counts at once.
            sentinels.record(0, answer(6, 3, 110), at(110));
            assert_eq!(port(), Some(3));
        }
    }
}
