//! One run: gateways, load, faults, and the verdict.

#![allow(clippy::print_stdout, reason = "a run prints its figures")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tempfile::TempDir;

use super::history::{Ended, History, Process, Spans, peaks};
use super::load::{Load, Place};
use super::network;
use super::nodes::{Form, Nodes};
use crate::fleet::{fleet_setup, mode};
use crate::fleet_versions::programs;
use crate::support::app::MAIN;
use crate::support::chat::FakeChat;
use crate::support::client::TestRequest;
use crate::support::gateway::Gateway;
use crate::support::redis::Server;
use crate::support::setup::Setup;
use crate::support::wall_clock::WallClock;
use crate::support::{PATIENCE, eventually, hook, now};

const GATEWAYS: usize = 4;
const READERS: usize = 3;
/// Calls per second of all gateways together, for each command.
const LIMIT: usize = 80;
/// `fleet.share`: one over the number of gateways.
const SHARE: f64 = 0.25;
/// The documented bound of an invalidation between connected replicas.
const BOUND: Duration = Duration::from_millis(500);
/// The window that counts as one second: Chat notes calls slightly and variably later than they arrive.
const WINDOW: Duration = Duration::from_millis(990);
/// If the machine is so late with a task, nothing that is measured meanwhile counts as calm.
const LATE: Duration = Duration::from_millis(100);
/// The time between two looks at the state of a gateway. Its main thread answers them, and that also drives the
/// connection to Redis.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);
/// Most that the clock of Redis is off.
const STEP_MAX: Duration = Duration::from_millis(800);
/// Growth of a gateway that is not a leak: history, allocator, connections.
const GROWTH_MAX: u64 = 12 * 1024 * 1024;

/// A fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    KillRedis,
    FreezeRedis,
    SlowRedis,
    PartitionRedis,
    CutGateway,
    FailOver,
    MoveKeys,
    KillGateway,
    StopGateway,
    Reload,
    StepClock,
}

const FAULTS: [Fault; 11] = [
    Fault::KillRedis,
    Fault::FreezeRedis,
    Fault::SlowRedis,
    Fault::PartitionRedis,
    Fault::CutGateway,
    Fault::FailOver,
    Fault::MoveKeys,
    Fault::KillGateway,
    Fault::StopGateway,
    Fault::Reload,
    Fault::StepClock,
];

/// Runs the load and the faults of a seed for `length`, and asserts the verdict.
pub(super) async fn run(form: Form, seed: u64, length: Duration) {
    println!("{form:?}, seed {seed}, {length:?}");
    let world = World::start(form).await;
    let load = tokio::spawn(Arc::clone(&world.load).run(seed, READERS));
    let watching = tokio::spawn(watch(Arc::clone(&world.gateways), Arc::clone(&world.disturbed)));
    let (mut world, begun) = (world, now());
    let mut random = fastrand::Rng::with_seed(seed);
    let mut order = Vec::new();
    while begun.elapsed() < length {
        if order.is_empty() {
            // Each fault once in a random order, then again.
            order = FAULTS.to_vec();
            random.shuffle(&mut order);
        }
        tokio::time::sleep(Duration::from_millis(random.u64(1000..2200))).await;
        let fault = order.pop().expect("not empty");
        world.inject(fault, &mut random).await;
    }
    // The last answers of a calm fleet.
    tokio::time::sleep(BOUND * 2).await;
    world.load.stop.cancel();
    load.await.expect("no panic");
    watching.abort();
    world.assert_verdict().await;
}

struct World {
    chat: Arc<FakeChat>,
    load: Arc<Load>,
    nodes: Nodes,
    /// The wall clock of all Redis.
    clock: WallClock,
    _dir: TempDir,
    gateways: Arc<Vec<Slot>>,
    disturbed: Arc<Mutex<Spans>>,
    ended: Mutex<Vec<Ended>>,
    /// Recovery times of each fault.
    recoveries: BTreeMap<Fault, Vec<Duration>>,
    begun: Instant,
}

/// A gateway, which may be restarting.
struct Slot {
    gateway: tokio::sync::Mutex<Option<Arc<Gateway>>>,
    restarts: Mutex<usize>,
    /// Resident memory soon after the start.
    resident: Mutex<Option<u64>>,
}

fn setup(chat: &FakeChat, nodes: &Nodes) -> Setup {
    let setup = hook::listen(fleet_setup(chat, &nodes.lines()), &[MAIN]);
    let setup = setup.set("fleet", &format!("share = {SHARE}"));
    setup.set("app.quota", &format!("per_command = \"{LIMIT}/s\""))
}

