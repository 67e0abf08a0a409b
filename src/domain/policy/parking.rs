//! What Chat refuses for a reason that asking again cannot mend is not asked: it is parked, answered
//! here with Chat's own code, and tried again now and then.

use std::sync::Arc;
use std::time::Duration;

use super::outcome::{Effect, hint, is_accepted};
use crate::domain::chat::command::CommandName;
use crate::domain::tick::Tick;

/// How often something parked is tried: one call of a caller's goes through.
pub(crate) const PROBE_EVERY: Duration = Duration::from_secs(30);
/// How long nothing is sent after 70050 (vendor page "Error Codes", 1047/34348: wait one minute).
pub(crate) const LOCKOUT: Duration = Duration::from_secs(60);
/// Most commands of an app that are parked at one time; further ones are asked as before.
const COMMANDS_MAX: usize = 64;
/// So much of Chat's explanation is kept, in bytes.
const INFO_LEN_MAX: usize = 512;

/// Why something is parked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParkReason {
    /// Chat's code.
    pub code: i64,
    /// Chat's explanation, cut to 512 bytes.
    pub info: String,
    /// What to look at.
    pub hint: &'static str,
}

/// A call that is not to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parked {
    /// The reason.
    pub reason: Arc<ParkReason>,
    /// When the next one may go.
    pub retry_after: Duration,
}

#[derive(Debug)]
struct Entry {
    why: Arc<ParkReason>,
    /// When one call may go, to see whether it is still so.
    probe_at: Tick,
    /// At `probe_at` it is over without a probe.
    passes: bool,
}

/// An answer of Chat, as far as it matters here.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Observation<'a> {
    /// The command.
    pub command: CommandName<'a>,
    /// Chat's code.
    pub code: i64,
    /// Chat's explanation.
    pub info: &'a str,
    /// When the call was sent.
    pub sent: Tick,
}

/// What changed with an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ParkingChange {
    /// Nothing.
    None,
    /// The app is parked or silenced.
    App(Arc<ParkReason>),
    /// The command is parked.
    Command(Arc<ParkReason>),
    /// What was parked is not any more.
    Lifted,
}

/// What is parked of one app.
#[derive(Debug, Default)]
pub(crate) struct Parking {
    app: Option<Entry>,
    /// A code that would park the app, told once, and when.
    suspected: Option<Tick>,
    commands: Vec<(String, Entry)>,
}

impl Parking {
    /// Whether a call may be made ready. Takes no probe.
    ///
    /// # Errors
    /// What is parked.
    pub(crate) fn check(&self, command: CommandName<'_>, now: Tick) -> Result<(), Parked> {
        let own = self.commands.iter().find(|(name, _)| is(name, command)).map(|(_, entry)| entry);
        match self.app.iter().chain(own).find(|entry| now < entry.probe_at) {
            Some(entry) => Err(Parked { reason: Arc::clone(&entry.why), retry_after: entry.probe_at.since(now) }),
            None => Ok(()),
        }
    }

    /// Lets a call go. If something is parked and it is time, this one is the probe.
    ///
    /// # Errors
    /// What is parked.
    pub(crate) fn admit(&mut self, command: CommandName<'_>, now: Tick) -> Result<(), Parked> {
        self.check(command, now)?;
        if self.app.as_ref().is_some_and(|entry| entry.passes) {
            self.app = None;
        }
        let own = self.commands.iter_mut().find(|(name, _)| is(name, command)).map(|(_, entry)| entry);
        for entry in self.app.iter_mut().chain(own) {
            entry.probe_at = now.after(PROBE_EVERY);
        }
        Ok(())
    }

