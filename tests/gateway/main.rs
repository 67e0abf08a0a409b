//! End-to-end tests: the real binary between raw callers and a fake Chat.
//!
//! Each module tests one guarantee of the project. The shared helpers are in `support`; start there to write
//! another test.
//!
//! Tests that need namespaces, /proc, or another part of Linux are compiled on Linux only.

mod app_choice;
mod batching;
mod bounds;
mod by_caller;
mod caller_proofs;
mod caller_signatures;
mod callers;
mod chaos;
mod classes;
mod cli;
#[cfg(target_os = "linux")]
mod clock_jumps;
mod concurrency;
mod control;
mod deadline;
mod demo;
#[cfg(target_os = "linux")]
mod dns;
mod doctor;
mod errors;
mod evict;
#[cfg(target_os = "linux")]
mod exhaustion;
mod faults;
mod fleet;
#[cfg(target_os = "linux")]
mod fleet_chaos;
mod fleet_cluster;
mod fleet_failover;
mod fleet_faults;
mod fleet_fence;
mod fleet_sentinel;
mod fleet_tls;
mod fleet_versions;
mod follow;
mod forward;
mod freshness;
#[cfg(target_os = "linux")]
mod h2_floods;
mod h2_peers;
mod http;
mod json;
mod leaks;
mod lifecycle;
mod listener_tls;
mod messages;
mod metrics;
mod outcomes;
mod overload;
mod pages;
mod proxy;
#[cfg(target_os = "linux")]
mod proxy_programs;
mod quota;
mod reads;
mod reads_shared;
mod reads_writes;
mod refusals;
mod relations;
mod relay;
mod reload;
mod reload_state;
mod repeats;
mod request_log;
mod revalidation;
mod shares;
mod simulated_relations;
mod slow;
mod smuggling;
mod status;
mod suites;
mod support;
#[cfg(target_os = "linux")]
mod systemd;
mod tls;
mod trace;
mod trace_faults;
mod upstream;
mod waiting;
mod webhook;
mod webhook_tls;
mod writes;
