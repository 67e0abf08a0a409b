//! The pure core: what Chat means, without a socket, a clock or a random number.
//!
//! Everything here takes time, keys and bytes as arguments and returns values, so that a test can
//! replay any moment exactly. Nothing in this folder may import a runtime, an HTTP library or a
//! clock; a test in `tests/` holds it to that.

pub mod app;
pub mod caller;
pub mod command;
pub mod envelope;
pub mod error_code;
pub mod failover;
pub mod fleet;
pub mod follow;
pub mod object;
pub mod outcome;
pub mod parking;
pub mod printable;
pub mod region;
pub mod sickness;
pub mod skim;
pub mod tick;
pub mod usersig;
pub mod webhook;
pub mod webhook_once;
