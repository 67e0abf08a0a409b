//! The connection to Redis: connect, supervise, lose, and reconnect.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, FromRedisValue, InfoDict, Pipeline, PushInfo, PushKind, Value};
use tokio::sync::oneshot;
use tokio_util::task::AbortOnDropHandle;

use super::reach::{Address, LinkError, describe};
use super::{CONNECT_TIMEOUT, Fleet, RESPONSE_TIMEOUT, scripts};
use crate::clock;
use crate::domain::chat::app::SdkAppId;
use crate::domain::fleet::health::{Health, Probed, Probes, failures_after, pause};
use crate::domain::fleet::watermarks::Watermarks;
use crate::domain::tick::Tick;

/// After [`RESPONSE_TIMEOUT`], the extra time for a thread that was itself delayed to find a response that is already
/// there.
const GRACE: Duration = Duration::from_millis(10);
/// The time between two heartbeats. A lost Redis is noticed within this time and [`RESPONSE_TIMEOUT`].
const HEARTBEAT_INTERVAL: Duration = Duration::from_millis(250);
/// The time between two probes of a new connection.
const PROBE_INTERVAL: Duration = Duration::from_millis(5);
/// Maximum number of commands in flight, and of commands that wait to be written.
const IN_FLIGHT_MAX: usize = 512;

/// Receives the invalidations of other replicas. Called on the thread of the connection, so it must be fast.
pub trait OnInvalidation: Send + Sync + 'static {
    /// Another replica invalidated pairs of an app. The scope is sealed with the app's keys.
    fn invalidated(&self, app: SdkAppId, sealed: &[u8]);
    /// Invalidations of an app may have been missed, so none of its cached pairs is valid any more. `None` means all
    /// apps.
    fn missed(&self, app: Option<SdkAppId>);
}

/// One connection.
pub(super) struct Link {
    connection: MultiplexedConnection,
    /// The primary.
    address: Address,
    /// The epoch that this connection starts.
    epoch: u64,
    /// The run of Redis, which changes with every start of the process.
    pub(super) run_id: String,
    pub(super) scripts: Scripts,
    heartbeat: Pipeline,
    health: Mutex<Health>,
    pub(super) watermarks: Mutex<Watermarks>,
    /// The time before which everything in Redis is void, by the last heartbeat; 0 before the first one.
    void_before: AtomicU64,
    subscriber: Arc<dyn OnInvalidation>,
    /// The app of the connection, if it has one.
    app: Option<SdkAppId>,
    /// The task that reads and writes the socket.
    _driver: AbortOnDropHandle<()>,
}

/// The names of the scripts in Redis.
pub(super) struct Scripts {
    pub(super) lease: String,
    pub(super) invalidate: String,
    pub(super) store: String,
}

/// When a command was sent and its response was received.
pub(super) struct QueryTimes {
    pub(super) sent_at: Tick,
    pub(super) received_at: Tick,
}

/// The reply to a heartbeat: the time, the time until waiting invalidations are due, and the time before which everything
/// is void, all in microseconds.
type Heartbeat = (u64, u64, u64);

/// The reply to `ROLE`, which begins with the role.
type Role = Vec<Value>;

/// The replies to the commands that prepare a connection: names of scripts, `INFO server`, and `ROLE`.
type SetupReplies = (String, String, String, String, InfoDict, Role);

impl Fleet {
    /// Connects to Redis, and reconnects whenever the connection is lost. Never returns.
    ///
    /// `tried` is sent after the first attempt. Its receiver is dropped if requests are served before that.
    pub async fn run(self: Arc<Self>, subscriber: Arc<dyn OnInvalidation>, tried: oneshot::Sender<()>) {
        let _watched = self.locator.watch(&self.tls);
        // Failed attempts and short-lived connections in a row.
        let (mut first, mut failures, mut may_have_missed) = (Some(tried), 0, false);
        loop {
            let attempt = tokio::time::timeout(CONNECT_TIMEOUT, self.connect(&subscriber)).await;
            match attempt.unwrap_or(Err(LinkError::TimedOut)) {
                Ok(link) => {
                    // From here on every invalidation is received. Earlier pairs may be invalid, even at the first
                    // attempt if requests were served before it ended.
                    if may_have_missed || first.as_ref().is_some_and(oneshot::Sender::is_closed) {
                        subscriber.missed(self.app);
                    }
                    let begun = clock::tick();
                    self.on_connected(link);
                    let _ = first.take().map(|first| first.send(()));
                    self.supervise().await;
                    subscriber.missed(self.app);
                    failures = failures_after(failures, clock::tick().since(begun));
                }
                Err(error) => {
                    failures += 1;
                    self.log_failure(failures, &error.to_string());
                }
            }
            may_have_missed = true;
            let _ = first.take().map(|first| first.send(()));
            tokio::time::sleep(pause(failures, clock::random_u32())).await;
        }
    }

