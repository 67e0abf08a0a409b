//! chatgate: an authenticating sidecar gateway for the Tencent Cloud Chat server REST API.
//!
//! Services post plain JSON to a local address. chatgate signs the call as the app's administrator,
//! keeps inside the quota, sends it to the app's region over TLS, and answers `follow_check` from a
//! cache of pairs. Chat counts calls and a call carries up to 100 pairs: everything about lookups
//! follows from that.
//!
//! # The life of a request
//!
//! 1. [`server`] accepts it, bounds its time, and knows whose turn it takes.
//! 2. [`stack`] gives it an id and catches panics.
//! 3. [`gateway`] reads what it names, checks what is allowed, reads the body, and
//!    - answers a `follow_check` from facts, asking Chat only for what is not known, or
//!    - relays it, a write to its end whether its caller stays or leaves.
//! 4. Whatever goes upstream waits its turn in [`quota`], has its connection by then, is signed by
//!    [`sign`] last of all, and is sent by [`upstream`].
//! 5. What goes wrong becomes an answer in [`error`]'s one table.
//!
//! # The map
//!
//! Each module uses only what stands above it.
//!
//! | module | holds |
//! | --- | --- |
//! | [`domain`] | what Chat means, pure: names, signatures, envelopes, codes, and the follow core |
//! | [`clock`] | the only reader of time and randomness |
//! | [`bounds`], [`quiet`], [`body`], [`pieces`], [`mod@line`] | counters with a limit; wake-ups left out; whole bodies; short writes; callers in turn |
//! | [`config`] | what an operator may say, all problems at once |
//! | [`error`] | what chatgate answers when it answers itself |
//! | [`metrics`] | what is counted |
//! | [`fleet`] | what replicas share through Redis |
//! | [`quota`], [`retry`], [`sign`], [`upstream`] | calls a second; trying again; signatures; the way to Chat |
//! | [`trace`] | spans of requests and calls, for a collector |
//! | [`gateway`] | one request, from head to answer |
//! | [`stack`], [`server`] | layers; connections |
//! | [`systemd`] | what the service manager is told |
//! | [`webhook`] | what Chat says has happened |
//! | [`reload`] | a new configuration in a running program |
//! | [`admin`], [`telemetry`] | for operators |
//! | [`serve`] | the life of the program |
//! | [`doctor`] | what is wrong between here and Chat |
//! | [`sandbox`], [`demo`] | a Chat that says no; a gateway in front of it |
//! | [`cli`] | what may be typed |

pub mod admin;
pub mod body;
pub mod bounds;
pub mod cli;
pub mod clock;
pub mod config;
pub mod demo;
pub mod doctor;
pub mod domain;
pub mod error;
pub mod fleet;
pub mod gateway;
pub mod line;
pub mod metrics;
pub mod pieces;
pub mod quiet;
pub mod quota;
pub mod reload;
pub mod retry;
pub mod sandbox;
pub mod serve;
pub mod server;
pub mod sign;
pub mod stack;
pub mod systemd;
pub mod telemetry;
pub mod trace;
pub mod upstream;
pub mod webhook;
