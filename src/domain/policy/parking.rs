//! Parked apps and commands.
//!
//! If Chat rejects the calls of an app or of a command for a reason that a retry cannot fix, they are parked: chatgate
//! answers with Chat's code and sends one call every 30 s as a probe.

use std::sync::Arc;
use std::time::Duration;

use super::outcome::{Effect, hint, is_accepted};
use crate::domain::chat::command::CommandName;
use crate::domain::tick::Tick;

/// How often a parked app or command is probed. The probe is a call of a caller.
pub(crate) const PROBE_EVERY: Duration = Duration::from_secs(30);
/// How long an app sends nothing after 70050 (vendor page "Error Codes", 1047/34348: wait one minute).
pub(crate) const LOCKOUT: Duration = Duration::from_secs(60);
/// Maximum number of parked commands of an app. Further commands are called as before.
const COMMANDS_MAX: usize = 64;
/// Maximum length of a stored ErrorInfo, in bytes.
const INFO_LEN_MAX: usize = 512;

/// Why an app or a command is parked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParkReason {
    /// Chat's ErrorCode.
    pub code: i64,
    /// Chat's ErrorInfo, cut to 512 bytes.
    pub info: String,
    /// The remedy.
    pub hint: &'static str,
}

/// The reason why a call must not be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parked {
    /// Why the app or the command is parked.
    pub reason: Arc<ParkReason>,
    /// The time until the next probe may be sent.
    pub retry_after: Duration,
}

#[derive(Debug)]
struct ParkedEntry {
    reason: Arc<ParkReason>,
    /// When the next probe may be sent.
    probe_at: Tick,
    /// A lockout: it ends at `probe_at`, without a probe.
    is_lockout: bool,
}

/// A response of Chat, as far as it matters for parking.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Observation<'a> {
    /// The command.
    pub command: CommandName<'a>,
    /// Chat's ErrorCode.
    pub code: i64,
    /// Chat's ErrorInfo.
    pub info: &'a str,
    /// When the call was sent.
    pub sent: Tick,
}

/// What a response has changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ParkingChange {
    /// Nothing.
    None,
    /// The app is now parked or locked out.
    App(Arc<ParkReason>),
    /// The command is now parked.
    Command(Arc<ParkReason>),
    /// The app or the command is no longer parked.
    Lifted,
}

/// The parked state of one app and its commands.
#[derive(Debug, Default)]
pub(crate) struct Parking {
    app: Option<ParkedEntry>,
    /// When Chat first returned a code that parks the app; `None` if no call has, or another call succeeded since.
    suspected: Option<Tick>,
    /// The paid feature of the first call that was rejected with [`Effect::ParkCommandOrApp`], and when; `None` if no
    /// call has been, or another call was accepted since.
    rejected_feature: Option<(String, Tick)>,
    commands: Vec<(String, ParkedEntry)>,
}

impl Parking {
    /// Checks whether a call may be prepared. Starts no probe.
    ///
    /// # Errors
    /// The reason why the app or the command is parked.
    pub(crate) fn check(&self, command: CommandName<'_>, now: Tick) -> Result<(), Parked> {
        let own = self.commands.iter().find(|(name, _)| is(name, command)).map(|(_, entry)| entry);
        match self.app.iter().chain(own).find(|entry| now < entry.probe_at) {
            Some(entry) => Err(Parked { reason: Arc::clone(&entry.reason), retry_after: entry.probe_at.since(now) }),
            None => Ok(()),
        }
    }

    /// Checks whether a call may be sent. If the app or the command is parked and a probe is due, this call is the probe.
    ///
    /// # Errors
    /// The reason why the app or the command is parked.
    pub(crate) fn admit(&mut self, command: CommandName<'_>, now: Tick) -> Result<(), Parked> {
        self.check(command, now)?;
        if self.app.as_ref().is_some_and(|entry| entry.is_lockout) {
            self.app = None;
        }
        let own = self.commands.iter_mut().find(|(name, _)| is(name, command)).map(|(_, entry)| entry);
        for entry in self.app.iter_mut().chain(own) {
            entry.probe_at = now.after(PROBE_EVERY);
        }
        Ok(())
    }

