//! How subcommands start: the protection of memory, runtimes, and the subcommands that run until a signal stops them.

use std::process::ExitCode;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::USAGE;
use super::output::{print, print_error};
use crate::cli::demo;
use crate::cli::demo::DemoArgs;
use crate::config::{Config, Log};
use crate::error::display_chain;
use crate::platform;
use crate::runtime::reload::ConfigSource;
use crate::runtime::serve::Server;
use crate::sandbox::{Sandbox, SandboxArgs, SandboxConfig};
use crate::telemetry::log::Telemetry;

/// Protects the memory of this process, which contains secret keys. It must run before the first secret is read.
pub(super) fn hide_memory() {
    if let Err(error) = platform::protect_memory() {
        // Some sandboxes forbid these calls. The program continues; the key is then as safe as in other programs.
        print_error(format_args!("warning: cannot turn off core dumps: {error}; allow setrlimit and prctl"));
    }
}

/// Runs a task of a subcommand to its end. If no runtime can be created, prints a message and returns the exit code.
pub(super) fn block_on<F: Future>(task: F) -> Result<F::Output, ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| {
        print_error(format_args!("cannot start the runtime: {error}"));
        ExitCode::FAILURE
    })?;
    let output = runtime.block_on(task);
    // A pending DNS lookup must not delay the exit.
    runtime.shutdown_background();
    Ok(output)
}

/// `chatgate serve`. Logs the warnings of the configuration first.
pub(super) fn serve(config: Config, source: ConfigSource) -> ExitCode {
    let _log = Telemetry::start(&config.log);
    for warning in &config.warnings {
        tracing::warn!(file = warning.file, line = warning.line, "{}: {}", warning.key, warning.message);
    }
    match Server::bind(config, Some(source)).and_then(Server::run) {
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
        // A closed pipe does not stop the demo.
        let _ = print(guide);
    });
    outcome.unwrap_or_else(|error| {
        print_error(display_chain(&error));
        ExitCode::FAILURE
    })
}

/// `chatgate sandbox`.
pub(super) fn sandbox(args: SandboxArgs) -> ExitCode {
    let config = match SandboxConfig::try_from(args) {
        Ok(config) => config,
        Err(error) => {
            print_error(error);
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
        let on_signal = async {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            stop.cancel();
        };
        tokio::join!(sandbox.run(stop.clone()), on_signal);
        Ok(())
    })
}
