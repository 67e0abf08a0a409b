//! The promises about calls that are sent.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::holds;
use crate::domain::chat::command::CommandName;
use crate::domain::policy::outcome::Effect;
use crate::domain::policy::parking::{LOCKOUT, PROBE_EVERY, ParkingChange};
use crate::domain::policy::stale_gate;
use crate::domain::tick::Tick;

/// Checks every call against the calls and responses before it.
#[derive(Default)]
pub(super) struct Watch {
    /// The calls of the last second.
    recent: VecDeque<Tick>,
    /// When the parked app was last called; `None` if it is not parked.
    app_parked: Option<Tick>,
    /// When each parked command was last called.
    commands_parked: BTreeMap<String, Tick>,
    locked_out_until: Option<Tick>,
    /// When the stale gate last let a probe through; `None` while it is closed.
    stale_probe: Option<Tick>,
}

impl Watch {
    /// Checks a call that is sent now. Returns how many parked things it probes.
    pub(super) fn on_call(&mut self, name: CommandName<'_>, now: Tick, per_second: u32) -> Result<u64, String> {
        self.recent.retain(|at| now.since(*at) <= Duration::from_secs(1));
        self.recent.push_back(now);
        holds(self.recent.len() <= per_second as usize, || format!("{} calls in one second", self.recent.len()))?;
        holds(self.locked_out_until.is_none_or(|until| now >= until), || "a call during a lockout".to_owned())?;
        let own = self.commands_parked.get_mut(&name.to_string());
        let mut probes = 0;
        for last in self.app_parked.iter_mut().chain(own) {
            let gap = now.since(*last);
            holds(gap >= PROBE_EVERY, || format!("a probe {gap:?} after the last one"))?;
            *last = now;
            probes += 1;
        }
        Ok(probes)
    }

    /// Records what a response has changed.
    pub(super) fn on_change(&mut self, change: &ParkingChange, effect: Effect, name: CommandName<'_>, now: Tick) {
        match change {
            ParkingChange::None => {}
            ParkingChange::App(_) if effect == Effect::Lockout => {
                self.locked_out_until = Some(now.after(LOCKOUT));
                self.app_parked = None;
            }
            ParkingChange::App(_) => self.app_parked = Some(now),
            ParkingChange::Command(_) => {
                self.app_parked = None;
                self.commands_parked.insert(name.to_string(), now);
            }
            ParkingChange::Lifted => {
                self.app_parked = None;
                self.commands_parked.remove(&name.to_string());
            }
        }
    }

    /// Records that the app is not parked. Not every change that ends its parking is reported.
    pub(super) fn on_app_not_parked(&mut self) {
        self.app_parked = None;
    }

    /// Records the end of a lookup.
    pub(super) fn on_lookup(&mut self, failed: bool, now: Tick) {
        self.stale_probe = failed.then(|| self.stale_probe.unwrap_or(now));
    }

    /// Checks a lookup that stale pairs could have answered. Returns whether it is a probe.
    pub(super) fn on_fresh_lookup(&mut self, now: Tick) -> Result<bool, String> {
        let Some(last) = &mut self.stale_probe else { return Ok(false) };
        let gap = now.since(std::mem::replace(last, now));
        holds(gap >= stale_gate::PROBE_EVERY, || format!("the stale gate was probed {gap:?} after the last probe"))?;
        Ok(true)
    }
}
