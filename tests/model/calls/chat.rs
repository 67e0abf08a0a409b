//! Chat as the schedule has it: which of its domains can be reached, and what it answers.

use std::sync::Arc;
use std::time::Duration;

use super::Random;
use crate::domain::policy::failover::Side;
use crate::domain::policy::outcome::AttemptOutcome;
use crate::domain::tick::Tick;
use crate::upstream::signer::Signature;

/// Faults begin and end within this time.
pub(super) const FAULTS_END: Duration = Duration::from_secs(60);

/// What is wrong for a while.
#[derive(Debug, Clone, Copy)]
enum Disturbance {
    /// A domain refuses connections; `None`: both do.
    Refused(Option<Side>),
    /// A domain does not answer connections; `None`: neither does.
    Deaf(Option<Side>),
    /// Calls break after a while; whether they were carried out nobody knows.
    Broken,
    /// Calls are not answered.
    Silent,
    /// Something in between answers with this status.
    Between(u16),
    /// Everything is answered with this code.
    Code(i64),
    /// The signature of now has ended; a fresh one is taken.
    SignatureEnds,
    /// Calls take this long.
    Slow(Duration),
}

/// Codes of every kind that the table of outcomes knows.
const CODES: [i64; 16] =
    [60007, 60011, 60018, 60008, 30006, 90994, 30005, 60017, 70009, 60026, 60020, 70051, 70050, 70001, 70003, 123_456];

struct Episode {
    from: Tick,
    until: Tick,
    wrong: Disturbance,
    /// One call in so many is hit.
    one_in: u64,
}

/// The other side.
pub(super) struct Chat {
    episodes: Vec<Episode>,
    /// A signature that is refused from now on.
    ended: Option<Arc<Signature>>,
}

/// What becomes of one call.
pub(super) struct Fate {
    pub(super) seen: AttemptOutcome,
    pub(super) after: Duration,
    /// Whether Chat did what it was told.
    pub(super) carried_out: bool,
}

impl Chat {
    pub(super) fn new(random: &mut Random, begin: Tick) -> Self {
        let latest = FAULTS_END.as_millis() as u64;
        let episodes = (0..1 + random.below(5))
            .map(|_| {
                let from = random.below(latest);
                let until = from + 1 + random.below(latest - from);
                let at = |millis| begin.after(Duration::from_millis(millis));
                let one_in = if random.one_in(2) { 1 } else { 1 + random.below(6) };
                Episode { from: at(from), until: at(until), wrong: wrong(random), one_in }
            })
            .collect();
        Self { episodes, ended: None }
    }

    fn wrongs(&self, now: Tick) -> impl Iterator<Item = &Episode> {
        self.episodes.iter().filter(move |episode| (episode.from..episode.until).contains(&now))
    }

    /// Whether a domain takes a connection, and after what time that is known.
    pub(super) fn connect(&self, side: Side, now: Tick, timeout: Duration) -> (bool, Duration) {
        let hits = |what: &Option<Side>| what.is_none_or(|what| what == side);
        for episode in self.wrongs(now) {
            match &episode.wrong {
                Disturbance::Refused(what) if hits(what) => return (false, Duration::from_millis(1)),
                Disturbance::Deaf(what) if hits(what) => return (false, timeout),
                _ => {}
            }
        }
        (true, Duration::from_millis(5))
    }

    /// What becomes of a call with this signature.
    pub(super) fn call(&mut self, signature: &Arc<Signature>, now: Tick, random: &mut Random) -> Fate {
        let quick = Duration::from_millis(5 + random.below(40));
        let mut after = quick;
        let hit: Vec<Disturbance> = {
            let episodes = self.episodes.iter().filter(|episode| (episode.from..episode.until).contains(&now));
            episodes.filter(|episode| random.one_in(episode.one_in)).map(|episode| episode.wrong).collect()
        };
        for wrong in hit {
            let fate = |seen, after, carried_out| Fate { seen, after, carried_out };
            match wrong {
                Disturbance::Refused(_) | Disturbance::Deaf(_) => {}
                Disturbance::Slow(span) => after = quick + span,
                Disturbance::Broken => return fate(AttemptOutcome::Broken, quick, random.one_in(2)),
                Disturbance::Silent => {
                    return fate(AttemptOutcome::TimedOut, Duration::from_secs(3600), random.one_in(2));
                }
                Disturbance::Between(status) => return fate(AttemptOutcome::Invalid(status), quick, random.one_in(2)),
                Disturbance::Code(code) => {
                    // Of these, only what is transient or unknown may have done something.
                    let perhaps = matches!(code, 60008 | 30006 | 90994 | 123_456);
                    return fate(AttemptOutcome::Answer(code), quick, perhaps && random.one_in(2));
                }
                Disturbance::SignatureEnds => {
                    let ended = self.ended.get_or_insert_with(|| Arc::clone(signature));
                    if Arc::ptr_eq(ended, signature) {
                        return fate(AttemptOutcome::Answer(70001), quick, false);
                    }
                }
            }
        }
        Fate { seen: AttemptOutcome::Answer(0), after, carried_out: true }
    }
}

fn wrong(random: &mut Random) -> Disturbance {
    let mut which = || match random.below(3) {
        0 => None,
        1 => Some(Side::Primary),
        _ => Some(Side::Standby),
    };
    let side = which();
    match random.below(10) {
        0 => Disturbance::Refused(side),
        1 => Disturbance::Deaf(side),
        2 => Disturbance::Broken,
        3 => Disturbance::Silent,
        4 => Disturbance::Between(if random.one_in(2) { 502 } else { 200 }),
        5 => Disturbance::SignatureEnds,
        6 => Disturbance::Slow(Duration::from_millis(random.below(6000))),
        _ => Disturbance::Code(CODES[random.below(CODES.len() as u64) as usize]),
    }
}