    /// Opens a connection that is subscribed, fast, and has the scripts.
    async fn connect(self: &Arc<Self>, subscriber: &Arc<dyn OnInvalidation>) -> Result<Link, LinkError> {
        // Only this task makes the epoch odd, so the next one is known.
        let epoch = self.epoch.load(Ordering::Acquire) + 1;
        let (fleet, receiver) = (Arc::downgrade(self), Arc::clone(subscriber));
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            .set_response_timeout(Some(CONNECT_TIMEOUT))
            .set_pipeline_buffer_size(IN_FLIGHT_MAX)
            .set_concurrency_limit(IN_FLIGHT_MAX)
            .set_push_sender(move |push| {
                on_push(&fleet, &*receiver, epoch, push);
                Ok::<(), redis::aio::SendError>(())
            });
        let address = self.locator.find(&self.since_key(), self.tls.load_full()).await?;
        let (mut connection, driver) = address.connect(self.tls.load_full(), config).await?;
        self.subscribe(&mut connection).await?;
        let mut setup = redis::pipe();
        for body in [scripts::HEARTBEAT, scripts::LEASE, scripts::INVALIDATE, scripts::STORE] {
            setup.cmd("SCRIPT").arg("LOAD").arg(scripts::with_prelude(body));
        }
        setup.cmd("INFO").arg("server").cmd("ROLE");
        let replies: SetupReplies = setup.query_async(&mut connection).await?;
        let (heartbeat, lease, invalidate, store, server, role) = replies;
        check_role(&role)?;
        if !self.locator.is_cluster() && server.get::<String>("redis_mode").as_deref() == Some("cluster") {
            return Err(LinkError::ClusterNode);
        }
        let run_id = run_id_of(&server)?;
        let link = Link {
            connection,
            address,
            epoch,
            scripts: Scripts { lease, invalidate, store },
            heartbeat: self.heartbeat_command(&heartbeat, &run_id),
            run_id,
            health: Mutex::default(),
            watermarks: Mutex::default(),
            void_before: AtomicU64::new(0),
            subscriber: Arc::clone(subscriber),
            app: self.app,
            _driver: driver,
        };
        link.probe().await?;
        Ok(link)
    }

    /// In a Redis Cluster, a sharded channel is where the app's keys are, and a subscription to it ends when they move.
    async fn subscribe(&self, connection: &mut MultiplexedConnection) -> Result<(), LinkError> {
        if !self.locator.is_cluster() {
            return Ok(connection.subscribe(self.channel()).await?);
        }
        let subscribing = redis::cmd("SSUBSCRIBE").arg(self.channel()).query_async(connection).await;
        subscribing.map_err(|error| match error.code() {
            // An unknown command.
            Some("ERR") => LinkError::NoSharding,
            _ => error.into(),
        })
    }

    fn heartbeat_command(&self, script: &str, run_id: &str) -> Pipeline {
        let key = |name| format!("{}:{name}", self.prefix);
        let mut command = redis::pipe();
        command.cmd("EVALSHA").arg(script).arg(6);
        command.arg(self.since_key()).arg(key("run")).arg(key("beat")).arg(key("none")).arg(&self.batch_keys());
        command.arg(run_id).arg(self.publish_command()).arg(self.channel());
        command.cmd("ROLE");
        command
    }

