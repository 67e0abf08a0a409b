//! Comparison of chatgate with other proxies and with a bare server.
//!
//! `cargo bench --bench peers [-- ROUNDS [SECONDS]]` prints one table. It measures the installed peers: nginx with its
//! Lua module, haproxy. Rounds are interleaved, so that a disturbance affects all targets. With valgrind, it counts
//! instructions, too. `-- soak [SECONDS]` measures slow effects, with a steady load of five minutes by default.
//! `benches/README.md` explains the output.

#![allow(clippy::print_stdout, reason = "it prints a table")]

mod bare;
#[path = "../follow/chat.rs"]
mod chat;
mod instructions;
mod load;
mod process;
mod soak;
mod table;
mod targets;
mod work;

use std::time::Duration;

use chatgate::clock;
use tokio::runtime::Builder;

use self::chat::{Certified, Chat};
use self::load::Outcome;
use self::process::{cpu_nanos, resident_kib};
use self::table::{Figures, Row};
use self::targets::{Setup, Target};
use self::work::Work;

/// As in the program.
#[cfg(feature = "mimalloc")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const ROUNDS: usize = 3;
const SECONDS: u64 = 2;
const SOAK_SECONDS: u64 = 300;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    if let [bare, address, answer] = arguments.as_slice()
        && bare == "--bare"
    {
        return runtime.block_on(bare::serve(address.parse().expect("an address"), answer));
    }
    if arguments.first().is_some_and(|argument| argument == "soak") {
        let seconds = arguments.get(1).and_then(|argument| argument.parse().ok()).unwrap_or(SOAK_SECONDS);
        return runtime.block_on(soak::run(seconds.max(10)));
    }
    let number = |at: usize| arguments.get(at).and_then(|argument| argument.parse::<u64>().ok());
    let rounds = number(0).map_or(ROUNDS, |rounds| rounds as usize).max(1);
    let span = Duration::from_secs(number(1).unwrap_or(SECONDS).max(1));
    let targets: Vec<Target> = Target::ALL.into_iter().filter(|target| target.is_installed()).collect();
    for missing in Target::ALL.into_iter().filter(|target| !targets.contains(target)) {
        println!("{} is not installed and not measured", missing.name());
    }
    let certified = Certified::new();
    let mut rows = Vec::new();
    for work in Work::ALL {
        eprintln!("{}: {rounds} rounds of {} s for each target", work.name(), span.as_secs());
        let targets = targets.iter().filter(|target| work.is_for(**target));
        let row = |target: &Target| Row { work, target: *target, runs: Vec::new(), instructions: None };
        let mut of_work: Vec<Row> = targets.map(row).collect();
        for round in 0..rounds {
            // Each round starts with another target.
            let count = of_work.len();
            for at in (0..count).map(|at| (at + round) % count) {
                let figures = runtime.block_on(run(work, of_work[at].target, &certified, span));
                of_work[at].runs.push(figures);
            }
        }
        if let Some(row) = of_work.iter_mut().find(|row| row.target == Target::Chatgate && work.is_counted()) {
            row.instructions = runtime.block_on(instructions::per_request(work, &certified));
        }
        rows.extend(of_work);
    }
    table::print(&rows);
    runtime.block_on(idle(&certified));
}

async fn run(work: Work, target: Target, certified: &Certified, span: Duration) -> Figures {
    let tls = work.uses_tls().then_some(certified);
    let chat = Chat::start(Duration::ZERO, tls);
    let running = target.start(Setup::new(chat.address, tls.map(Certified::ca_file), &work.answer()));
    let load = work.load(running.address);
    assert_eq!(load.warm(running.address).await.failed, 0, "{} fails to warm up for {}", target.name(), work.name());
    // Warms up connections, caches and branch predictors.
    load.closed(running.address, work.connections(), span / 4).await;
    let (cpu, begun) = (cpu_nanos(running.pid()), clock::now());
    let mut outcome = match work.rate() {
        None => load.closed(running.address, work.connections(), span).await,
        Some(per_second) => load.open(running.address, per_second, span).await,
    };
    let (seconds, cpu) = ((clock::now() - begun).as_secs_f64(), cpu_nanos(running.pid()) - cpu);
    assert_eq!(outcome.failed, 0, "{} fails at {}", target.name(), work.name());
    let answered = outcome.took.len() as f64;
    Figures {
        per_second: answered / seconds,
        p99: percentile(&mut outcome, 0.99),
        cpu_micros: cpu as f64 / 1000.0 / answered,
        peak_mib: resident_kib(running.pid()).1 as f64 / 1024.0,
    }
}

/// Returns a percentile in microseconds.
fn percentile(outcome: &mut Outcome, share: f64) -> f64 {
    outcome.took.sort_unstable();
    let at = (outcome.took.len() as f64 * share) as usize;
    outcome.took.get(at).map_or(0.0, |took| took.as_secs_f64() * 1e6)
}

/// Measures memory and CPU time without requests.
async fn idle(certified: &Certified) {
    let chat = Chat::start(Duration::ZERO, None);
    let running = Target::Chatgate.start(Setup::new(chat.address, Some(certified.ca_file()), ""));
    tokio::time::sleep(Duration::from_secs(1)).await;
    let cpu = cpu_nanos(running.pid());
    tokio::time::sleep(Duration::from_secs(5)).await;
    let used = (cpu_nanos(running.pid()) - cpu) as f64 / 5e6;
    println!(
        "\nchatgate, idle: {:.1} MiB, {used:.2} ms of CPU per second",
        resident_kib(running.pid()).0 as f64 / 1024.0
    );
}
