//! The fuzz targets. `fuzz_targets/` passes bytes from the fuzzer, and `tests/corpus.rs` from the corpus as part of the
//! ordinary tests.
//!
//! A target checks more than the absence of panics: it compares the result with another reader of the same bytes, and
//! reads its own output again.

pub mod answer;
pub mod config;
pub mod envelope;
pub mod http1;
pub mod http2;
pub mod json;
pub mod path_and_query;
pub mod question;
pub mod scan;
pub mod stream;
pub mod tunnel;
pub mod usersig;
pub mod webhook;