    /// Takes in what Chat told.
    pub(crate) fn on_response(&mut self, told: Observation<'_>, effect: Effect, now: Tick) -> ParkingChange {
        let Observation { command, code, sent, .. } = told;
        match effect {
            Effect::ParkApp => {
                // Confirmed only by a call that was sent after the first refusal had come.
                let confirmed = self.app.is_some() || self.suspected.is_some_and(|since| sent >= since);
                if !confirmed {
                    self.suspected.get_or_insert(now);
                    return ParkingChange::None;
                }
                let (was, entry) = (self.app.is_some(), Entry::new(told, now.after(PROBE_EVERY), false));
                let why = Arc::clone(&entry.why);
                self.app = Some(entry);
                if was { ParkingChange::None } else { ParkingChange::App(why) }
            }
            Effect::Lockout => {
                let entry = Entry::new(told, now.after(LOCKOUT), true);
                let why = Arc::clone(&entry.why);
                self.app = Some(entry);
                ParkingChange::App(why)
            }
            Effect::ParkCommand => {
                self.accepted();
                let entry = Entry::new(told, now.after(PROBE_EVERY), false);
                if let Some((_, parked)) = self.commands.iter_mut().find(|(name, _)| is(name, command)) {
                    *parked = entry;
                    return ParkingChange::None;
                }
                if self.commands.len() == COMMANDS_MAX {
                    return ParkingChange::None;
                }
                let why = Arc::clone(&entry.why);
                self.commands.push((command.to_string(), entry));
                ParkingChange::Command(why)
            }
            Effect::None | Effect::SlowDown if is_accepted(code) => {
                let before = self.commands.len();
                self.commands.retain(|(name, _)| !is(name, command));
                if self.accepted() || self.commands.len() < before {
                    ParkingChange::Lifted
                } else {
                    ParkingChange::None
                }
            }
            Effect::None | Effect::SlowDown => ParkingChange::None,
        }
    }

    /// Chat takes the app's calls.
    fn accepted(&mut self) -> bool {
        self.suspected = None;
        // Silence is kept whatever else comes back: those answers were under way.
        self.app.take_if(|entry| !entry.passes).is_some()
    }

    /// Why the app is parked, if it is.
    pub(crate) fn app(&self, now: Tick) -> Option<&Arc<ParkReason>> {
        let is_over = |entry: &Entry| entry.passes && now >= entry.probe_at;
        self.app.as_ref().filter(|entry| !is_over(entry)).map(|entry| &entry.why)
    }

    /// The commands that are parked, and why.
    pub(crate) fn commands(&self) -> impl Iterator<Item = (&str, &Arc<ParkReason>)> {
        self.commands.iter().map(|(name, entry)| (name.as_str(), &entry.why))
    }
}

fn is(name: &str, command: CommandName<'_>) -> bool {
    name.split_once('/') == Some((command.service(), command.command()))
}

impl Entry {
    fn new(told: Observation<'_>, probe_at: Tick, passes: bool) -> Self {
        let ends = told.info.char_indices().map(|(at, character)| at + character.len_utf8());
        let end = ends.take_while(|end| *end <= INFO_LEN_MAX).last().unwrap_or(0);
        let info = told.info[..end].to_owned();
        Self { why: Arc::new(ParkReason { code: told.code, info, hint: hint(told.code) }), probe_at, passes }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::chat::command::{CommandKind, FOLLOW_CHECK};
    use crate::domain::policy::outcome::{AttemptOutcome, classify};

    const CHECK: CommandName<'_> = FOLLOW_CHECK;

    fn named(name: &str) -> CommandName<'_> {
        CommandName::parse(name).expect("a name")
    }

    fn at(seconds: u64) -> Tick {
        Tick::from_micros(1_000_000).after(Duration::from_secs(seconds))
    }

    fn tell(parking: &mut Parking, command: CommandName<'_>, code: i64, sent: u64, now: u64) -> ParkingChange {
        let effect = classify(AttemptOutcome::Answer(code), CommandKind::Read).effect;
        parking.on_response(Observation { command, code, info: "what Chat says", sent: at(sent) }, effect, at(now))
    }

