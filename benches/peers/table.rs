//! The table of results, in Markdown.

use std::fs;

use super::targets::Target;
use super::work::Work;

/// The results of one run of one target.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Figures {
    pub(crate) per_second: f64,
    pub(crate) p99: f64,
    pub(crate) cpu_micros: f64,
    pub(crate) peak_mib: f64,
}

/// The runs of one target at one work, a run per round.
pub(crate) struct Row {
    pub(crate) work: Work,
    pub(crate) target: Target,
    pub(crate) runs: Vec<Figures>,
    /// Instructions per request, if they were counted.
    pub(crate) instructions: Option<u64>,
}

/// Prints the machine and all rows.
pub(crate) fn print(rows: &[Row]) {
    println!("\n{}\n", machine());
    println!("| work | target | CPU µs/request | x bare | x nginx | instructions/request | req/s | p99 µs | MiB |");
    println!("| --- | --- | --- | --- | --- | --- | --- | --- | --- |");
    for row in rows {
        let Row { work, target, runs, instructions } = row;
        let cpu: Vec<f64> = runs.iter().map(|run| run.cpu_micros).collect();
        let relative_to = |other: Target| {
            let other = rows.iter().find(|row| row.work == *work && row.target == other);
            // Runs of the same round had the same conditions.
            let ratio = |(own, other): (&Figures, &Figures)| own.cpu_micros / other.cpu_micros;
            other.map_or_else(String::new, |other| spread(runs.iter().zip(&other.runs).map(ratio).collect(), 2))
        };
        let median_of = |figure: fn(&Figures) -> f64| median(runs.iter().map(figure).collect());
        println!(
            "| {} | {} | {} | {} | {} | {} | {:.0} | {:.0} | {:.1} |",
            work.name(),
            target.name(),
            spread(cpu, 1),
            relative_to(Target::Bare),
            relative_to(Target::NginxLua),
            instructions.map_or_else(String::new, |count| count.to_string()),
            median_of(|run| run.per_second),
            median_of(|run| run.p99),
            median_of(|run| run.peak_mib),
        );
    }
}

/// Returns the median and the extremes.
fn spread(values: Vec<f64>, digits: usize) -> String {
    let (least, most) =
        values.iter().fold((f64::MAX, 0.0), |(least, most): (f64, f64), value| (least.min(*value), most.max(*value)));
    format!("{:.digits$} ({least:.digits$} to {most:.digits$})", median(values))
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

/// Returns what the figures depend on.
fn machine() -> String {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    let model = model.map_or("unknown", |(_, model)| model.trim());
    format!("chatgate {}, {cpus} CPUs: {model}", env!("CARGO_PKG_VERSION"))
}
