//! `chatgate doctor`.

use std::path::PathBuf;
use std::process::ExitCode;

use crate::cli::doctor::{Cause, Report, examine};
use crate::cli::output::{complain, print};
use crate::cli::start::hide_memory;
use crate::cli::{BAD_CONFIG, USAGE, config_path};
use crate::config::{self, Env, Problems, SecretError};
use crate::domain::chat::app::AppName;

/// Options of `chatgate doctor`.
#[derive(Debug, clap::Args)]
#[command(after_long_help = exit_codes())]
pub(crate) struct DoctorArgs {
    /// Configuration [default: $CHATGATE_CONFIG, or /etc/chatgate/chatgate.toml]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Only this app [default: all of them]
    #[arg(long, value_name = "NAME")]
    app: Option<AppName>,
    /// Print one JSON object for machines
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: DoctorArgs) -> ExitCode {
    hide_memory();
    let config = match config::load(&config_path(args.config), &Env::of_process()) {
        Ok(config) => config,
        Err(problems) => return refuse(&problems, args.json),
    };
    for warning in &config.warnings {
        complain(format_args!("warning: {warning}"));
    }
    let apps: Vec<_> =
        config.apps.iter().filter(|app| args.app.as_ref().is_none_or(|name| app.name == *name)).collect();
    if apps.is_empty() {
        let names: Vec<&str> = config.apps.iter().map(|app| app.name.as_str()).collect();
        complain(format_args!("--app: there is no app of that name; there are {}", names.join(", ")));
        return ExitCode::from(USAGE);
    }
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            complain(format_args!("cannot start: {error}"));
            return ExitCode::FAILURE;
        }
    };
    let report = runtime.block_on(examine(&config, &apps));
    // A name that is still being looked up must not hold up the end.
    runtime.shutdown_background();
    let printed = print(&if args.json { report.json() } else { report.to_string() });
    match report.exit_code() {
        0 => printed,
        code => ExitCode::from(code),
    }
}

/// A configuration that does not hold. A PEM file in place of the key is a cause that the doctor knows.
fn refuse(problems: &Problems, json: bool) -> ExitCode {
    complain(problems);
    let pem = SecretError::Pem.to_string();
    let pem = problems.all().iter().any(|problem| problem.key.starts_with("app[") && problem.message == pem);
    let code = if pem { Cause::KeyIsPem.exit_code() } else { BAD_CONFIG };
    if json {
        let report = serde_json::to_value(Report { apps: Vec::new() }).expect("texts and numbers always become JSON");
        let cause = if pem { Cause::KeyIsPem.slug() } else { "bad_config" };
        let problems: Vec<String> = problems.all().iter().map(ToString::to_string).collect();
        let whole =
            serde_json::json!({"exit_code": code, "apps": report["apps"], "cause": cause, "problems": problems});
        let _ = print(&format!("{whole}\n"));
    } else if pem {
        complain(format_args!("{}: {}", Cause::KeyIsPem.slug(), Cause::KeyIsPem.advice()));
    }
    ExitCode::from(code)
}

/// The end of `chatgate doctor --help`.
fn exit_codes() -> String {
    let mut text =
        "Exit codes (of the first app that has something wrong):\n   0  all is well\n   1  another failure\n   2  \
                    wrong usage\n"
            .to_owned();
    for cause in Cause::ALL.into_iter().filter(|cause| cause.exit_code() != 1) {
        text += &format!("  {}  {}: {}\n", cause.exit_code(), cause.slug(), cause.what());
    }
    text + "  78  bad configuration"
}