    /// Applies a response.
    pub(crate) fn on_response(&mut self, observation: Observation<'_>, effect: Effect, now: Tick) -> ParkingChange {
        let Observation { command, code, sent, .. } = observation;
        match effect {
            Effect::ParkApp => {
                // Only a call that was sent after the first rejection arrived confirms it.
                let confirmed = self.app.is_some() || self.suspected.is_some_and(|since| sent >= since);
                if !confirmed {
                    self.suspected.get_or_insert(now);
                    return ParkingChange::None;
                }
                self.park_app(observation, now)
            }
            Effect::ParkCommandOrApp => {
                let is_parked = self.app.as_ref().is_some_and(|entry| entry.reason.code == code);
                let feature = paid_feature(command);
                let is_confirmed = |(rejected, since): &(String, Tick)| rejected != feature && sent >= *since;
                if is_parked || self.rejected_feature.as_ref().is_some_and(is_confirmed) {
                    return self.park_app(observation, now);
                }
                let rejected = self.rejected_feature.take().unwrap_or_else(|| (feature.to_owned(), now));
                self.on_accepted();
                self.rejected_feature = Some(rejected);
                self.park_command(observation, now)
            }
            Effect::Lockout => {
                let entry = ParkedEntry::new(observation, now.after(LOCKOUT), true);
                let reason = Arc::clone(&entry.reason);
                self.app = Some(entry);
                ParkingChange::App(reason)
            }
            Effect::ParkCommand => {
                self.on_accepted();
                self.park_command(observation, now)
            }
            Effect::None | Effect::SlowDown if is_accepted(code) => {
                let before = self.commands.len();
                self.commands.retain(|(name, _)| !is(name, command));
                if self.on_accepted() || self.commands.len() < before {
                    ParkingChange::Lifted
                } else {
                    ParkingChange::None
                }
            }
            Effect::None | Effect::SlowDown => ParkingChange::None,
        }
    }

    fn park_app(&mut self, observation: Observation<'_>, now: Tick) -> ParkingChange {
        let was_parked = self.app.is_some();
        let entry = ParkedEntry::new(observation, now.after(PROBE_EVERY), false);
        let reason = Arc::clone(&entry.reason);
        self.app = Some(entry);
        if was_parked { ParkingChange::None } else { ParkingChange::App(reason) }
    }

    fn park_command(&mut self, observation: Observation<'_>, now: Tick) -> ParkingChange {
        let command = observation.command;
        let entry = ParkedEntry::new(observation, now.after(PROBE_EVERY), false);
        if let Some((_, parked)) = self.commands.iter_mut().find(|(name, _)| is(name, command)) {
            *parked = entry;
            return ParkingChange::None;
        }
        if self.commands.len() == COMMANDS_MAX {
            return ParkingChange::None;
        }
        let reason = Arc::clone(&entry.reason);
        self.commands.push((command.to_string(), entry));
        ParkingChange::Command(reason)
    }

    /// Chat accepts the app's calls. Returns whether the app was parked.
    fn on_accepted(&mut self) -> bool {
        self.suspected = None;
        self.rejected_feature = None;
        // Responses that were in flight do not end a lockout.
        self.app.take_if(|entry| !entry.is_lockout).is_some()
    }

    /// Returns why the app is parked; `None` if it is not.
    pub(crate) fn app(&self, now: Tick) -> Option<&Arc<ParkReason>> {
        let has_ended = |entry: &ParkedEntry| entry.is_lockout && now >= entry.probe_at;
        self.app.as_ref().filter(|entry| !has_ended(entry)).map(|entry| &entry.reason)
    }

    /// Returns the parked commands, each with its reason.
    pub(crate) fn commands(&self) -> impl Iterator<Item = (&str, &Arc<ParkReason>)> {
        self.commands.iter().map(|(name, entry)| (name.as_str(), &entry.reason))
    }
}