impl World {
    async fn start(form: Form) -> World {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let clock = WallClock::new(dir.path().join("clock"));
        // The Redis of Debian does not start with libfaketime, because both replace functions that the other one needs.
        let server = match programs().pop() {
            Some(program) if program.is_absolute() => Server { program, clock: Some(clock.clone()) },
            _ => Server::default(),
        };
        println!(
            "Redis is {}, by {} clock",
            server.program.display(),
            if server.clock.is_some() { "its own" } else { "the" }
        );
        let (chat, nodes) = (Arc::new(FakeChat::start().await), Nodes::start(form, &server).await);
        let slot = |_| Slot { gateway: Default::default(), restarts: Mutex::default(), resident: Mutex::default() };
        let load = Load {
            chat: Arc::clone(&chat),
            places: (0..GATEWAYS).map(|_| Mutex::new(None)).collect(),
            history: Mutex::default(),
            failures: Mutex::default(),
            answered: Default::default(),
            rate_limited: Default::default(),
            stop: Default::default(),
        };
        let gateways: Arc<Vec<Slot>> = Arc::new((0..GATEWAYS).map(slot).collect());
        let (load, disturbed, begun) = (Arc::new(load), Arc::default(), now());
        let recoveries = BTreeMap::new();
        let ended = Mutex::default();
        let world = World { chat, load, nodes, clock, _dir: dir, gateways, disturbed, ended, recoveries, begun };
        for gateway in 0..GATEWAYS {
            world.start_gateway(gateway).await;
        }
        world.await_connected(None).await;
        // The start is not part of the run.
        world.disturbed.lock().0.push((begun, now()));
        world
    }

    async fn start_gateway(&self, at: usize) {
        let gateway = Arc::new(setup(&self.chat, &self.nodes).start().await);
        self.place(at, gateway).await;
    }

    async fn place(&self, at: usize, gateway: Arc<Gateway>) {
        let process = Process { gateway: at, restarts: *self.gateways[at].restarts.lock() };
        let (data, webhook) = (gateway.address().to_owned(), hook::address(&gateway).await);
        *self.gateways[at].gateway.lock().await = Some(gateway);
        *self.load.places[at].lock() = Some(Place { process, data, webhook });
    }

    async fn inject(&mut self, fault: Fault, random: &mut fastrand::Rng) {
        let (begun, at) = (now(), random.usize(..GATEWAYS));
        let span = Duration::from_millis(random.u64(50..1500));
        match fault {
            Fault::KillRedis => self.nodes.kill_primary(span).await,
            Fault::FreezeRedis => self.nodes.suspend_primary(span, span).await,
            Fault::SlowRedis => self.nodes.suspend_primary(span, Duration::from_millis(40)).await,
            Fault::PartitionRedis => {
                network::drop_packets(&self.nodes.primary_ports().await);
                tokio::time::sleep(span).await;
                network::heal();
            }
            Fault::CutGateway => {
                let remote = self.nodes.primary_ports().await;
                if let Some(gateway) = self.gateways[at].gateway.lock().await.clone() {
                    network::drop_packets(&network::local_ports(&gateway, &remote));
                }
                tokio::time::sleep(span).await;
                network::heal();
            }
            Fault::FailOver => self.nodes.fail_over().await,
            Fault::MoveKeys => self.nodes.move_keys().await,
            Fault::KillGateway | Fault::StopGateway => self.restart_gateway(at, fault == Fault::KillGateway).await,
            Fault::Reload => self.reload(at).await,
            Fault::StepClock => {
                self.clock.set(random.f64() * 2.0 * STEP_MAX.as_secs_f64() - STEP_MAX.as_secs_f64());
                // A process reads its clock's file at most once a second.
                tokio::time::sleep(Duration::from_millis(1100)).await;
            }
        }
        let healed = now();
        self.await_connected(Some(fault)).await;
        self.recoveries.entry(fault).or_default().push(healed.elapsed());
        // A replica that has just reconnected may have to catch up on invalidations.
        self.disturbed.lock().0.push((begun, now() + BOUND));
    }

    async fn restart_gateway(&self, at: usize, kill: bool) {
        let slot = &self.gateways[at];
        let gateway = slot.gateway.lock().await.take().expect("it runs");
        if mode(&gateway).await != "connected" {
            // The watcher has not seen it yet.
            self.disturbed.lock().0.push((now() - LOOK_INTERVAL * 2, now()));
        }
        *self.load.places[at].lock() = None;
        let process = Process { gateway: at, restarts: *slot.restarts.lock() };
        self.ended.lock().push(Ended { process, at: now() });
        *slot.restarts.lock() += 1;
        *slot.resident.lock() = None;
        // The watcher lets go of it within one round.
        let mut gateway = Some(gateway);
        let gateway = eventually("the only user of the gateway", async || match Arc::try_unwrap(gateway.take()?) {
            Ok(alone) => Some(alone),
            Err(shared) => {
                gateway = Some(shared);
                None
            }
        })
        .await;
        if kill {
            gateway.kill().await;
        } else {
            assert_eq!(gateway.stop().await, 0, "the drain was not complete");
        }
        self.start_gateway(at).await;
    }

