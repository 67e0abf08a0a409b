//! Policies that follow from the outcomes of calls: retry, park, slow down, use the standby domain, or serve stale pairs.

pub mod call;
pub mod connect;
pub mod failover;
pub mod outcome;
pub mod parking;
pub mod retry_budget;
pub mod stale_gate;
