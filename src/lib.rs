//! chatgate: an authenticating sidecar gateway for the Tencent Cloud Chat server REST API.
//!
//! Services post plain JSON to a local address. chatgate signs the call as the app's administrator,
//! keeps it within the quota, sends it to the app's region over TLS, and answers checks of relations from a
//! cache of pairs. Chat counts calls, and one call carries up to 100 pairs: the design of lookups
//! follows from that.
//!
//! # The life of a request
//!
//! 1. [`server`] accepts the connection, bounds its time, and checks what hyper does not.
//! 2. [`gateway::stack`] gives the request an id and turns a panic into a response.
//! 3. [`gateway`] routes the request, checks what its caller may do, reads the body, and
//!    - answers a check of a relation from the cache; missing pairs are queued, and a dispatcher fills a call with them when
//!      it has a permit, or
//!    - relays it; a write runs to its end even if its caller disconnects.
//! 4. A call to Chat waits for its permit in [`limits`], with its connection ready, and is signed last.
//!    [`upstream`] sends it.
//! 5. An error becomes a response in the one table of [`error`].
//!
//! Decisions and their drivers are apart: `domain/policy/call.rs` decides and is pure, `gateway/call.rs` waits, locks, and
//! sends. So are `domain/pairs/check.rs` and `gateway/pairs/check.rs`, and `domain/policy/connect.rs` and
//! `upstream/failover.rs`.
//!
//! # The map
//!
//! Each module uses only the modules that stand above it; `tests/tidy` checks that.
//!
//! | module | contents |
//! | --- | --- |
//! | [`domain`] | pure logic: Chat's rules, the pair engine, its relations, and policies |
//! | [`platform`] | the differences between Linux and other systems |
//! | [`clock`] | the only reader of clocks and randomness |
//! | [`capacity`] | bounded counters of requests, bytes, and connections |
//! | [`config`] | the configuration, with all problems reported at once |
//! | [`error`] | the table of chatgate's own error responses |
//! | [`http`] | parts of HTTP that every listener needs |
//! | [`telemetry`] | logs, metrics, and traces |
//! | [`fleet`] | what replicas share through Redis |
//! | [`limits`] | quotas, and the fair queues in front of them |
//! | [`upstream`] | signed calls to Chat |
//! | [`server`] | connections of all listeners |
//! | [`gateway`] | the path of a request |
//! | [`webhook`], [`admin`] | the other two listeners |
//! | [`runtime`] | the life of the program |
//! | [`sandbox`] | a simulator of Chat |
//! | [`cli`] | subcommands |

pub(crate) mod admin;
pub(crate) mod capacity;
pub mod cli;
pub mod clock;
pub mod config;
pub mod domain;
pub mod error;
pub mod fleet;
pub mod gateway;
pub mod http;
pub(crate) mod limits;
pub(crate) mod platform;
pub mod runtime;
pub mod sandbox;
pub mod server;
pub(crate) mod telemetry;
pub mod upstream;
pub(crate) mod webhook;
