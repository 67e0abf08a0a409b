//! When two states are the same.
//!
//! Moments are only ever compared, and so are the running numbers of requests, calls and edges. So
//! each stands for its rank among those that are there, and states that differ in nothing else are
//! one. That is exact: what is compared here is the whole description and not a hash of it.

use std::collections::BTreeSet;

use super::super::{Batching, EdgeId, LookupScheduler, Ticket};
use super::setup::{Scene, index};
use super::world::{Phase, Stage, World};

/// The description of a state.
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
    let rank = |of: &[u64], value: u64| of.binary_search(&value).expect("it was put there") as u8;
    let ranked = items.iter().map(|item| match *item {
        Item::Plain(value) => value,
        Item::Moment(value) => rank(&moments, value),
        Item::Number(value) => rank(&numbers, value),
    });
    ranked.collect()
}

/// Moment 0 is "never" and keeps its rank.
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
    // What a mark has made void is never used again, whatever it was. (By a gateway that does what it
    // should.)
    let is_void = |pair: usize, sent: u64| scene.setup.fault.is_none() && sent <= world.mark_of(pair, &scene.setup);
    for pair in 0..2 {
        plain(put, world.chat[pair].into());
        plain(put, world.floor[pair].into());
        match world.kept[pair].filter(|fact| !is_void(pair, fact.sent.micros())) {
            None => plain(put, VOID),
            Some(fact) => describe_known(fact.stored.number().into(), fact.sent.micros(), put),
        }
    }
    let mut storing: Vec<_> =
        world.storing.iter().map(|(pair, fact)| (*pair, fact.sent, fact.stored.number())).collect();
    storing.sort_unstable();
    plain(put, storing.len());
    for (pair, sent, stored) in storing {
        plain(put, pair);
        describe_known(stored.into(), sent.micros(), put);
    }
    for change in &world.changes {
        plain(put, change.stage as usize);
        plain(put, change.carried_out.into());
        put(Item::Moment(change.mark));
        if matches!(change.stage, Stage::FirstRead | Stage::LastRead) {
            put(Item::Moment(change.read));
        }
        if change.stage < Stage::Answered {
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
    describe_pending(&world.pending, scene, put);
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
        Phase::Judging => (1, None),
        Phase::Asking => (2, None),
        Phase::Waiting(ticket) => (3, Some(ticket)),
        Phase::Told(ticket) => (4, Some(ticket)),
        Phase::Done => (5, None),
    };
    plain(put, phase);
    ticket.iter().for_each(|Ticket(number)| put(Item::Number(*number)));
    plain(put, reader.left);
    plain(put, reader.slots.len());
    for (slot, known) in reader.slots.iter().enumerate() {
        match known.filter(|(_, sent)| !is_void(index(setup.from, setup.to[slot]), *sent)) {
            None => plain(put, VOID),
            Some((told, sent)) => describe_known(told.map_or(ERROR, usize::from), sent, put),
        }
    }
    let mut got = reader.got.clone();
    got.sort_unstable();
    plain(put, got.len());
    for (slot, (told, sent)) in got {
        plain(put, slot);
        if is_void(index(setup.from, setup.to[slot]), sent) {
            plain(put, VOID);
        } else {
            describe_known(told.map_or(ERROR, usize::from), sent, put);
        }
    }
}

/// Beside the four relations.
const VOID: usize = 4;
const ERROR: usize = 5;

fn describe_known(told: usize, sent: u64, put: &mut impl FnMut(Item)) {
    plain(put, told);
    put(Item::Moment(sent));
}

/// All of it but what follows from the rest: the queues by user, and the counts.
fn describe_pending(pending: &LookupScheduler, scene: &Scene, put: &mut impl FnMut(Item)) {
    let user = |key| scene.keys.iter().position(|other| *other == key).expect("a user");
    let mut edges: Vec<(&EdgeId, _)> = pending.edges.iter().collect();
    edges.sort_unstable_by_key(|(id, _)| **id);
    plain(put, edges.len());
    for (id, edge) in edges {
        put(Item::Number(*id));
        put(Item::Number(edge.age));
        plain(put, user(edge.pair.from));
        plain(put, user(edge.pair.to));
        plain(put, edge.keep.into());
        plain(put, usize::from(pending.joinable.get(&edge.pair.key()) == Some(id)));
        match edge.batching {
            Batching::Any => plain(put, 0),
            Batching::AsAsked => plain(put, 1),
            Batching::Solo(ticket) => {
                plain(put, 2);
                put(Item::Number(ticket.0));
            }
        }
        plain(put, edge.call.is_some().into());
        edge.call.iter().for_each(|call| put(Item::Number(call.0)));
        plain(put, edge.waiters.len());
        for waiter in &edge.waiters {
            put(Item::Number(waiter.ticket.0));
            plain(put, waiter.slot);
            plain(put, waiter.turned.into());
        }
    }
    let mut calls: Vec<_> = pending.calls.iter().collect();
    calls.sort_unstable_by_key(|(id, _)| id.0);
    for (id, flight) in calls {
        put(Item::Number(id.0));
        put(Item::Moment(flight.sent.micros()));
        plain(put, user(flight.from));
        describe_edges(pending, &flight.edges, put);
    }
    let mut tickets: Vec<_> = pending.tickets.iter().collect();
    tickets.sort_unstable_by_key(|(ticket, _)| **ticket);
    plain(put, tickets.len());
    for (ticket, waiting) in tickets {
        put(Item::Number(ticket.0));
        describe_edges(pending, &waiting.edges, put);
    }
    let queues: BTreeSet<_> =
        pending.queues.iter().flat_map(|(caller, queue)| queue.iter().map(|at| (*caller, *at))).collect();
    plain(put, queues.len());
    for (caller, (age, id)) in queues {
        plain(put, caller.0 as usize);
        put(Item::Number(age));
        put(Item::Number(id));
    }
    pending.turns.iter().for_each(|caller| plain(put, caller.0 as usize));
}

/// Those that are gone are never looked at again.
fn describe_edges(pending: &LookupScheduler, edges: &[EdgeId], put: &mut impl FnMut(Item)) {
    let there: Vec<_> = edges.iter().filter(|id| pending.edges.contains_key(id)).collect();
    plain(put, there.len());
    there.iter().for_each(|id| put(Item::Number(**id)));
}
