//! Visits every interleaving, and each state once.

use std::collections::HashSet;

use super::same::same;
use super::setup::{Scene, Setup};
use super::world::{Step, World};

/// More states than this, and the setup is too large to be a test.
const STATES_MAX: usize = 400_000;

/// The result of an exploration.
#[derive(Debug, Default)]
pub(super) struct Report {
    pub states: usize,
    pub steps: usize,
    /// All responses.
    pub answers: usize,
    /// What was wrong, and the steps that lead to it.
    pub violation: Option<(String, Vec<String>)>,
}

/// A state, and the steps that are still to be tried from it.
struct Branch {
    world: World,
    steps: Vec<Step>,
}

/// Explores depth first, which keeps few states in memory, and the trace of steps.
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
        let went = world.take(step, &mut scene).and_then(|answered| {
            let steps = world.steps(setup);
            if steps.is_empty() { world.check_end() } else { Ok(()) }.map(|()| (answered, steps))
        });
        match went {
            Err(what) => {
                report.violation = Some((what, trace.iter().map(|step| format!("{step:?}")).collect()));
                break;
            }
            Ok((answered, steps)) => {
                report.answers += usize::from(answered);
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