fn is(name: &str, command: CommandName<'_>) -> bool {
    name.split_once('/') == Some((command.service(), command.command()))
}

/// Returns the feature that is paid for with a command: its service, but the services of cloud search are one add-on
/// (vendor pages 269/114547 and 269/114549).
fn paid_feature(command: CommandName<'_>) -> &str {
    match command.service() {
        "user_search" | "group_search" => "cloud search",
        service => service,
    }
}

impl ParkedEntry {
    fn new(observation: Observation<'_>, probe_at: Tick, is_lockout: bool) -> Self {
        let ends = observation.info.char_indices().map(|(at, character)| at + character.len_utf8());
        let end = ends.take_while(|end| *end <= INFO_LEN_MAX).last().unwrap_or(0);
        let info = observation.info[..end].to_owned();
        let reason = ParkReason { code: observation.code, info, hint: hint(observation.code) };
        Self { reason: Arc::new(reason), probe_at, is_lockout }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::chat::command::FOLLOW_CHECK;
    use crate::domain::policy::outcome::effect_on;

    const CHECK: CommandName<'_> = FOLLOW_CHECK;

    fn named(name: &str) -> CommandName<'_> {
        CommandName::parse(name).expect("a name")
    }

    fn at(seconds: u64) -> Tick {
        Tick::from_micros(1_000_000).after(Duration::from_secs(seconds))
    }

    fn respond(parking: &mut Parking, command: CommandName<'_>, code: i64, sent: u64, now: u64) -> ParkingChange {
        let effect = effect_on(command, code);
        parking.on_response(Observation { command, code, info: "an explanation", sent: at(sent) }, effect, at(now))
    }

    #[test]
    fn app_is_parked_after_confirmation_and_probed_every_30_s() {
        let mut parking = Parking::default();
        assert_eq!(respond(&mut parking, CHECK, 70009, 0, 1), ParkingChange::None);
        assert_eq!(
            respond(&mut parking, named("openim/sendmsg"), 70009, 0, 1),
            ParkingChange::None,
            "it was in flight already"
        );
        assert!(parking.admit(CHECK, at(1)).is_ok());
        assert!(matches!(respond(&mut parking, named("openim/sendmsg"), 70009, 2, 3), ParkingChange::App(_)));
        let parked = parking.admit(CHECK, at(4)).expect_err("it is parked");
        assert_eq!((parked.reason.code, parked.retry_after), (70009, Duration::from_secs(29)));
        let admitted = (4..=123).filter(|second| parking.admit(CHECK, at(*second)).is_ok()).count();
        assert_eq!(admitted, 4);
        assert_eq!(respond(&mut parking, CHECK, 0, 123, 124), ParkingChange::Lifted);
        assert!(
            parking.admit(named("openim/sendmsg"), at(124)).is_ok()
                && parking.admit(named("openim/sendmsg"), at(124)).is_ok()
        );
    }

    #[test]
    fn single_rejections_park_nothing() {
        let mut parking = Parking::default();
        for second in (0..100).step_by(3) {
            assert_eq!(respond(&mut parking, CHECK, 60026, second, second + 1), ParkingChange::None);
            assert_eq!(respond(&mut parking, CHECK, 30001, second + 1, second + 2), ParkingChange::None);
        }
        assert!(parking.check(CHECK, at(200)).is_ok());
    }

    #[test]
    fn command_is_parked_without_its_app() {
        let mut parking = Parking::default();
        assert!(matches!(respond(&mut parking, CHECK, 30005, 0, 1), ParkingChange::Command(_)));
        assert!(parking.check(CHECK, at(2)).is_err());
        assert!(parking.check(named("openim/sendmsg"), at(2)).is_ok());
        assert_eq!(respond(&mut parking, named("openim/sendmsg"), 0, 2, 3), ParkingChange::None);
        assert!(parking.admit(CHECK, at(30)).is_err());
        assert!(parking.admit(CHECK, at(31)).is_ok(), "the probe");
        assert!(parking.admit(CHECK, at(32)).is_err());
        assert_eq!(respond(&mut parking, CHECK, 0, 31, 32), ParkingChange::Lifted);
    }

