//! The explorer: visits every interleaving, and each state once.

use std::collections::HashSet;

use super::same::same;
use super::setup::{Scene, Setup};
use super::world::{Step, World};

/// Maximum number of states. A setup with more is too large for a test.
const STATES_MAX: usize = 400_000;

/// The result of an exploration.
#[derive(Debug, Default)]
pub(super) struct Report {
    pub states: usize,
    pub steps: usize,
    /// The number of responses.
    pub responses: usize,
    /// The violation, and the steps that lead to it.
    pub violation: Option<(String, Vec<String>)>,
}

/// A state, and the steps from it that were not tried yet.
struct Branch {
    world: World,
    steps: Vec<Step>,
}

/// Explores depth first, which keeps few states in memory and yields the trace of steps.
pub(super) fn explore(setup: &Setup) -> Report {
    let mut report = Report::default();
    let mut scene = Scene::new(setup);
    let mut seen = HashSet::new();
    let first = World::new(&scene);
    seen.insert(same(&first, &scene));
    let mut path = vec![Branch { steps: first.steps(setup), world: first }];
    let mut trace: Vec<Step> = Vec::new();
    while let Some(branch) = path.last_mut() {
        let Some(step) = branch.steps.pop() else {
            path.pop();
            trace.pop();
            continue;
        };
        let mut world = branch.world.clone();
        report.steps += 1;
        trace.push(step);
        let outcome = world.take(step, &mut scene).and_then(|responded| {
            let steps = world.steps(setup);
            if steps.is_empty() { world.check_end() } else { Ok(()) }.map(|()| (responded, steps))
        });
        match outcome {
            Err(violation) => {
                report.violation = Some((violation, trace.iter().map(|step| format!("{step:?}")).collect()));
                break;
            }
            Ok((responded, steps)) => {
                report.responses += usize::from(responded);
                if seen.insert(same(&world, &scene)) {
                    assert!(seen.len() <= STATES_MAX, "more than {STATES_MAX} states");
                    path.push(Branch { world, steps });
                } else {
                    trace.pop();
                }
            }
        }
    }
    report.states = seen.len();
    report
}