    fn on_connected(&self, link: Link) {
        let epoch = link.epoch;
        self.undelivered.lock().connected(&link.run_id);
        self.link.store(Some(Arc::new(link)));
        self.cause.store(None);
        self.epoch.store(epoch, Ordering::Release);
        tracing::info!("connected to Redis; sharing quota, cache, and invalidations");
    }

    /// Sends unsent invalidations and heartbeats until the connection is lost.
    async fn supervise(self: &Arc<Self>) {
        while let Some(link) = self.link.load_full() {
            self.flush_unsent().await;
            let _ = self.beat(&link).await;
            tokio::select! {
                // A notification from before this wait is kept.
                () = self.disconnected.notified() => {}
                () = self.locator.moved_from(&link.address) => {
                    self.disconnect(link.epoch, &LinkError::PrimaryMoved.to_string());
                }
                () = tokio::time::sleep(HEARTBEAT_INTERVAL) => {}
            }
        }
    }

    /// Sends a heartbeat. Returns the time until the waiting invalidations are due, and zero if none waits.
    pub(super) async fn beat(&self, link: &Link) -> Option<Duration> {
        let ((beat, role), times): ((Heartbeat, Role), _) = self.query(link, &link.heartbeat).await?;
        if let Err(error) = check_role(&role) {
            self.disconnect(link.epoch, &error.to_string());
            return None;
        }
        Some(link.note(beat, times.received_at))
    }

    /// Sends a command. Returns `None`, and disconnects, if there is no valid response in time.
    pub(super) async fn query<T: FromRedisValue>(&self, link: &Link, command: &Pipeline) -> Option<(T, QueryTimes)> {
        let sent_at = clock::tick();
        let mut connection = link.connection.clone();
        let querying = command.query_async::<T>(&mut connection);
        tokio::pin!(querying);
        let result = match tokio::time::timeout(RESPONSE_TIMEOUT, querying.as_mut()).await {
            Ok(result) => Ok(result),
            Err(_) => tokio::time::timeout(GRACE, querying).await,
        };
        let received_at = clock::tick();
        match result {
            Ok(Ok(response)) => {
                if !link.health.lock().answered(received_at.since(sent_at), received_at) {
                    self.disconnect(link.epoch, &LinkError::Slow.to_string());
                }
                Some((response, QueryTimes { sent_at, received_at }))
            }
            Ok(Err(error)) => {
                self.disconnect(link.epoch, &describe(&error));
                None
            }
            Err(_) => {
                self.disconnect(link.epoch, &LinkError::TimedOut.to_string());
                None
            }
        }
    }

    /// Notes that a command was abandoned before its response came.
    pub(super) fn note_slow(&self, link: &Link) {
        if !link.health.lock().answered(RESPONSE_TIMEOUT, clock::tick()) {
            self.disconnect(link.epoch, &LinkError::Slow.to_string());
        }
    }

    fn disconnect(&self, epoch: u64, cause: &str) {
        if self.epoch.compare_exchange(epoch, epoch + 1, Ordering::AcqRel, Ordering::Acquire).is_ok() {
            self.link.store(None);
            self.cause.store(Some(Arc::new(cause.to_owned())));
            count(&self.counters.disconnects);
            let share = self.share;
            tracing::warn!(cause, share, "lost connection to Redis; falling back to the local quota and cache");
        }
        self.disconnected.notify_one();
    }

    /// Logs failed attempts 1, 2, 4, 8, and so on, and every new cause.
    fn log_failure(&self, failures: u32, cause: &str) {
        let before = self.cause.swap(Some(Arc::new(cause.to_owned())));
        if failures.is_power_of_two() || before.is_none_or(|before| *before != cause) {
            tracing::warn!(cause, failures, "cannot reach Redis; using the local quota and cache");
        }
    }
}

impl Link {
    /// Checks that Redis responds fast.
    async fn probe(&self) -> Result<(), LinkError> {
        let mut probes = Probes::new(clock::tick());
        loop {
            let sent_at = clock::tick();
            let (beat, role): (Heartbeat, Role) = self.heartbeat.query_async(&mut self.connection.clone()).await?;
            check_role(&role)?;
            let received_at = clock::tick();
            self.note(beat, received_at);
            match probes.answered(received_at.since(sent_at), received_at) {
                Probed::Fast => return Ok(()),
                Probed::Slow => return Err(LinkError::Slow),
                Probed::Unclear => tokio::time::sleep(PROBE_INTERVAL).await,
            }
        }
    }

