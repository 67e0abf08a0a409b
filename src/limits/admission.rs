//! Admission of one call: queue for a turn, connect, then take a slot and a permit together.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use governor::clock::Clock;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::command_quota::{CommandQuota, NotYet};
use super::fair_queue::QueueEntry;
use crate::clock;
use crate::domain::caller::QueueKey;

/// Why a call got no permit.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum AdmitError<E> {
    /// Its turn does not come before the deadline. With the time until it may come.
    DeadlineTooShort(Duration),
    /// No slot among the calls in flight became free before the deadline.
    InFlightFull,
    /// Quota was available, but the entries ahead took too long to connect.
    QueueStalled,
    /// The call itself could not connect.
    Connect(E),
}

/// What an admitted call holds.
#[derive(Debug)]
pub(crate) struct Permit<T> {
    /// Its slot among the calls in flight.
    pub(crate) slot: OwnedSemaphorePermit,
    /// The result of `get_ready`.
    pub(crate) ready: T,
}

/// The result for a call that got its turn.
#[derive(Debug)]
pub(crate) enum Admission<T> {
    /// The call may go.
    Granted(Permit<T>),
    /// The call is no longer wanted. With the result of `get_ready`.
    Cancelled(T),
}

/// How a call waits.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AdmitRequest<'a> {
    /// The caller, for the order of the queue.
    pub(crate) caller: QueueKey,
    /// The slots of the calls in flight.
    pub(crate) room: &'a Arc<Semaphore>,
    /// When the call began to wait: now.
    pub(crate) begun: Instant,
    /// The latest time for a permit.
    pub(crate) deadline: Instant,
}

impl<C: Clock + Clone> CommandQuota<C> {
    /// Queues the call, runs `get_ready`, and then takes a slot among the calls in flight and a permit together. A
    /// permit is thus used at once, and a queued call holds no slot. If `wanted` returns `false` when the turn comes,
    /// nothing is taken.
    ///
    /// Dropping the future leaves the queue.
    ///
    /// # Errors
    /// - [`AdmitError::DeadlineTooShort`] at once if the turn would come after the deadline.
    /// - When the deadline passes: [`AdmitError::InFlightFull`] without a free slot, `DeadlineTooShort` if the call
    ///   waited for quota, otherwise [`AdmitError::QueueStalled`].
    /// - [`AdmitError::Connect`] if `get_ready` fails.
    pub(crate) async fn admit<T, E>(
        &self,
        request: AdmitRequest<'_>,
        get_ready: impl Future<Output = Result<T, E>>,
        wanted: impl Fn() -> bool,
    ) -> Result<Admission<T>, AdmitError<E>> {
        let AdmitRequest { caller, room, begun, deadline } = request;
        let entry = self.queue.join(caller);
        let predicted = self.predicted_wait(entry.ahead);
        if begun + predicted > deadline {
            return Err(AdmitError::DeadlineTooShort(predicted));
        }
        let admitted = pin!(self.take_turn(entry, request, get_ready, wanted));
        clock::timeout_at_lazy(deadline, admitted).await.unwrap_or_else(|| {
            if room.available_permits() == 0 {
                return Err(AdmitError::InFlightFull);
            }
            let waited_for_quota = self.next_at() >= clock::tick_at(begun);
            Err(if waited_for_quota { AdmitError::DeadlineTooShort(self.interval()) } else { AdmitError::QueueStalled })
        })
    }

    async fn take_turn<T, E>(
        &self,
        entry: QueueEntry<'_>,
        AdmitRequest { room, deadline, .. }: AdmitRequest<'_>,
        get_ready: impl Future<Output = Result<T, E>>,
        wanted: impl Fn() -> bool,
    ) -> Result<Admission<T>, AdmitError<E>> {
        let _turn = entry.turn().await;
        let ready = get_ready.await.map_err(AdmitError::Connect)?;
        let _ready = CountGuard::new(&self.ready);
        let _taking = self.taking.lock().await;
        loop {
            let slot = Arc::clone(room).acquire_owned().await.expect("the semaphore is never closed");
            if !wanted() {
                return Ok(Admission::Cancelled(ready));
            }
            let wait = match self.try_take() {
                Ok(()) => return Ok(Admission::Granted(Permit { slot, ready })),
                Err(NotYet::RetryAfter(wait)) => wait,
                // It keeps its slot meanwhile, so that leased permits are used at once.
                Err(NotYet::NeedsLease) => match Box::pin(self.lease()).await {
                    None => continue,
                    Some(wait) => wait,
                },
            };
            drop(slot);
            if clock::now() + wait > deadline {
                return Err(AdmitError::DeadlineTooShort(wait));
            }
            self.no_permit_before(clock::tick().after(wait));
            tokio::time::sleep(wait).await;
        }
    }
}

