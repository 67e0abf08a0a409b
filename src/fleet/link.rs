//! The connection to Redis: found, kept, lost, and found again.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, FromRedisValue, Pipeline, PushInfo, PushKind};
use tokio::sync::oneshot;
use tokio_util::task::AbortOnDropHandle;

use super::reach::{LinkError, words};
use super::{Fleet, PATIENCE, scripts};
use crate::clock;
use crate::domain::chat::app::SdkAppId;
use crate::domain::fleet::health::{Health, pause};
use crate::domain::fleet::watermarks::Watermarks;
use crate::domain::tick::Tick;

/// A thread that was held up itself finds its answer within this, when its patience is over.
const GRACE: Duration = Duration::from_millis(10);
/// For a connection with all that belongs to it.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(1000);
/// How often Redis is asked for the time: whoever lost it without a word knows within this and [`PATIENCE`].
const BEAT_EVERY: Duration = Duration::from_millis(250);
/// A connection that held for so long was a good one: the next is looked for soon.
const HELD: Duration = Duration::from_secs(10);
/// So many quick answers show that Redis is well.
const PROBES: usize = 3;
/// Commands under way at one time, and those that wait to be written.
const IN_FLIGHT_MAX: usize = 512;

/// Who is told what others have evicted. Called on the thread of the connection, so it must be quick.
pub trait OnInvalidation: Send + Sync + 'static {
    /// Another replica evicted something of an app, which is sealed with the app's keys.
    fn invalidated(&self, app: SdkAppId, sealed: &[u8]);
    /// Something may have been missed: nothing that is known holds any more.
    fn missed(&self);
}

/// One connection.
pub(super) struct Link {
    connection: MultiplexedConnection,
    /// The epoch that it makes.
    pub(super) number: u64,
    /// Names of the scripts in Redis.
    pub(super) lease: String,
    pub(super) evict: String,
    pub(super) store: String,
    beat: Pipeline,
    health: Mutex<Health>,
    stamps: Mutex<Watermarks>,
    /// Carries the bytes, as long as there is the link.
    _driver: AbortOnDropHandle<()>,
}

/// When something was asked and heard.
pub(super) struct Times {
    pub(super) asked: Tick,
    pub(super) heard: Tick,
}

impl Fleet {
    /// Looks for Redis, and again whenever it is lost, as long as the program lives. `tried` hears when the
    /// first attempt is over; who no longer waits for that lets callers in.
    pub async fn run(self: Arc<Self>, hears: Arc<dyn OnInvalidation>, tried: oneshot::Sender<()>) {
        let (mut first, mut failures, mut missed) = (Some(tried), 0, false);
        loop {
            match tokio::time::timeout(CONNECT_TIMEOUT, self.connect(&hears)).await {
                Ok(Ok(link)) => {
                    // From here on every eviction is heard of. What was learned before may be void, also if this
                    // is the first attempt, but callers were let in before it was over.
                    if missed || first.as_ref().is_some_and(oneshot::Sender::is_closed) {
                        hears.missed();
                    }
                    let begun = clock::now();
                    self.join(link).await;
                    let _ = first.take().map(|first| first.send(()));
                    self.attend().await;
                    hears.missed();
                    failures = if clock::now() - begun >= HELD { 0 } else { failures + 1 };
                }
                Ok(Err(trouble)) => {
                    self.note_failure(failures, &trouble.to_string());
                    failures += 1;
                }
                Err(_) => {
                    self.note_failure(failures, "it does not answer in time");
                    failures += 1;
                }
            }
            missed = true;
            let _ = first.take().map(|first| first.send(()));
            tokio::time::sleep(pause(failures, clock::random_u32())).await;
        }
    }

    /// A connection that hears, answers quickly and has the scripts.
    async fn connect(self: &Arc<Self>, hears: &Arc<dyn OnInvalidation>) -> Result<Link, LinkError> {
        // Only this task makes it odd, so the next number is known.
        let number = self.epoch.load(Ordering::Acquire) + 1;
        let (fleet, hears) = (Arc::downgrade(self), Arc::clone(hears));
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            .set_response_timeout(Some(CONNECT_TIMEOUT))
            .set_pipeline_buffer_size(IN_FLIGHT_MAX)
            .set_concurrency_limit(IN_FLIGHT_MAX)
            .set_push_sender(move |push| {
                hear(&fleet, &*hears, number, push);
                Ok::<(), redis::aio::SendError>(())
            });
        let tls = self.tls.load_full();
        let (mut connection, driver) = self.address.connect(tls, config).await?;
        connection.subscribe(self.channel()).await?;
        let mut load = redis::pipe();
        for body in [scripts::BEAT, scripts::LEASE, scripts::EVICT, scripts::STORE] {
            load.cmd("SCRIPT").arg("LOAD").arg(scripts::whole(body));
        }
        load.cmd("INFO").arg("server").cmd("INFO").arg("replication");
        let (beat, lease, evict, store, server, replication): (String, String, String, String, String, String) =
            load.query_async(&mut connection).await?;
        // One that takes writes all the same loses them: what it holds is another's.
        if value_of(&replication, "role") == Some("slave") {
            return Err(LinkError::Replica);
        }
        let run = value_of(&server, "run_id").unwrap_or_default();
        let mut pipeline = redis::pipe();
        let name = |what| format!("{}:{what}", self.prefix);
        pipeline.cmd("EVALSHA").arg(beat).arg(3).arg(self.since()).arg(name("run")).arg(name("beat")).arg(run);
        let link = Link {
            connection,
            number,
            lease,
            evict,
            store,
            beat: pipeline,
            health: Mutex::default(),
            stamps: Mutex::default(),
            _driver: driver,
        };
        for _ in 0..PROBES {
            let begun = clock::tick();
            let (moment,): (u64,) = link.beat.query_async(&mut link.connection.clone()).await?;
            let heard = clock::tick();
            if heard.since(begun) >= crate::domain::fleet::health::SLOW {
                return Err(LinkError::Slow);
            }
            link.stamps().note(heard, moment);
        }
        Ok(link)
    }

