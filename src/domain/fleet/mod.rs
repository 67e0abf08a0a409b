//! What replicas share, pure: permits that were leased, whether Redis can be relied on, what is kept
//! there and what is said there. See [`crate::domain`] for what pure means.

pub mod entry;
pub mod health;
pub mod keys;
pub mod lease;
pub mod message;
pub mod watermarks;
