//! Which states are the same.
//!
//! The code only compares moments and the running numbers of requests, calls, and edges. So each is replaced by its rank
//! among those that exist, and states that differ in nothing else are one. This is exact: whole descriptions are
//! compared, not hashes of them.

use std::collections::BTreeSet;

use super::super::{Batching, CacheablePair, EdgeId, LookupScheduler, PairResult, Ticket};
use super::setup::{Scene, index, oriented};
use super::world::{Phase, Stage, World};
use crate::domain::caller::Class;
use crate::domain::pairs::item;
use crate::domain::pairs::pair::{Pair, Sides};

/// Returns the description of a state.
pub(super) fn same(world: &World, scene: &Scene) -> Box<[u8]> {
    let (mut items, mut moments, mut numbers) = (Vec::with_capacity(160), vec![0], Vec::new());
    describe(world, scene, &mut |item| {
        items.push(item);
        match item {
            Item::Plain(_) => {}
            Item::Moment(value) => moments.push(value),
            Item::Number(value) => numbers.push(value),
        }
    });
    for values in [&mut moments, &mut numbers] {
        values.sort_unstable();
        values.dedup();
    }
    let rank = |of: &[u64], value: u64| of.binary_search(&value).expect("it was collected above") as u8;
    let ranked = items.iter().map(|item| match *item {
        Item::Plain(value) => value,
        Item::Moment(value) => rank(&moments, value),
        Item::Number(value) => rank(&numbers, value),
    });
    ranked.collect()
}

/// One part of a description. Moment 0 means never, and keeps its rank.
#[derive(Clone, Copy)]
enum Item {
    Plain(u8),
    Moment(u64),
    Number(u64),
}

fn plain(put: &mut impl FnMut(Item), value: usize) {
    put(Item::Plain(u8::try_from(value).expect("small")));
}

fn describe(world: &World, scene: &Scene, put: &mut impl FnMut(Item)) {
    put(Item::Moment(world.clock));
    plain(put, usize::from(world.last_sent == world.clock));
    // A correct gateway never uses a lookup that a mark has made void, whatever it returned.
    let is_void = |pair: usize, sent: u64| scene.setup.fault.is_none() && sent <= world.mark_of(pair, &scene.setup);
    for pair in 0..2 {
        plain(put, world.chat[pair].into());
        plain(put, world.floor[pair].into());
        match world.cached[pair].filter(|cached| !is_void(pair, cached.sent.micros())) {
            None => plain(put, VOID),
            Some(cached) => {
                describe_known(cached.stored.number().into(), cached.sent.micros(), put);
                plain(put, world.asked[pair].into());
            }
        }
    }
    let pair_of = |pair: Pair| (0..2).find(|index| scene.both(*index).key() == pair.key()).expect("one of the two");
    let mut storing: Vec<_> = world
        .storing
        .iter()
        .map(|CacheablePair { pair, cached, .. }| (pair_of(*pair), cached.sent, cached.stored.number()))
        .collect();
    storing.sort_unstable();
    plain(put, storing.len());
    for (pair, sent, stored) in storing {
        plain(put, pair);
        describe_known(stored.into(), sent.micros(), put);
    }
    for change in &world.changes {
        plain(put, change.stage as usize);
        plain(put, change.applied.into());
        put(Item::Moment(change.mark));
        if matches!(change.stage, Stage::FirstRead | Stage::LastRead) {
            put(Item::Moment(change.read));
        }
        if change.stage < Stage::Acknowledged {
            change.at_end.iter().for_each(|state| plain(put, (*state).into()));
        }
    }
    for which in 0..world.readers.len() {
        describe_reader(world, scene, which, &is_void, put);
    }
    let mut calls: Vec<_> = world.calls.iter().collect();
    calls.sort_unstable_by_key(|(call, _)| call.id.0);
    plain(put, calls.len());
    for (call, read) in calls {
        put(Item::Number(call.id.0));
        plain(put, usize::from(read.is_some()));
        read.iter().flatten().for_each(|relation| plain(put, (*relation).into()));
    }
    describe_scheduler(&world.scheduler, scene, put);
}

fn describe_reader(
    world: &World,
    scene: &Scene,
    which: usize,
    is_void: &impl Fn(usize, u64) -> bool,
    put: &mut impl FnMut(Item),
) {
    let (setup, reader) = (&scene.setup.readers[which], &world.readers[which]);
    let (phase, ticket) = match reader.phase {
        Phase::Start => (0, None),
        Phase::Deciding => (1, None),
        Phase::Enqueueing => (2, None),
        Phase::Waiting(ticket) => (3, Some(ticket)),
        Phase::Notified(ticket) => (4, Some(ticket)),
        Phase::Done => (5, None),
    };
    plain(put, phase);
    ticket.iter().for_each(|Ticket(number)| put(Item::Number(*number)));
    if reader.phase == Phase::Done {
        return;
    }
    let session = &reader.session;
    plain(put, usize::from(session.admitted_under == Some(world.version())));
    for slot in &session.slots {
        let answer = slot.answer.as_ref().map(|answer| {
            let to = setup.to[slot.account];
            let known = match &answer.item {
                item::Item::Known(relation) => oriented(relation.number(), setup.from, to).into(),
                item::Item::Verbatim(_) | item::Item::Missing(_) => ERROR,
            };
            (known, answer.sent.micros())
        });
        match answer.filter(|(_, sent)| !is_void(index(setup.from, setup.to[slot.account]), *sent)) {
            None => plain(put, VOID),
            Some((known, sent)) => describe_known(known, sent, put),
        }
    }
    session.looking_up.iter().for_each(|slot| plain(put, *slot));
    let waiting = ticket.and_then(|ticket| world.waiters.0.get(&ticket));
    plain(put, waiting.map_or(0, |waiting| waiting.missing));
    let results = waiting.map_or(&reader.delivered, |waiting| &waiting.results);
    let mut results: Vec<_> = results.iter().map(|(slot, result)| (*slot, known(result))).collect();
    results.sort_unstable();
    plain(put, results.len());
    for (slot, (known, sent)) in results {
        plain(put, slot);
        if is_void(index(setup.from, setup.to[slot]), sent) {
            plain(put, VOID);
        } else {
            describe_known(known, sent, put);
        }
    }
}