    #[test]
    fn paid_feature_that_is_off_parks_its_command_and_an_ended_plan_the_app() {
        let (search, page) = (named("user_search/search"), named("group_search/search"));
        let mut parking = Parking::default();
        for (command, second) in [(search, 0), (page, 2), (search, 40), (search, 80)] {
            respond(&mut parking, command, 60020, second, second + 1);
        }
        assert!(parking.check(search, at(82)).is_err() && parking.check(page, at(4)).is_err());
        assert!(parking.check(CHECK, at(82)).is_ok(), "two commands of one add-on");
        assert_eq!(
            respond(&mut parking, CHECK, 0, 82, 83),
            ParkingChange::None,
            "other commands stay parked when one is accepted"
        );
        assert!(matches!(respond(&mut parking, CHECK, 60020, 84, 85), ParkingChange::Command(_)), "accepted between");
        assert!(parking.app(at(85)).is_none());
        assert!(matches!(respond(&mut parking, search, 60020, 84, 86), ParkingChange::None), "in flight already");
        assert!(matches!(respond(&mut parking, search, 60020, 90, 91), ParkingChange::App(_)), "two services");
        assert!(parking.check(named("openim/sendmsg"), at(92)).is_err());
        assert!(parking.admit(CHECK, at(121)).is_ok(), "the probe");
        assert_eq!(respond(&mut parking, CHECK, 60020, 121, 122), ParkingChange::None);
        assert!(parking.check(named("openim/sendmsg"), at(123)).is_err());
        assert_eq!(respond(&mut parking, CHECK, 0, 152, 153), ParkingChange::Lifted);
        assert!(parking.check(named("openim/sendmsg"), at(153)).is_ok());
    }

    #[test]
    fn lockout_lasts_one_minute_whatever_was_in_flight() {
        let mut parking = Parking::default();
        assert!(matches!(respond(&mut parking, CHECK, 70050, 0, 1), ParkingChange::App(_)));
        respond(&mut parking, named("openim/sendmsg"), 0, 0, 2);
        assert!(parking.admit(named("openim/sendmsg"), at(60)).is_err());
        assert!(parking.app(at(60)).is_some() && parking.app(at(61)).is_none());
        assert!(
            parking.admit(named("openim/sendmsg"), at(61)).is_ok()
                && parking.admit(named("openim/sendmsg"), at(61)).is_ok()
        );
    }

    #[test]
    fn parked_commands_and_their_texts_are_bounded() {
        let mut parking = Parking::default();
        for n in 0..1000 {
            respond(&mut parking, named(&format!("future/{n}")), 60017, 0, 1);
        }
        assert_eq!(parking.commands().count(), COMMANDS_MAX);
        assert!(parking.check(named("future/999"), at(2)).is_ok());
        let long = "ä".repeat(1000);
        let observation = Observation { command: named("x/y"), code: 70050, info: &long, sent: at(0) };
        let ParkingChange::App(reason) = parking.on_response(observation, Effect::Lockout, at(1)) else {
            panic!("the app is locked out")
        };
        assert_eq!(reason.info, "ä".repeat(INFO_LEN_MAX / 2));
        let observation = Observation { info: "aä", ..observation };
        let ParkingChange::App(reason) = parking.on_response(observation, Effect::Lockout, at(1)) else {
            panic!("the app is locked out")
        };
        assert_eq!(reason.info, "aä");
    }

    #[test]
    fn expired_signature_lifts_nothing() {
        let mut parking = Parking::default();
        respond(&mut parking, CHECK, 30005, 0, 1);
        assert_eq!(respond(&mut parking, CHECK, 70001, 31, 32), ParkingChange::None);
        assert!(parking.check(CHECK, at(2)).is_err());
    }
}
