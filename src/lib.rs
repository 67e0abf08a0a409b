//! chatgate: an authenticating sidecar gateway for the Tencent Cloud Chat server REST API.

pub mod clock;
pub mod config;
pub mod domain;
