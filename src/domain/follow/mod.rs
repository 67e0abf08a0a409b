//! What is known about who follows whom, and what is being asked.
//!
//! ```text
//!   question ──> pair ──> facts (what is known) ──> answer
//!                  │         ▲  judged by
//!                  │         │  fence (not from before a write)
//!                  └──> pending (what is being asked, and for whom)
//! ```

pub mod answer;
pub mod distinct;
pub mod facts;
pub mod fence;
pub mod pair;
pub mod pending;
mod plain;
pub mod question;
pub mod writes;
