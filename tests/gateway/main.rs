//! End-to-end tests: the real binary between raw callers and a fake Chat.
//!
//! Each module tests one guarantee of the project. The shared helpers are in `support`; start there to write
//! another test.

mod app_choice;
mod batching;
mod bounds;
mod callers;
mod chaos;
mod cli;
mod clock_jumps;
mod concurrency;
mod control;
mod demo;
mod dns;
mod doctor;
mod errors;
mod evict;
mod exhaustion;
mod faults;
mod fleet;
mod fleet_failover;
mod fleet_faults;
mod fleet_fence;
mod fleet_tls;
mod follow;
mod freshness;
mod h2_floods;
mod http;
mod json;
mod leaks;
mod lifecycle;
mod listener_tls;
mod metrics;
mod outcomes;
mod overload;
mod pages;
mod proxy;
mod proxy_programs;
mod quota;
mod relay;
mod reload;
mod reload_state;
mod request_log;
mod shares;
mod slow;
mod smuggling;
mod status;
mod support;
mod systemd;
mod tls;
mod trace;
mod trace_faults;
mod upstream;
mod waiting;
mod webhook;
mod writes;
