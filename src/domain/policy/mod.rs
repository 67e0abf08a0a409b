//! What an outcome means: retry, park, slow down, use the standby domain, or serve stale pairs.

pub mod call;
pub mod failover;
pub mod outcome;
pub mod parking;
pub mod retry_budget;
pub mod stale_gate;
