//! The simulated Chat: which of its domains can be reached, and how it responds.

use std::sync::Arc;
use std::time::Duration;

use super::Random;
use crate::domain::policy::failover::Side;
use crate::domain::policy::outcome::AttemptOutcome;
use crate::domain::policy::proxy::{ConnectFailure, ProxyFailure};
use crate::domain::tick::Tick;
use crate::upstream::signer::Signature;

/// All faults begin and end within this time.
pub(super) const FAULTS_END: Duration = Duration::from_secs(60);

/// A fault that lasts for a while.
#[derive(Debug, Clone, Copy)]
enum InjectedFault {
    /// A domain refuses connections; `None`: both domains.
    Refused(Option<Side>),
    /// A domain does not respond to connection attempts; `None`: both domains.
    Unresponsive(Option<Side>),
    /// Connections break after Chat has received the call. Chat may have applied it.
    Broken,
    /// Calls get no response. Chat may have applied them.
    NoResponse,
    /// An intermediary responds with this HTTP status. Chat may have applied the call.
    ForeignStatus(u16),
    /// The egress proxy opens no tunnel; after a timeout if it is unreachable.
    Proxy(ProxyFailure),
    /// Chat responds to all calls with this ErrorCode.
    ErrorCode(i64),
    /// Chat rejects the signature in use, and accepts a fresh one.
    SignatureRejected,
    /// Calls take this much longer.
    Slow(Duration),
}

/// Codes of every kind in the table of outcomes.
const CODES: [i64; 16] =
    [60007, 60011, 60018, 60008, 30006, 90994, 30005, 60017, 70009, 60026, 60020, 70051, 70050, 70001, 70003, 123_456];

struct Episode {
    from: Tick,
    until: Tick,
    fault: InjectedFault,
    /// The fault affects one call in this number.
    one_in: u64,
}

/// The simulated Chat and the network in front of it.
pub(super) struct Chat {
    episodes: Vec<Episode>,
    /// The signature that Chat rejects.
    rejected: Option<Arc<Signature>>,
}

/// The simulated end of one call.
pub(super) struct CallFate {
    pub(super) outcome: AttemptOutcome,
    pub(super) after: Duration,
    /// Whether Chat has applied the call.
    pub(super) applied: bool,
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
                Episode { from: at(from), until: at(until), fault: random_fault(random), one_in }
            })
            .collect();
        Self { episodes, rejected: None }
    }

    fn active(&self, now: Tick) -> impl Iterator<Item = &Episode> {
        self.episodes.iter().filter(move |episode| (episode.from..episode.until).contains(&now))
    }

    /// Returns whether there is a connection to a domain, and the time that the attempt takes.
    pub(super) fn connect(&self, side: Side, now: Tick, timeout: Duration) -> (Result<(), ConnectFailure>, Duration) {
        let proxy = self.active(now).find_map(|episode| match episode.fault {
            InjectedFault::Proxy(failure) => Some(failure),
            _ => None,
        });
        if let Some(failure) = proxy {
            let after = if failure == ProxyFailure::Unreachable { timeout } else { Duration::from_millis(1) };
            return (Err(ConnectFailure::Proxy(failure)), after);
        }
        let affects = |domain: &Option<Side>| domain.is_none_or(|domain| domain == side);
        let refused = Err(ConnectFailure::Domain);
        for episode in self.active(now) {
            match &episode.fault {
                InjectedFault::Refused(domain) if affects(domain) => return (refused, Duration::from_millis(1)),
                InjectedFault::Unresponsive(domain) if affects(domain) => return (refused, timeout),
                _ => {}
            }
        }
        (Ok(()), Duration::from_millis(5))
    }

    /// Returns the end of a call with this signature.
    pub(super) fn call(&mut self, signature: &Arc<Signature>, now: Tick, random: &mut Random) -> CallFate {
        let quick = Duration::from_millis(5 + random.below(40));
        let mut after = quick;
        let episodes = self.active(now).filter(|episode| random.one_in(episode.one_in));
        let faults: Vec<InjectedFault> = episodes.map(|episode| episode.fault).collect();
        for fault in faults {
            let fate = |outcome, after, applied| CallFate { outcome, after, applied };
            match fault {
                InjectedFault::Refused(_) | InjectedFault::Unresponsive(_) | InjectedFault::Proxy(_) => {}
                InjectedFault::Slow(span) => after = quick + span,
                InjectedFault::Broken => return fate(AttemptOutcome::Broken, quick, random.one_in(2)),
                InjectedFault::NoResponse => {
                    return fate(AttemptOutcome::TimedOut, Duration::from_secs(3600), random.one_in(2));
                }
                InjectedFault::ForeignStatus(status) => {
                    return fate(AttemptOutcome::Invalid(status), quick, random.one_in(2));
                }
                InjectedFault::ErrorCode(code) => {
                    let applied = may_be_applied(code) && random.one_in(2);
                    return fate(AttemptOutcome::Answer(code), quick, applied);
                }
                InjectedFault::SignatureRejected => {
                    let rejected = self.rejected.get_or_insert_with(|| Arc::clone(signature));
                    if Arc::ptr_eq(rejected, signature) {
                        return fate(AttemptOutcome::Answer(70001), quick, false);
                    }
                }
            }
        }
        CallFate { outcome: AttemptOutcome::Answer(0), after, applied: true }
    }
}

/// Returns whether Chat may have applied a call that it answered with this ErrorCode of [`CODES`]: transient and unknown
/// errors leave that open.
pub(super) fn may_be_applied(code: i64) -> bool {
    matches!(code, 60008 | 30006 | 90994 | 123_456)
}

fn random_fault(random: &mut Random) -> InjectedFault {
    let side = match random.below(3) {
        0 => None,
        1 => Some(Side::Primary),
        _ => Some(Side::Standby),
    };
    match random.below(11) {
        0 => InjectedFault::Refused(side),
        1 => InjectedFault::Unresponsive(side),
        2 => InjectedFault::Broken,
        3 => InjectedFault::NoResponse,
        4 => InjectedFault::ForeignStatus(if random.one_in(2) { 502 } else { 200 }),
        5 => InjectedFault::SignatureRejected,
        6 => InjectedFault::Slow(Duration::from_millis(random.below(6000))),
        7 => InjectedFault::Proxy(ProxyFailure::ALL[random.below(ProxyFailure::ALL.len() as u64) as usize]),
        _ => InjectedFault::ErrorCode(CODES[random.below(CODES.len() as u64) as usize]),
    }
}
