//! What the schedules came to.

/// What happened, added up over schedules.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Totals {
    pub(super) schedules: u64,
    pub(super) requests: u64,
    /// Calls that Chat saw.
    pub(super) calls: u64,
    pub(super) tried_again: u64,
    pub(super) signed_again: u64,
    pub(super) served_by_standby: u64,
    pub(super) answered_parked: u64,
    pub(super) answered_late: u64,
    pub(super) answered_from_older_facts: u64,
    pub(super) probes_of_the_parked: u64,
    pub(super) probes_of_the_sick: u64,
    /// Writes whose callers were told that they may or may not have been carried out, and were.
    pub(super) carried_out_unknown: u64,
}

impl Totals {
    pub(super) fn add(&mut self, other: &Totals) {
        self.schedules += other.schedules;
        self.requests += other.requests;
        self.calls += other.calls;
        self.tried_again += other.tried_again;
        self.signed_again += other.signed_again;
        self.served_by_standby += other.served_by_standby;
        self.answered_parked += other.answered_parked;
        self.answered_late += other.answered_late;
        self.answered_from_older_facts += other.answered_from_older_facts;
        self.probes_of_the_parked += other.probes_of_the_parked;
        self.probes_of_the_sick += other.probes_of_the_sick;
        self.carried_out_unknown += other.carried_out_unknown;
    }

    /// Whether everything there is has happened.
    pub(super) fn is_worth_it(&self) -> bool {
        let parts = [
            self.tried_again,
            self.signed_again,
            self.served_by_standby,
            self.answered_parked,
            self.answered_late,
            self.answered_from_older_facts,
            self.probes_of_the_parked,
            self.probes_of_the_sick,
            self.carried_out_unknown,
        ];
        self.schedules == 1 || parts.iter().all(|part| *part > 0)
    }
}
