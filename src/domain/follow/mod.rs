//! The JSON of `follow/follow_check`, and the pairs that writes and webhooks change.
//!
//! This module translates between Chat's JSON and the pair engine in [`pairs`](super::pairs), which knows no command:
//!
//! - [`request`] reads what a caller asks.
//! - [`response`] writes the response to the caller and the call to Chat, and reads Chat's response.
//! - [`writes`] finds the [`Scope`](super::pairs::scope::Scope) of a write or webhook.
//!
//! A further relation gets a sibling of this module and shares the engine.

mod fast_path;
pub mod request;
pub mod response;
pub mod writes;
