//! Callers of all gateways: lookups, writes, and events, each recorded.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::history::{Change, History, Lookup, PairId, Process};
use crate::support::app::MAIN;
use crate::support::chat::FakeChat;
use crate::support::client::{Conn, TestRequest};
use crate::support::response::Response;
use crate::support::{hook, now};

/// Number of followers and of followed users.
const FROM: usize = 8;
const TO: usize = 10;
/// Pause of a caller between two requests.
const PAUSE: Duration = Duration::from_millis(8);
/// A request that takes longer counts as not answered. `upstream.timeout` is 5 s.
const ANSWER_MAX: Duration = Duration::from_secs(20);

/// Where a gateway is now.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) process: Process,
    pub(super) data: String,
    pub(super) webhook: String,
}

/// What all callers share.
pub(super) struct Load {
    pub(super) chat: Arc<FakeChat>,
    /// The place of each gateway; `None` while it restarts.
    pub(super) places: Vec<Mutex<Option<Place>>>,
    pub(super) history: Mutex<History>,
    /// Requests without an answer although the gateway ran, and answers that no request may get.
    pub(super) failures: Mutex<Vec<String>>,
    pub(super) answered: AtomicUsize,
    pub(super) rate_limited: AtomicUsize,
    pub(super) stop: CancellationToken,
}

/// The result of one request.
enum Outcome {
    Answered(Response),
    /// There was no quota before the deadline.
    RateLimited,
    /// The gateway was stopped meanwhile.
    Stopped,
}

impl Load {
    /// Runs `callers` readers and one writer for each gateway, and one sender of events, until stopped.
    pub(super) async fn run(self: Arc<Self>, seed: u64, readers: usize) {
        let mut tasks = tokio::task::JoinSet::new();
        for gateway in 0..self.places.len() {
            for reader in 0..readers {
                let seed = seed ^ (((gateway * readers + reader) as u64) << 32);
                tasks.spawn(Arc::clone(&self).read(gateway, fastrand::Rng::with_seed(seed)));
            }
            tasks.spawn(Arc::clone(&self).write(gateway, fastrand::Rng::with_seed(!seed ^ gateway as u64)));
        }
        tasks.spawn(Arc::clone(&self).report_events(fastrand::Rng::with_seed(seed ^ 0xE7E7)));
        while let Some(ended) = tasks.join_next().await {
            ended.expect("no panic");
        }
    }

    async fn read(self: Arc<Self>, gateway: usize, mut random: fastrand::Rng) {
        while !self.stop.is_cancelled() {
            tokio::time::sleep(PAUSE).await;
            let from = random.usize(..FROM);
            let to: Vec<usize> = random.choose_multiple(0..TO, random.clone().usize(1..4));
            let names: Vec<String> = to.iter().map(|to| user_to(*to)).collect();
            let mut request = TestRequest::check(&user_from(from), &names);
            if random.u8(..10) == 0 {
                request = request.header("Cache-Control", "no-cache");
            }
            let Some(place) = self.place(gateway) else { continue };
            let sent_at = now();
            let Outcome::Answered(response) = self.send(&place.data, gateway, &request).await else { continue };
            let answered_at = now();
            let mut history = self.history.lock();
            for (to, follow_type) in to.into_iter().zip(response.follow_types()) {
                let pair = (from, to);
                history.lookups.push(Lookup { pair, follow_type, sent_at, answered_at, gateway: place.process });
            }
        }
    }