    async fn join(&self, link: Link) {
        let number = link.number;
        self.link.store(Some(Arc::new(link)));
        self.cause.store(None);
        self.epoch.store(number, Ordering::Release);
        tracing::info!("Redis is there: quota, facts and evictions are shared");
        self.flush_unsent().await;
    }

    /// Keeps an eye on the connection until it is lost.
    async fn attend(&self) {
        while let Some(link) = self.link.load_full() {
            let beat: Option<((u64,), Times)> = self.ask(&link, &link.beat).await;
            if let Some(((moment,), times)) = beat {
                link.stamps().note(times.heard, moment);
            }
            // A loss that was noticed before this waits leaves its note.
            let _ = tokio::time::timeout(BEAT_EVERY, self.trouble.notified()).await;
        }
    }

    /// Asks Redis. `None`: it gave no proper answer, and from now on this replica is alone.
    pub(super) async fn ask<T: FromRedisValue>(&self, link: &Link, what: &Pipeline) -> Option<(T, Times)> {
        let asked = clock::tick();
        let mut connection = link.connection.clone();
        let asking = what.query_async::<T>(&mut connection);
        tokio::pin!(asking);
        let answer = match tokio::time::timeout(PATIENCE, asking.as_mut()).await {
            Ok(answer) => Ok(answer),
            Err(_) => tokio::time::timeout(GRACE, asking).await,
        };
        let heard = clock::tick();
        match answer {
            Ok(Ok(answer)) => {
                if !link.health().answered(heard.since(asked), heard) {
                    self.lose(link.number, "it answers too slowly");
                }
                Some((answer, Times { asked, heard }))
            }
            Ok(Err(error)) => {
                self.lose(link.number, &words(&error));
                None
            }
            Err(_) => {
                self.lose(link.number, "it does not answer in time");
                None
            }
        }
    }

    /// A command was given up before its answer came, for it was not worth the wait.
    pub(super) fn note_slow(&self, link: &Link) {
        if !link.health().answered(PATIENCE, clock::tick()) {
            self.lose(link.number, "it answers too slowly");
        }
    }

    fn lose(&self, number: u64, cause: &str) {
        if self.epoch.compare_exchange(number, number + 1, Ordering::AcqRel, Ordering::Acquire).is_ok() {
            self.link.store(None);
            self.cause.store(Some(Arc::new(cause.to_owned())));
            self.figures.losses.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(cause, share = self.share, "Redis is away; this replica goes on alone");
        }
        self.trouble.notify_one();
    }

    /// Told ever more rarely, for it may be away for long; a new cause at once.
    fn note_failure(&self, failures: u32, cause: &str) {
        let before = self.cause.swap(Some(Arc::new(cause.to_owned())));
        if failures == 0 || failures.is_power_of_two() || before.is_none_or(|before| *before != cause) {
            tracing::warn!(cause, failures, "Redis is not to be had; this replica is alone");
        }
    }

    /// The channel of evictions.
    pub(super) fn channel(&self) -> String {
        format!("{}:evictions", self.prefix)
    }

    /// Since when what is kept counts.
    pub(super) fn since(&self) -> String {
        format!("{}:since", self.prefix)
    }
}

impl Link {
    pub(super) fn stamps(&self) -> MutexGuard<'_, Watermarks> {
        self.stamps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn health(&self) -> MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What Redis says unasked.
fn hear(fleet: &Weak<Fleet>, hears: &dyn OnInvalidation, number: u64, push: PushInfo) {
    let Some(fleet) = fleet.upgrade() else { return };
    match push.kind {
        PushKind::Message => {
            let payload = push.data.get(1).and_then(|payload| Vec::<u8>::from_redis_value_ref(payload).ok());
            let Some(payload) = payload else { return };
            let Some((sender, rest)) = payload.split_first_chunk::<8>() else { return hears.missed() };
            if *sender == fleet.me {
                return;
            }
            count(&fleet.figures.heard);
            match rest
                .split_first_chunk::<4>()
                .and_then(|(app, sealed)| SdkAppId::new(u32::from_be_bytes(*app)).map(|app| (app, sealed)))
            {
                Some((app, sealed)) => hears.invalidated(app, sealed),
                None => hears.missed(),
            }
        }
        // Who is subscribed no more hears no more.
        PushKind::Disconnection | PushKind::Unsubscribe => fleet.lose(number, "the connection is closed"),
        _ => {}
    }
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// One of the values that `INFO` has.
fn value_of<'a>(info: &'a str, key: &str) -> Option<&'a str> {
    info.lines().find_map(|line| line.trim_end().strip_prefix(key)?.strip_prefix(':'))
}
