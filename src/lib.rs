//! chatgate: an authenticating sidecar gateway for the Tencent Cloud Chat server REST API.

pub mod admin;
pub mod body;
pub mod bounds;
pub mod cli;
pub mod clock;
pub mod config;
pub mod demo;
pub mod domain;
pub mod error;
pub mod gateway;
pub mod line;
pub mod quota;
pub mod sandbox;
pub mod serve;
pub mod server;
pub mod sign;
pub mod stack;
pub mod telemetry;
pub mod upstream;
