//! What every fuzz target does with its bytes. `fuzz_targets/` hands them over from the fuzzer, and
//! `tests/corpus.rs` from the corpus, as part of the ordinary tests.
//!
//! A target says more than that nothing panics: what is read is compared with another reader of the
//! same bytes, and what is written is read again.

pub mod answer;
pub mod config;
pub mod envelope;
pub mod http1;
pub mod json;
pub mod path_and_query;
pub mod question;
pub mod usersig;
pub mod webhook;