    /// Changes the pairs whose number modulo the number of gateways and one is that of the gateway.
    async fn write(self: Arc<Self>, gateway: usize, mut random: fastrand::Rng) {
        while !self.stop.is_cancelled() {
            tokio::time::sleep(PAUSE * 8).await;
            let pair = self.own_pair(gateway, &mut random);
            let follow_type = if random.bool() { 2 } else { 0 };
            let (from, to) = (user_from(pair.0), user_to(pair.1));
            let request = match follow_type {
                2 => TestRequest::command("follow/follow_add")
                    .body(format!(r#"{{"From_Account":"{from}","FollowItem":[{{"To_Account":"{to}"}}]}}"#)),
                _ => TestRequest::command("follow/follow_delete")
                    .body(format!(r#"{{"From_Account":"{from}","To_Account":["{to}"]}}"#)),
            };
            let Some(place) = self.place(gateway) else { continue };
            let sent_at = now();
            let outcome = self.send(&place.data, gateway, &request).await;
            let acknowledged_at = matches!(outcome, Outcome::Answered(_)).then(now);
            self.record(pair, follow_type, sent_at, acknowledged_at, place.process);
        }
    }

    /// Changes pairs at Chat, and reports each change to one of the gateways.
    async fn report_events(self: Arc<Self>, mut random: fastrand::Rng) {
        let gateways = self.places.len();
        while !self.stop.is_cancelled() {
            tokio::time::sleep(PAUSE * 8).await;
            let pair = self.own_pair(gateways, &mut random);
            let (from, to) = (user_from(pair.0), user_to(pair.1));
            let follow_type = if random.bool() { 2 } else { 0 };
            let gateway = random.usize(..gateways);
            let Some(place) = self.place(gateway) else { continue };
            let sent_at = now();
            let command = match follow_type {
                2 => {
                    self.chat.graph().follow(MAIN.sdkappid, &from, &to);
                    hook::ADDED
                }
                _ => {
                    self.chat.graph().unfollow(MAIN.sdkappid, &from, &to);
                    hook::DELETED
                }
            };
            let event = hook::signed(MAIN, command, &hook::event(command, &from, &[&to]));
            let outcome = self.send(&place.webhook, gateway, &event).await;
            let acknowledged_at = matches!(outcome, Outcome::Answered(_)).then(now);
            self.record(pair, follow_type, sent_at, acknowledged_at, place.process);
        }
    }

    fn own_pair(&self, share: usize, random: &mut fastrand::Rng) -> PairId {
        let shares = self.places.len() + 1;
        let number = share + shares * random.usize(..FROM * TO / shares);
        (number / TO, number % TO)
    }

    fn place(&self, gateway: usize) -> Option<Place> {
        self.places[gateway].lock().clone()
    }

    fn record(&self, pair: PairId, follow_type: u8, sent_at: Instant, acknowledged_at: Option<Instant>, by: Process) {
        let change = Change { pair, follow_type, sent_at, acknowledged_at, gateway: by };
        self.history.lock().changes.push(change);
    }

    /// Sends one request. An answer other than success and `rate_limited` is a failure, and so is none from a gateway
    /// that was not stopped.
    async fn send(&self, address: &str, gateway: usize, request: &TestRequest) -> Outcome {
        let before = self.place(gateway).map(|place| place.process);
        let sending = async {
            let mut conn = Conn::open(address).await.ok()?;
            conn.try_send(request.bytes()).await.ok()?;
            conn.try_read_response().await
        };
        let response = tokio::time::timeout(ANSWER_MAX, sending).await.ok().flatten();
        match response {
            Some(response) if response.status == 200 => {
                self.answered.fetch_add(1, Ordering::Relaxed);
                return Outcome::Answered(response);
            }
            Some(response) if response.slug() == Some("rate_limited") => {
                self.rate_limited.fetch_add(1, Ordering::Relaxed);
                return Outcome::RateLimited;
            }
            response => {
                let is_draining = response.as_ref().is_some_and(|response| response.slug() == Some("draining"));
                let stopped = before.is_none() || self.place(gateway).map(|place| place.process) != before;
                if !stopped || (response.is_some() && !is_draining) {
                    self.failures.lock().push(format!("gateway {gateway}: {response:?}"));
                }
            }
        }
        Outcome::Stopped
    }
}

fn user_from(number: usize) -> String {
    format!("from-{number}")
}

fn user_to(number: usize) -> String {
    format!("to-{number}")
}
