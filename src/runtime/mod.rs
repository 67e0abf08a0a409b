//! The life of the program: start, serve, reload, and stop.

pub mod reload;
pub mod serve;
mod signals;
mod systemd;
mod workers;
