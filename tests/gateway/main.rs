//! The gateway from outside: the real binary between raw callers and a Chat that the tests write.
//!
//! Each topic holds one promise of the project to the letter. `support` is what they share; start
//! there to write another.

mod app_choice;
mod batching;
mod bounds;
mod callers;
mod chaos;
mod cli;
mod concurrency;
mod control;
mod dns;
mod errors;
mod evict;
mod faults;
mod follow;
mod freshness;
mod h2_floods;
mod http;
mod json;
mod leaks;
mod lifecycle;
mod metrics;
mod outcomes;
mod overload;
mod quota;
mod relay;
mod reload;
mod request_log;
mod shares;
mod slow;
mod smuggling;
mod status;
mod support;
mod tls;
mod upstream;
mod waiting;
mod webhook;
mod writes;