/// Returns the relation or error of a result, and when its lookup was sent.
fn known(result: &PairResult) -> (usize, u64) {
    match result {
        // Stored as the user with the smaller key sees it, which is the same for all readers.
        PairResult::Known { cached, .. } => (cached.stored.number().into(), cached.sent.micros()),
        PairResult::Verbatim(_, sent) => (ERROR, sent.micros()),
        PairResult::Malformed | PairResult::Failed => unreachable!("failures end a wait at once"),
    }
}

/// Values in addition to the four relations.
const VOID: usize = 4;
const ERROR: usize = 5;

fn describe_known(known: usize, sent: u64, put: &mut impl FnMut(Item)) {
    plain(put, known);
    put(Item::Moment(sent));
}

/// Leaves out what follows from the rest: the queues by user, and the counts.
fn describe_scheduler(scheduler: &LookupScheduler, scene: &Scene, put: &mut impl FnMut(Item)) {
    let user = |key| scene.keys.iter().position(|other| *other == key).expect("a user");
    let mut edges: Vec<(&EdgeId, _)> = scheduler.edges.iter().collect();
    edges.sort_unstable_by_key(|(id, _)| **id);
    plain(put, edges.len());
    for (id, edge) in edges {
        put(Item::Number(*id));
        put(Item::Number(edge.age));
        plain(put, user(edge.pair.from));
        plain(put, user(edge.pair.to));
        plain(put, edge.keep.into());
        plain(put, edge.refresh.is_some().into());
        plain(put, usize::from(scheduler.joinable.get(&edge.pair.key()) == Some(id)));
        match edge.batching {
            Batching::Any => plain(put, 0),
            Batching::AsRequested(sides) => {
                plain(put, 1);
                plain(put, usize::from(sides == Sides::First));
            }
            Batching::Solo(ticket, sides) => {
                plain(put, 2);
                put(Item::Number(ticket.0));
                plain(put, usize::from(sides == Sides::First));
            }
        }
        plain(put, edge.batch.is_some().into());
        edge.batch.iter().for_each(|batch| put(Item::Number(batch.0)));
        plain(put, edge.waiters.len());
        for waiter in &edge.waiters {
            put(Item::Number(waiter.ticket.0));
            plain(put, waiter.slot);
            plain(put, waiter.flipped.into());
            plain(put, usize::from(waiter.sides == Sides::First));
        }
    }
    let mut batches: Vec<_> = scheduler.in_flight.iter().collect();
    batches.sort_unstable_by_key(|(id, _)| id.0);
    for (id, in_flight) in batches {
        put(Item::Number(id.0));
        put(Item::Moment(in_flight.sent.micros()));
        plain(put, user(in_flight.from));
        plain(put, usize::from(in_flight.sides == Sides::First));
        describe_edges(scheduler, &in_flight.edges, put);
    }
    let mut tickets: Vec<_> = scheduler.tickets.iter().collect();
    tickets.sort_unstable_by_key(|(ticket, _)| **ticket);
    plain(put, tickets.len());
    for (ticket, state) in tickets {
        put(Item::Number(ticket.0));
        describe_edges(scheduler, &state.edges, put);
    }
    let queues: BTreeSet<_> =
        scheduler.queues.iter().flat_map(|(caller, queue)| queue.iter().map(|at| (*caller, *at))).collect();
    plain(put, queues.len());
    for (queue, (age, id)) in queues {
        plain(put, queue.class as usize);
        plain(put, queue.caller.0 as usize);
        put(Item::Number(age));
        put(Item::Number(id));
    }
    for class in Class::ALL {
        plain(put, scheduler.turns[class].len());
        scheduler.turns[class].iter().for_each(|caller| plain(put, caller.0 as usize));
    }
}

/// Leaves out edges that no longer exist: they are never read again.
fn describe_edges(scheduler: &LookupScheduler, edges: &[EdgeId], put: &mut impl FnMut(Item)) {
    let existing: Vec<_> = edges.iter().filter(|id| scheduler.edges.contains_key(id)).collect();
    plain(put, existing.len());
    existing.iter().for_each(|id| put(Item::Number(**id)));
}