    async fn reload(&self, at: usize) {
        let gateway = self.gateways[at].gateway.lock().await.clone().expect("it runs");
        let response = gateway.send_to_admin(TestRequest::post("/reload")).await;
        assert_eq!(response.status, 200, "{response:?}");
    }

    /// Waits until all gateways are connected after a fault.
    async fn await_connected(&self, fault: Option<Fault>) {
        let begun = now();
        for (at, slot) in self.gateways.iter().enumerate() {
            let gateway = slot.gateway.lock().await.clone().expect("it runs");
            loop {
                let fleet = gateway.admin_get("/status").await.json()["fleet"].take();
                if fleet["mode"] == "connected" {
                    break;
                }
                assert!(begun.elapsed() < PATIENCE, "gateway {at} does not reconnect after {fault:?}: {fleet}");
                tokio::time::sleep(LOOK_INTERVAL).await;
            }
            slot.resident.lock().get_or_insert(gateway.resident_bytes());
        }
    }

    async fn assert_verdict(&self) {
        let disturbed = std::mem::take(&mut *self.disturbed.lock());
        let history = std::mem::take(&mut *self.load.history.lock());
        let failures = std::mem::take(&mut *self.load.failures.lock());
        let of = |counter: &std::sync::atomic::AtomicUsize| counter.load(Ordering::Relaxed);
        let (answered, limited) = (of(&self.load.answered), of(&self.load.rate_limited));
        println!(
            "{:?}: {answered} answered, {limited} rate-limited, {} lookups of a pair, {} changes",
            self.begun.elapsed(),
            history.lookups.len(),
            history.changes.len(),
        );
        for (fault, recoveries) in &self.recoveries {
            let mut recoveries = recoveries.clone();
            recoveries.sort_unstable();
            println!(
                "{fault:?}: {} times, recovered after {:?} (median), {:?} (longest)",
                recoveries.len(),
                recoveries[recoveries.len() / 2],
                recoveries[recoveries.len() - 1]
            );
        }
        assert!(failures.is_empty(), "{} requests failed, the first: {}", failures.len(), failures[0]);
        assert!(answered > 0 && !history.lookups.is_empty() && !history.changes.is_empty());
        self.assert_fresh(&history, &disturbed);
        self.assert_within_limit(&disturbed);
        for (at, slot) in self.gateways.iter().enumerate() {
            let gateway = slot.gateway.lock().await.clone().expect("it runs");
            let (before, after) = (slot.resident.lock().unwrap_or_default(), gateway.resident_bytes());
            println!("gateway {at}: {} KiB at first, {} KiB at last", before / 1024, after / 1024);
            assert!(after < before + GROWTH_MAX, "gateway {at} grew from {before} to {after} bytes");
        }
    }

    fn assert_fresh(&self, history: &History, disturbed: &Spans) {
        // No pair expires within a run, so a lost invalidation shows.
        let stale = history.stale_answers(disturbed, &self.ended.lock(), BOUND);
        assert!(stale.is_empty(), "{} stale answers, the first: {}", stale.len(), stale[0]);
    }

    fn assert_within_limit(&self, disturbed: &Spans) {
        let mut calls: BTreeMap<String, Vec<Instant>> = BTreeMap::new();
        for call in self.chat.calls() {
            calls.entry(call.path().to_owned()).or_default().push(call.at);
        }
        for (command, mut calls) in calls {
            calls.sort_unstable();
            let (in_faults, in_calm) = peaks(&calls, WINDOW, disturbed);
            println!("{command}: at most {in_calm} calls in a calm second, {in_faults} in a disturbed one");
            let with_shares = LIMIT + (LIMIT as f64 * SHARE) as usize * GATEWAYS;
            assert!(in_calm <= LIMIT, "{command}: {in_calm} calls in a second");
            assert!(in_faults <= with_shares, "{command}: {in_faults} calls in a second");
        }
    }
}

/// Records the spans in which a gateway was disconnected, for whatever reason, and those in which the machine was busy
/// with something else.
async fn watch(gateways: Arc<Vec<Slot>>, disturbed: Arc<Mutex<Spans>>) {
    let mut last = vec![(now(), None); gateways.len()];
    loop {
        for (slot, (seen_at, seen)) in gateways.iter().zip(&mut last) {
            let Some(gateway) = slot.gateway.lock().await.clone() else { continue };
            let asked_at = now();
            let status = gateway.admin_get("/status").await.json();
            let state = (status["fleet"]["mode"].clone(), status["fleet"]["disconnects"].clone());
            let is_steady =
                asked_at.elapsed() < LATE && state.0 == "connected" && seen.as_ref().is_none_or(|seen| *seen == state);
            if !is_steady {
                disturbed.lock().0.push((*seen_at, now() + BOUND));
            }
            (*seen_at, *seen) = (now(), Some(state));
        }
        let slept_at = now();
        tokio::time::sleep(LOOK_INTERVAL).await;
        if slept_at.elapsed() > LOOK_INTERVAL + LATE {
            disturbed.lock().0.push((slept_at, now()));
        }
    }
}
