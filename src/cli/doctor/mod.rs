//! `chatgate doctor`: diagnoses problems between this machine and Chat, step by step.
//!
//! For each app it checks the format of the key. For the primary and the standby domain it checks the proxy, DNS,
//! connection, and TLS. Then it makes one read-only call with the same code that serves callers, and compares the clock with the `Date`
//! of the response. After an error from the primary domain it makes no call to the standby domain: the result would be
//! the same, and Chat counts rejected signatures (70050).
//!
//! [`cause`] lists what can be wrong, with exit codes and advice.

mod cause;
mod examine;
mod reach;
mod report;

use std::path::PathBuf;
use std::process::ExitCode;

pub(super) use self::cause::Cause;
use self::examine::examine;
use self::report::Report;
use super::output::{print, print_error};
use super::start::{block_on, hide_memory};
use super::{BAD_CONFIG, USAGE, config_path};
use crate::config::{self, App, Config, Env, PEM_KEY, Problem, Problems};
use crate::domain::chat::app::AppName;

/// Options of `chatgate doctor`.
#[derive(Debug, clap::Args)]
#[command(after_long_help = exit_codes())]
pub(super) struct DoctorArgs {
    /// Configuration file [default: $CHATGATE_CONFIG, else /etc/chatgate/chatgate.toml]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Diagnose only this app [default: all apps]
    #[arg(long, value_name = "NAME")]
    app: Option<AppName>,
    /// Print one JSON object instead of text
    #[arg(long)]
    json: bool,
}

/// `chatgate doctor`: prints the report; exits with the code of the first problem.
pub(super) fn run(args: DoctorArgs) -> ExitCode {
    hide_memory();
    let config = match config::load(&config_path(args.config), &Env::of_process()) {
        Ok(config) => config,
        Err(problems) => return report_bad_config(&problems, args.json),
    };
    for warning in &config.warnings {
        print_error(format_args!("warning: {warning}"));
    }
    let apps = match select_apps(&config, args.app.as_ref()) {
        Ok(apps) => apps,
        Err(code) => return code,
    };
    let report = match block_on(examine(&config, &apps)) {
        Ok(report) => report,
        Err(code) => return code,
    };
    let printed = print(&if args.json { report.json() } else { report.to_string() });
    match report.exit_code() {
        0 => printed,
        code => ExitCode::from(code),
    }
}

/// Returns all apps, or the app with this name. If it does not exist, prints a message and returns the exit code.
fn select_apps<'a>(config: &'a Config, name: Option<&AppName>) -> Result<Vec<&'a App>, ExitCode> {
    let apps: Vec<_> = config.apps.iter().filter(|app| name.is_none_or(|name| app.name == *name)).collect();
    if apps.is_empty() {
        let names: Vec<&str> = config.apps.iter().map(|app| app.name.as_str()).collect();
        print_error(format_args!("--app: unknown app; configured apps: {}", names.join(", ")));
        return Err(ExitCode::from(USAGE));
    }
    Ok(apps)
}

/// Prints the problems of an invalid configuration. A PEM file instead of the secret key has its own cause.
fn report_bad_config(problems: &Problems, json: bool) -> ExitCode {
    print_error(problems);
    let is_pem_key = |problem: &Problem| problem.key.starts_with("app[") && problem.message.starts_with(PEM_KEY);
    let is_pem = problems.all().iter().any(is_pem_key);
    let code = if is_pem { Cause::KeyIsPem.exit_code() } else { BAD_CONFIG };
    if json {
        let report = serde_json::to_value(Report { apps: Vec::new() }).expect("strings and numbers serialize to JSON");
        let cause = if is_pem { Cause::KeyIsPem.slug() } else { "bad_config" };
        let problems: Vec<String> = problems.all().iter().map(ToString::to_string).collect();
        let output =
            serde_json::json!({"exit_code": code, "apps": report["apps"], "cause": cause, "problems": problems});
        let _ = print(&format!("{output}\n"));
    } else if is_pem {
        print_error(format_args!("{}: {}", Cause::KeyIsPem.slug(), Cause::KeyIsPem.advice()));
    }
    ExitCode::from(code)
}

/// Returns the end of `chatgate doctor --help`.
fn exit_codes() -> String {
    let mut text =
        "Exit codes (of the first app with a problem):\n   0  no problem\n   1  an error without a code of its \
                    own\n   2  wrong usage\n"
            .to_owned();
    for cause in Cause::ALL.into_iter().filter(|cause| cause.exit_code() != 1) {
        text += &format!("  {}  {}: {}\n", cause.exit_code(), cause.slug(), cause.what());
    }
    text + "  78  invalid configuration"
}