    #[test]
    fn an_app_is_parked_once_a_second_call_confirms_it_and_probed_twice_a_minute() {
        let mut parking = Parking::default();
        assert_eq!(tell(&mut parking, CHECK, 70009, 0, 1), ParkingChange::None);
        assert_eq!(
            tell(&mut parking, named("openim/sendmsg"), 70009, 0, 1),
            ParkingChange::None,
            "it was under way already"
        );
        assert!(parking.admit(CHECK, at(1)).is_ok());
        assert!(matches!(tell(&mut parking, named("openim/sendmsg"), 70009, 2, 3), ParkingChange::App(_)));
        let parked = parking.admit(CHECK, at(4)).expect_err("it is parked");
        assert_eq!((parked.reason.code, parked.retry_after), (70009, Duration::from_secs(29)));
        let admitted = (4..=123).filter(|second| parking.admit(CHECK, at(*second)).is_ok()).count();
        assert_eq!(admitted, 4);
        assert_eq!(tell(&mut parking, CHECK, 0, 123, 124), ParkingChange::Lifted);
        assert!(
            parking.admit(named("openim/sendmsg"), at(124)).is_ok()
                && parking.admit(named("openim/sendmsg"), at(124)).is_ok()
        );
    }

    #[test]
    fn one_stray_refusal_parks_nothing() {
        let mut parking = Parking::default();
        for second in (0..100).step_by(3) {
            assert_eq!(tell(&mut parking, CHECK, 60026, second, second + 1), ParkingChange::None);
            assert_eq!(tell(&mut parking, CHECK, 30001, second + 1, second + 2), ParkingChange::None);
        }
        assert!(parking.check(CHECK, at(200)).is_ok());
    }

    #[test]
    fn a_command_is_parked_by_itself() {
        let mut parking = Parking::default();
        assert!(matches!(tell(&mut parking, CHECK, 30005, 0, 1), ParkingChange::Command(_)));
        assert!(parking.check(CHECK, at(2)).is_err());
        assert!(parking.check(named("openim/sendmsg"), at(2)).is_ok());
        assert_eq!(tell(&mut parking, named("openim/sendmsg"), 0, 2, 3), ParkingChange::None);
        assert!(parking.admit(CHECK, at(30)).is_err());
        assert!(parking.admit(CHECK, at(31)).is_ok(), "the probe");
        assert!(parking.admit(CHECK, at(32)).is_err());
        assert_eq!(tell(&mut parking, CHECK, 0, 31, 32), ParkingChange::Lifted);
    }

    #[test]
    fn silence_lasts_its_minute_whatever_was_under_way_and_then_is_over() {
        let mut parking = Parking::default();
        assert!(matches!(tell(&mut parking, CHECK, 70050, 0, 1), ParkingChange::App(_)));
        tell(&mut parking, named("openim/sendmsg"), 0, 0, 2);
        assert!(parking.admit(named("openim/sendmsg"), at(60)).is_err());
        assert!(parking.app(at(60)).is_some() && parking.app(at(61)).is_none());
        assert!(
            parking.admit(named("openim/sendmsg"), at(61)).is_ok()
                && parking.admit(named("openim/sendmsg"), at(61)).is_ok()
        );
    }

    #[test]
    fn no_more_commands_are_parked_than_there_is_room_for() {
        let mut parking = Parking::default();
        for n in 0..1000 {
            tell(&mut parking, named(&format!("future/{n}")), 60017, 0, 1);
        }
        assert_eq!(parking.commands().count(), COMMANDS_MAX);
        assert!(parking.check(named("future/999"), at(2)).is_ok());
        let long = "ä".repeat(1000);
        let told = Observation { command: named("x/y"), code: 70050, info: &long, sent: at(0) };
        let ParkingChange::App(why) = parking.on_response(told, Effect::Lockout, at(1)) else {
            panic!("it is silenced")
        };
        assert!(why.info.len() <= INFO_LEN_MAX);
    }
}
