//! Counts of what happened in the schedules.

/// Events, added up over schedules.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct EventCounts {
    pub(super) schedules: u64,
    pub(super) requests: u64,
    /// Calls that Chat received.
    pub(super) calls: u64,
    pub(super) retries: u64,
    pub(super) renewed_signatures: u64,
    pub(super) standby_calls: u64,
    /// Attempts to connect that the proxy let fail.
    pub(super) proxy_failures: u64,
    pub(super) parked_responses: u64,
    /// Requests that got no connection or no permit before their deadline.
    pub(super) late_responses: u64,
    pub(super) stale_responses: u64,
    pub(super) parking_probes: u64,
    pub(super) stale_gate_probes: u64,
    /// Writes that Chat applied although their callers got an error.
    pub(super) writes_applied_with_error: u64,
}

impl EventCounts {
    pub(super) fn add(&mut self, other: &EventCounts) {
        self.schedules += other.schedules;
        self.requests += other.requests;
        self.calls += other.calls;
        self.retries += other.retries;
        self.renewed_signatures += other.renewed_signatures;
        self.standby_calls += other.standby_calls;
        self.proxy_failures += other.proxy_failures;
        self.parked_responses += other.parked_responses;
        self.late_responses += other.late_responses;
        self.stale_responses += other.stale_responses;
        self.parking_probes += other.parking_probes;
        self.stale_gate_probes += other.stale_gate_probes;
        self.writes_applied_with_error += other.writes_applied_with_error;
    }

    /// Returns whether every kind of event has happened. A single schedule need not have all of them.
    pub(super) fn cover_everything(&self) -> bool {
        let kinds = [
            self.retries,
            self.renewed_signatures,
            self.standby_calls,
            self.proxy_failures,
            self.parked_responses,
            self.late_responses,
            self.stale_responses,
            self.parking_probes,
            self.stale_gate_probes,
            self.writes_applied_with_error,
        ];
        self.schedules == 1 || kinds.iter().all(|count| *count > 0)
    }
}
