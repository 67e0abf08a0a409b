//! What Chat defines: apps, commands, regions, UserSigs, envelopes, error codes, and webhooks.

pub mod app;
pub(crate) mod before;
pub mod command;
pub mod envelope;
pub(crate) mod error_code;
pub mod region;
pub(crate) mod replay_guard;
pub mod usersig;
pub mod webhook;
