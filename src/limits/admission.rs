//! Admission of one call: queue for a turn, connect, then take a slot and a permit together.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use governor::clock::Clock;

use super::command_quota::{CommandQuota, NotYet};
use super::fair_queue::{FairQueue, QueueEntry, TurnGuard};
use crate::clock;
use crate::domain::caller::CallerQueue;

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
    pub(crate) slot: TurnGuard,
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
    /// Where the call waits.
    pub(crate) queue: CallerQueue,
    /// The slots of the calls in flight.
    pub(crate) room: &'a Arc<FairQueue>,
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
        let AdmitRequest { queue: CallerQueue { class, .. }, room, begun, deadline } = request;
        let (entry, ahead) = self.lanes.join(request.queue);
        let predicted = self.predicted_wait(class, ahead);
        if begun + predicted > deadline {
            return Err(AdmitError::DeadlineTooShort(predicted));
        }
        let admitted = pin!(self.take_turn(entry, request, get_ready, wanted));
        clock::timeout_at_lazy(deadline, admitted).await.unwrap_or_else(|| {
            if room.is_full() {
                return Err(AdmitError::InFlightFull);
            }
            let waited_for_quota = self.next_at_for(class) >= clock::tick_at(begun);
            let error = || AdmitError::DeadlineTooShort(self.interval(class));
            Err(if waited_for_quota { error() } else { AdmitError::QueueStalled })
        })
    }

    async fn take_turn<T, E>(
        &self,
        entry: QueueEntry<'_>,
        AdmitRequest { queue, room, deadline, .. }: AdmitRequest<'_>,
        get_ready: impl Future<Output = Result<T, E>>,
        wanted: impl Fn() -> bool,
    ) -> Result<Admission<T>, AdmitError<E>> {
        let class = queue.class;
        let _turn = entry.turn().await;
        let ready = get_ready.await.map_err(AdmitError::Connect)?;
        let _ready = self.lanes.count_ready(class);
        let _taking = self.lanes.taking(class).await;
        let mut waits_for_total = None;
        loop {
            self.lanes.until_not_preceded(class).await;
            let slot = room.join(queue).turn().await;
            if !wanted() {
                return Ok(Admission::Cancelled(ready));
            }
            if self.lanes.is_preceded(class) {
                continue;
            }
            let not_yet = match self.try_take(class) {
                Ok(()) => return Ok(Admission::Granted(Permit { slot, ready })),
                // It keeps its slot meanwhile, so that leased permits are used at once.
                Err(NotYet::NeedsLease) => match Box::pin(self.lease(class)).await {
                    None => continue,
                    Some(not_yet) => not_yet,
                },
                Err(not_yet) => not_yet,
            };
            drop(slot);
            let (NotYet::RetryAfter(wait) | NotYet::TotalExhausted(wait) | NotYet::Reserved(wait)) = not_yet else {
                continue;
            };
            if clock::now() + wait > deadline {
                return Err(AdmitError::DeadlineTooShort(wait));
            }
            if !matches!(not_yet, NotYet::Reserved(_)) {
                self.no_permit_before(clock::tick().after(wait));
            }
            waits_for_total = match not_yet {
                NotYet::TotalExhausted(_) => waits_for_total.or_else(|| Some(self.total.count_waiting(class))),
                _ => None,
            };
            tokio::time::sleep(wait).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use governor::clock::MonotonicClock;

    use super::super::app_quota::AppQuota;
    use super::super::reserve::CommandRate;
    use super::*;
    use crate::domain::caller::{Class, QueueKey};

    const BUSY: CallerQueue = CallerQueue::interactive(QueueKey(1));
    const OTHER: CallerQueue = CallerQueue::interactive(QueueKey(2));
    const BATCH: CallerQueue = CallerQueue { class: Class::Batch, caller: QueueKey(3) };

    fn quota(per_second: u32) -> CommandQuota {
        let rate = CommandRate { per_second: NonZeroU32::new(per_second).expect("not 0"), reserve: 0 };
        CommandQuota::new(rate, Arc::new(AppQuota::new(None, None, MonotonicClock)), None, MonotonicClock)
    }

    fn within(room: &Arc<FairQueue>, millis: u64) -> AdmitRequest<'_> {
        let begun = clock::now();
        AdmitRequest { queue: BUSY, room, begun, deadline: begun + Duration::from_millis(millis) }
    }

    async fn ready() -> Result<(), ()> {
        Ok(())
    }

    #[tokio::test]
    async fn wait_past_deadline_is_rejected_at_once_with_retry_after() {
        let quota = quota(1);
        let room = FairQueue::new(1);
        let request = within(&room, 300);
        drop(quota.admit(request, ready(), || true).await.expect("the first"));
        let Err(AdmitError::DeadlineTooShort(retry_after)) = quota.admit(request, ready(), || true).await else {
            panic!("a permit was granted")
        };
        assert!(retry_after > Duration::from_millis(900), "{retry_after:?}");
        assert!(clock::now() < request.deadline, "it waited");
        assert_eq!(room.in_use(), 0, "a rejected call holds no slot");
    }

    #[tokio::test]
    async fn queued_calls_delay_their_own_caller_more_than_others() {
        let quota = Arc::new(quota(2));
        let room = FairQueue::new(9);
        drop(quota.admit(within(&room, 9000), ready(), || true).await.expect("the first"));
        let flood: Vec<_> = (0..40)
            .map(|_| {
                let (quota, room) = (Arc::clone(&quota), Arc::clone(&room));
                tokio::spawn(async move { quota.admit(within(&room, 60_000), ready(), || true).await.map(drop) })
            })
            .collect();
        while quota.lanes.ahead_of(BUSY) < 40 || quota.next_permit(Class::Interactive) == Duration::ZERO {
            tokio::task::yield_now().await;
        }
        let begun = clock::now();
        let deadline = begun + Duration::from_secs(10);
        let rejected = quota.admit(AdmitRequest { deadline, ..within(&room, 0) }, ready(), || true).await;
        assert!(matches!(rejected, Err(AdmitError::DeadlineTooShort(_))));
        assert!(clock::now() - begun < Duration::from_secs(1), "it was kept waiting");
        let other = quota.predicted_wait(Class::Interactive, quota.lanes.ahead_of(OTHER));
        assert!(other < Duration::from_secs(8), "{other:?}");
        flood.iter().for_each(tokio::task::JoinHandle::abort);
    }

    #[tokio::test]
    async fn calls_that_are_unwanted_or_not_ready_take_no_permit() {
        let quota = quota(1);
        let room = FairQueue::new(1);
        let request = within(&room, 300);
        assert!(matches!(quota.admit(request, ready(), || false).await, Ok(Admission::Cancelled(()))));
        let broken = async { Err::<(), _>("no connection") };
        assert!(matches!(quota.admit(request, broken, || true).await, Err(AdmitError::Connect("no connection"))));
        let only_slot = room.join(BUSY).turn().await;
        assert!(matches!(quota.admit(within(&room, 20), ready(), || true).await, Err(AdmitError::InFlightFull)));
        drop(only_slot);
        let never = std::future::pending::<Result<(), ()>>();
        assert!(matches!(quota.admit(within(&room, 20), never, || true).await, Err(AdmitError::QueueStalled)));
        let granted = quota.admit(request, ready(), || true).await;
        assert!(matches!(granted, Ok(Admission::Granted(_))), "the permit is available");
    }

    /// Starts calls that wait for permits for a minute. Each counts itself in `granted` and keeps its slot.
    fn flood(
        quota: &Arc<CommandQuota>,
        room: &Arc<FairQueue>,
        queue: CallerQueue,
        calls: usize,
    ) -> (Vec<tokio::task::JoinHandle<()>>, Arc<AtomicUsize>) {
        let granted = Arc::new(AtomicUsize::new(0));
        let call = |_| {
            let (quota, room, granted) = (Arc::clone(quota), Arc::clone(room), Arc::clone(&granted));
            tokio::spawn(async move {
                let request = AdmitRequest { queue, ..within(&room, 60_000) };
                let permit = quota.admit(request, ready(), || true).await;
                granted.fetch_add(1, Ordering::SeqCst);
                std::future::pending::<()>().await;
                drop(permit);
            })
        };
        ((0..calls).map(call).collect(), granted)
    }

    async fn until(condition: impl Fn() -> bool) {
        while !condition() {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn interactive_call_gets_the_next_permit_of_a_batch_flood() {
        let (quota, room) = (Arc::new(quota(5)), FairQueue::new(99));
        let (calls, granted) = flood(&quota, &room, BATCH, 40);
        until(|| quota.lanes.ready(Class::Batch) == 8 && granted.load(Ordering::SeqCst) == 1).await;
        let before = granted.load(Ordering::SeqCst);
        for call in 0..2 {
            let permit = quota.admit(within(&room, 9000), ready(), || true).await;
            assert!(matches!(permit, Ok(Admission::Granted(_))), "call {call}");
        }
        assert_eq!(granted.load(Ordering::SeqCst), before, "a batch call went first");
        until(|| granted.load(Ordering::SeqCst) > before).await;
        calls.iter().for_each(tokio::task::JoinHandle::abort);
    }

    #[tokio::test]
    async fn batch_call_waits_for_interactive_calls_within_its_deadline() {
        let (quota, room) = (Arc::new(quota(1)), FairQueue::new(99));
        let (calls, granted) = flood(&quota, &room, BUSY, 6);
        until(|| quota.lanes.ready(Class::Interactive) == 5).await;
        let begun = clock::now();
        let rejected = quota.admit(AdmitRequest { queue: BATCH, ..within(&room, 4000) }, ready(), || true).await;
        let Err(AdmitError::DeadlineTooShort(wait)) = rejected else { panic!("{rejected:?}") };
        assert!(wait > Duration::from_secs(4) && clock::now() - begun < Duration::from_secs(2), "{wait:?}");
        calls.iter().for_each(tokio::task::JoinHandle::abort);
        assert_eq!(granted.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn slot_in_flight_goes_to_the_interactive_call() {
        let (quota, other, room) = (Arc::new(quota(1000)), Arc::new(super::tests::quota(1000)), FairQueue::new(1));
        let held = room.join(BUSY).turn().await;
        let (batch, batch_granted) = flood(&quota, &room, BATCH, 3);
        until(|| room.waiting() == 1).await;
        // Calls of the same command, and of another one.
        let (same, same_granted) = flood(&quota, &room, BUSY, 1);
        until(|| room.waiting() == 2).await;
        let (others, others_granted) = flood(&other, &room, BUSY, 1);
        until(|| room.waiting() == 3).await;
        drop(held);
        until(|| same_granted.load(Ordering::SeqCst) == 1).await;
        same.iter().for_each(tokio::task::JoinHandle::abort);
        until(|| others_granted.load(Ordering::SeqCst) == 1).await;
        assert_eq!(batch_granted.load(Ordering::SeqCst), 0);
        others.iter().for_each(tokio::task::JoinHandle::abort);
        until(|| batch_granted.load(Ordering::SeqCst) == 1).await;
        batch.iter().for_each(tokio::task::JoinHandle::abort);
    }

    #[tokio::test]
    async fn total_quota_goes_to_the_interactive_call_of_another_command() {
        let total = Arc::new(AppQuota::new(NonZeroU32::new(2), None, MonotonicClock));
        let rate = CommandRate { per_second: NonZeroU32::new(1000).expect("not 0"), reserve: 0 };
        let quotas = [0, 1].map(|_| Arc::new(CommandQuota::new(rate, Arc::clone(&total), None, MonotonicClock)));
        let room = FairQueue::new(99);
        let (batch, granted) = flood(&quotas[0], &room, BATCH, 9);
        until(|| granted.load(Ordering::SeqCst) == 1).await;
        for call in 0..2 {
            let permit = quotas[1].admit(within(&room, 9000), ready(), || true).await;
            assert!(matches!(permit, Ok(Admission::Granted(_))), "call {call}");
        }
        assert!(granted.load(Ordering::SeqCst) <= 2, "batch calls take the total");
        batch.iter().for_each(tokio::task::JoinHandle::abort);
    }
}
