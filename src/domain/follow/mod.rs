//! What is known about who follows whom, and what is being asked.
//!
//! ```text
//!   question ──> pair ──> facts (what is known) ──> answer
//!                  │         ▲  judged by
//!                  │         │  fence (not from before a write)
//!                  └──> pending (what is being asked, and for whom)
//! ```

mod fast_path;
pub mod request;
pub mod response;
pub mod writes;
