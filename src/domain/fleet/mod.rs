//! The pure part of fleet mode: leased permits, the health of Redis, and the formats of entries and messages.

pub mod entry;
pub mod health;
pub mod keys;
pub mod lease;
pub mod message;
pub mod watermarks;
