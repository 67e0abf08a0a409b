//! The pure part of fleet mode: leased permits, the health of Redis, and the formats of entries and messages.

pub(crate) mod entry;
pub(crate) mod health;
pub mod keys;
pub(crate) mod lease;
pub(crate) mod message;
pub(crate) mod undelivered;
pub(crate) mod watermarks;
