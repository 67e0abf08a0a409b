//! Comparison of chatgate with other proxies and with a bare server.
//!
//! `cargo bench --bench peers [-- ROUNDS [SECONDS]]`. It measures the installed peers: nginx with its Lua module,
//! haproxy. Rounds are interleaved, so that a disturbance affects all targets. `-- soak [SECONDS]` measures slow
//! effects, with a steady load of five minutes by default. `benches/README.md` explains the output.

#![allow(clippy::print_stdout, reason = "it prints a table")]

mod bare;
#[path = "../follow/chat.rs"]
mod chat;
mod load;
mod process;
mod soak;
mod targets;
mod work;

use std::collections::BTreeMap;
use std::time::Duration;

use chatgate::clock;
use tokio::runtime::Builder;

use self::chat::{Certified, Chat};
use self::load::Outcome;
use self::process::{cpu_nanos, resident_kib};
use self::targets::{Setup, Target};
use self::work::Work;

/// As in the program.
#[cfg(feature = "mimalloc")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const ROUNDS: usize = 3;
const SECONDS: u64 = 4;
const SOAK_SECONDS: u64 = 300;

/// The results of one run of one target.
#[derive(Debug, Clone, Copy)]
struct Figures {
    per_second: f64,
    p50: f64,
    p99: f64,
    cpu_micros: f64,
    calls: f64,
    peak_mib: f64,
}

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
    for work in Work::ALL {
        let mut rows: BTreeMap<usize, Vec<Figures>> = BTreeMap::new();
        for round in 0..rounds {
            // Each round starts with another target.
            for at in (0..targets.len()).map(|at| (at + round) % targets.len()) {
                if work.is_for(targets[at]) {
                    let figures = runtime.block_on(run(work, targets[at], &certified, span));
                    rows.entry(at).or_default().push(figures);
                }
            }
        }
        print(work, &targets, &rows);
    }
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
    let (calls, cpu, begun) = (chat.counts().0, cpu_nanos(running.pid()), clock::now());
    let mut outcome = match work.rate() {
        None => load.closed(running.address, work.connections(), span).await,
        Some(per_second) => load.open(running.address, per_second, span).await,
    };
    let (seconds, cpu) = ((clock::now() - begun).as_secs_f64(), cpu_nanos(running.pid()) - cpu);
    assert_eq!(outcome.failed, 0, "{} fails at {}", target.name(), work.name());
    let answered = outcome.took.len() as f64;
    Figures {
        per_second: answered / seconds,
        p50: percentile(&mut outcome, 0.5),
        p99: percentile(&mut outcome, 0.99),
        cpu_micros: cpu as f64 / 1000.0 / answered,
        calls: (chat.counts().0 - calls) as f64 / answered,
        peak_mib: resident_kib(running.pid()).1 as f64 / 1024.0,
    }
}

/// Returns a percentile in microseconds.
fn percentile(outcome: &mut Outcome, share: f64) -> f64 {
    outcome.took.sort_unstable();
    let at = (outcome.took.len() as f64 * share) as usize;
    outcome.took.get(at).map_or(0.0, |took| took.as_secs_f64() * 1e6)
}

fn print(work: Work, targets: &[Target], rows: &BTreeMap<usize, Vec<Figures>>) {
    println!("\n{}", work.name());
    println!(
        "{:<12} {:>9} {:>8} {:>8} {:>20} {:>8} {:>8} {:>9} {:>6}",
        "target", "req/s", "p50 µs", "p99 µs", "CPU µs/req", "x bare", "x nginx", "calls/req", "MiB"
    );
    let cpu_of = |target: Target| {
        let at = targets.iter().position(|other| *other == target)?;
        rows.get(&at).map(|runs| runs.iter().map(|run| run.cpu_micros).collect::<Vec<_>>())
    };
    let (bare, nginx) = (cpu_of(Target::Bare), cpu_of(Target::NginxLua));
    for (at, runs) in rows {
        let of = |figure: fn(&Figures) -> f64| median(runs.iter().map(figure).collect());
        let cpu: Vec<f64> = runs.iter().map(|run| run.cpu_micros).collect();
        // Compares runs of the same round, so that both ran under the same conditions.
        let ratio = |others: &Option<Vec<f64>>| match others {
            Some(others) => format!("{:.2}", median(cpu.iter().zip(others).map(|(own, other)| own / other).collect())),
            None => "-".to_owned(),
        };
        let (least, most) = (cpu.iter().copied().fold(f64::MAX, f64::min), cpu.iter().copied().fold(0.0, f64::max));
        println!(
            "{:<12} {:>9.0} {:>8.0} {:>8.0} {:>20} {:>8} {:>8} {:>9.3} {:>6.1}",
            targets[*at].name(),
            of(|run| run.per_second),
            of(|run| run.p50),
            of(|run| run.p99),
            format!("{:.1} ({least:.1} to {most:.1})", median(cpu.clone())),
            ratio(&bare),
            ratio(&nginx),
            of(|run| run.calls),
            of(|run| run.peak_mib),
        );
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
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
