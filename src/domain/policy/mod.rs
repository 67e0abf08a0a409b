//! Policies that follow from the outcomes of calls: retry, park, slow down, use the standby domain, or serve stale pairs.

pub(crate) mod call;
pub(crate) mod connect;
pub(crate) mod failover;
pub(crate) mod outcome;
pub(crate) mod parking;
pub(crate) mod proxy;
pub(crate) mod retry_budget;
pub(crate) mod stale_gate;
