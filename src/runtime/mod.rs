//! The life of the program: start, serve, reload, and stop.

pub(crate) mod reload;
pub mod serve;
mod signals;
mod systemd;
mod workers;