    /// Notes the response to a heartbeat. Returns the time until the waiting invalidations are due.
    fn note(&self, (redis_time, due_micros, void_before): Heartbeat, received_at: Tick) -> Duration {
        self.watermarks.lock().note(received_at, redis_time);
        let before = self.void_before.swap(void_before, Ordering::AcqRel);
        if before != 0 && before != void_before {
            // Redis has lost its data, and maybe invalidations that waited.
            self.subscriber.missed(self.app);
        }
        Duration::from_micros(due_micros)
    }
}

/// Rejects a replica of another Redis. It may take writes, but it loses them.
fn check_role(role: &[Value]) -> Result<(), LinkError> {
    match role.first().and_then(|role| String::from_redis_value_ref(role).ok()).as_deref() {
        Some("master") => Ok(()),
        _ => Err(LinkError::Replica),
    }
}

/// Returns the run of Redis. Without it, a failover behind one address would remain unnoticed.
fn run_id_of(server: &InfoDict) -> Result<String, LinkError> {
    server.get::<String>("run_id").filter(|run_id| !run_id.is_empty()).ok_or(LinkError::NoRunId)
}

/// Handles a push message of Redis.
fn on_push(fleet: &Weak<Fleet>, subscriber: &dyn OnInvalidation, epoch: u64, push: PushInfo) {
    let Some(fleet) = fleet.upgrade() else { return };
    match push.kind {
        PushKind::Message | PushKind::SMessage => {
            let payload = push.data.get(1).and_then(|payload| Vec::<u8>::from_redis_value_ref(payload).ok());
            if let Some(payload) = payload {
                on_batch(&fleet, subscriber, &payload);
            }
        }
        PushKind::Disconnection | PushKind::Unsubscribe | PushKind::SUnsubscribe => {
            fleet.disconnect(epoch, "connection closed")
        }
        _ => {}
    }
}

/// Handles invalidations, each after its length.
fn on_batch(fleet: &Fleet, subscriber: &dyn OnInvalidation, mut batch: &[u8]) {
    while !batch.is_empty() {
        let message = batch.split_first_chunk::<4>();
        let message = message.and_then(|(len, rest)| rest.split_at_checked(u32::from_be_bytes(*len) as usize));
        let Some((message, rest)) = message else { return subscriber.missed(fleet.app) };
        on_message(fleet, subscriber, message);
        batch = rest;
    }
}

/// Handles an invalidation: the sender's ID, the SDKAppID, and the sealed scope.
fn on_message(fleet: &Fleet, subscriber: &dyn OnInvalidation, payload: &[u8]) {
    let Some((sender_id, rest)) = payload.split_first_chunk::<8>() else { return subscriber.missed(fleet.app) };
    if *sender_id == fleet.sender_id {
        return;
    }
    count(&fleet.counters.invalidations_received);
    let parsed = rest
        .split_first_chunk::<4>()
        .and_then(|(app, sealed)| SdkAppId::new(u32::from_be_bytes(*app)).map(|app| (app, sealed)));
    match parsed {
        Some((app, sealed)) => subscriber.invalidated(app, sealed),
        None => subscriber.missed(fleet.app),
    }
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_primary_with_a_run_id_is_used() {
        let role = |text: &str| vec![Value::BulkString(text.into()), Value::Int(0)];
        assert!(check_role(&role("master")).is_ok());
        for other in [role("slave"), role("sentinel"), vec![Value::Int(1)], vec![]] {
            assert!(matches!(check_role(&other), Err(LinkError::Replica)), "{other:?}");
        }
        let run_id = |text: &str| run_id_of(&InfoDict::new(text));
        assert_eq!(run_id("# Server\r\nredis_mode:standalone\r\nrun_id:abc\r\n").expect("a run"), "abc");
        for missing in ["# Server\r\nredis_mode:standalone\r\n", "run_id:\r\n", ""] {
            assert!(matches!(run_id(missing), Err(LinkError::NoRunId)), "{missing:?}");
        }
    }
}