/// Counts 1 while it lives.
struct CountGuard<'a>(&'a AtomicUsize);

impl<'a> CountGuard<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for CountGuard<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use governor::clock::MonotonicClock;

    use super::super::app_quota::AppQuota;
    use super::*;

    const BUSY: QueueKey = QueueKey(1);
    const OTHER: QueueKey = QueueKey(2);

    fn quota(per_second: u32) -> CommandQuota {
        let per_second = NonZeroU32::new(per_second).expect("not 0");
        let total = Arc::new(AppQuota::new(None, None, MonotonicClock));
        CommandQuota::new(per_second, total, None, MonotonicClock)
    }

    fn within(room: &Arc<Semaphore>, millis: u64) -> AdmitRequest<'_> {
        let begun = clock::now();
        AdmitRequest { caller: BUSY, room, begun, deadline: begun + Duration::from_millis(millis) }
    }

    async fn ready() -> Result<(), ()> {
        Ok(())
    }

    #[tokio::test]
    async fn wait_past_deadline_is_rejected_at_once_with_retry_after() {
        let quota = quota(1);
        let room = Arc::new(Semaphore::new(1));
        let request = within(&room, 300);
        drop(quota.admit(request, ready(), || true).await.expect("the first"));
        let Err(AdmitError::DeadlineTooShort(retry_after)) = quota.admit(request, ready(), || true).await else {
            panic!("a permit was granted")
        };
        assert!(retry_after > Duration::from_millis(900), "{retry_after:?}");
        assert!(clock::now() < request.deadline, "it waited");
        assert_eq!(room.available_permits(), 1, "a rejected call holds no slot");
    }

    #[tokio::test]
    async fn queued_calls_delay_their_own_caller_more_than_others() {
        let quota = Arc::new(quota(2));
        let room = Arc::new(Semaphore::new(9));
        drop(quota.admit(within(&room, 9000), ready(), || true).await.expect("the first"));
        let flood: Vec<_> = (0..40)
            .map(|_| {
                let (quota, room) = (Arc::clone(&quota), Arc::clone(&room));
                tokio::spawn(async move { quota.admit(within(&room, 60_000), ready(), || true).await.map(drop) })
            })
            .collect();
        while quota.queue.ahead_of(BUSY) < 40 || quota.next_permit() == Duration::ZERO {
            tokio::task::yield_now().await;
        }
        let begun = clock::now();
        let deadline = begun + Duration::from_secs(10);
        let rejected = quota.admit(AdmitRequest { deadline, ..within(&room, 0) }, ready(), || true).await;
        assert!(matches!(rejected, Err(AdmitError::DeadlineTooShort(_))));
        assert!(clock::now() - begun < Duration::from_secs(1), "it was kept waiting");
        let other = quota.predicted_wait(quota.queue.ahead_of(OTHER));
        assert!(other < Duration::from_secs(8), "{other:?}");
        flood.iter().for_each(tokio::task::JoinHandle::abort);
    }

    #[tokio::test]
    async fn calls_that_are_unwanted_or_not_ready_take_no_permit() {
        let quota = quota(1);
        let room = Arc::new(Semaphore::new(1));
        let request = within(&room, 300);
        assert!(matches!(quota.admit(request, ready(), || false).await, Ok(Admission::Cancelled(()))));
        let broken = async { Err::<(), _>("no connection") };
        assert!(matches!(quota.admit(request, broken, || true).await, Err(AdmitError::Connect("no connection"))));
        let only_slot = Arc::clone(&room).try_acquire_owned().expect("a free slot");
        assert!(matches!(quota.admit(within(&room, 20), ready(), || true).await, Err(AdmitError::InFlightFull)));
        drop(only_slot);
        let never = std::future::pending::<Result<(), ()>>();
        assert!(matches!(quota.admit(within(&room, 20), never, || true).await, Err(AdmitError::QueueStalled)));
        let granted = quota.admit(request, ready(), || true).await;
        assert!(matches!(granted, Ok(Admission::Granted(_))), "the permit is available");
    }
}
