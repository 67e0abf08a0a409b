//! The commands that run until they are told to stop.

use std::process::ExitCode;

use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::USAGE;
use super::output::{complain, print};
use crate::cli::demo;
use crate::cli::demo::DemoArgs;
use crate::config::{Config, Log};
use crate::error::display_chain;
use crate::runtime::reload::ConfigSource;
use crate::runtime::serve::Server;
use crate::sandbox::{Sandbox, SandboxArgs, SandboxConfig};
use crate::telemetry::log::Telemetry;

/// Keeps this process's memory, which holds the key, out of core dumps and from other processes of the same user:
/// PR_SET_DUMPABLE of prctl(2) keeps debuggers and /proc/PID/mem away too, RLIMIT_CORE stands where a core would be
/// written to a file. Before the first secret is read.
pub(super) fn hide_memory() {
    let done = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })
        .and_then(|()| set_dumpable_behavior(DumpableBehavior::NotDumpable));
    if let Err(error) = done {
        // Some sandboxes refuse these calls. Serving goes on: the key is as safe as in other programs.
        complain(format_args!("warning: core dumps cannot be turned off: {error}"));
    }
}

/// `chatgate serve`: what the configuration leaves doubtful goes to the log first.
pub(super) fn serve(config: Config, origin: ConfigSource) -> ExitCode {
    let _log = Telemetry::start(&config.log);
    for warning in &config.warnings {
        tracing::warn!(file = warning.file, line = warning.line, "{}: {}", warning.key, warning.message);
    }
    match Server::bind(config, Some(origin)).and_then(Server::run) {
        Ok(code) => code,
        Err(error) => {
            tracing::error!("{}", display_chain(&error));
            ExitCode::FAILURE
        }
    }
}

/// `chatgate demo`.
pub(super) fn demo(args: &DemoArgs) -> ExitCode {
    let _log = Telemetry::start(&Log::default());
    let outcome = demo::run(args, |guide| {
        // A reader that has gone away is no reason to stop.
        let _ = print(guide);
    });
    outcome.unwrap_or_else(|error| {
        complain(display_chain(&error));
        ExitCode::FAILURE
    })
}

/// `chatgate sandbox`.
pub(super) fn sandbox(args: SandboxArgs) -> ExitCode {
    let config = match SandboxConfig::try_from(args) {
        Ok(config) => config,
        Err(error) => {
            complain(error);
            return ExitCode::from(USAGE);
        }
    };
    let _log = Telemetry::start(&Log::default());
    match run_sandbox(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{}", display_chain(&*error));
            ExitCode::FAILURE
        }
    }
}

fn run_sandbox(config: SandboxConfig) -> Result<(), Box<dyn std::error::Error>> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let sandbox = Sandbox::bind(config).await?;
        let stop = CancellationToken::new();
        let stopping = async {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            stop.cancel();
        };
        tokio::join!(sandbox.run(stop.clone()), stopping);
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use rustix::process::{dumpable_behavior, getrlimit};

    use super::*;

    #[test]
    fn memory_is_in_no_core_dump_and_no_debugger() {
        hide_memory();
        assert_eq!(dumpable_behavior().expect("readable"), DumpableBehavior::NotDumpable);
        let core = getrlimit(Resource::Core);
        assert_eq!((core.current, core.maximum), (Some(0), Some(0)));
    }
}
