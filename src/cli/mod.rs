//! The command line: what may be typed, and what each command prints and returns.
//!
//! stdout carries what was asked for, stderr the log and words to people. Exit codes: 0 fine, 1 failed
//! at run time, [`USAGE`] wrong usage, [`BAD_CONFIG`] bad configuration; `doctor` has one for each cause.

mod check;
mod control;
pub mod demo;
pub mod doctor;
mod init;
mod output;
mod pages;
mod start;
mod usersig;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use self::output::{complain, print};
use crate::cli::demo::DemoArgs;
use crate::config::{Config, Env, PATH_DEFAULT};
use crate::runtime::reload::ConfigSource;
use crate::sandbox::SandboxArgs;

/// Exit code for wrong usage, as clap has it.
pub const USAGE: u8 = 2;

/// Exit code for a configuration that is refused: `EX_CONFIG` of sysexits(3).
pub const BAD_CONFIG: u8 = 78;

/// Names the configuration if `--config` does not.
const CONFIG_VARIABLE: &str = "CHATGATE_CONFIG";

/// Authenticating sidecar gateway for the Tencent Cloud Chat server REST API
#[derive(Debug, Parser)]
#[command(name = "chatgate", version, arg_required_else_help = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs the gateway
    Serve(ConfigArgs),
    /// Runs a gateway and a stand-in for Chat in one process, without credentials
    Demo(DemoArgs),
    /// Runs a stand-in for Chat, for trials and tests without an account
    Sandbox(SandboxArgs),
    /// Reads the configuration and every file it names, and says what it comes to
    Check(ConfigArgs),
    /// Finds out what is wrong with a key, an app or a network: one harmless call for each app
    Doctor(doctor::args::DoctorArgs),
    /// Writes a configuration to fill in, with every key explained
    Init(init::InitArgs),
    /// Asks a running gateway whether it is ready
    Healthcheck(control::AdminArgs),
    /// Waits until a gateway is ready
    Wait(control::WaitArgs),
    /// Tells a running gateway to finish what it has and end, and waits for that
    Stop(control::StopArgs),
    /// Makes signatures and takes them apart
    #[command(subcommand)]
    Usersig(usersig::UsersigCommand),
    /// Prints a script that makes a shell complete this program's command line
    Completions(pages::CompletionsArgs),
    /// Prints a manual page, in roff
    Man(pages::ManArgs),
    /// Prints the version
    #[command(hide = true)] // beside --version, for those who type it like a command
    Version,
}

#[derive(Debug, clap::Args)]
struct ConfigArgs {
    /// Configuration [default: $CHATGATE_CONFIG, or /etc/chatgate/chatgate.toml]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// Runs the program with these arguments, the program's name first.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are such errors too, with code 0. A closed pipe is no news to anybody.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(USAGE));
        }
    };
    match cli.command {
        Command::Serve(args) => {
            start::hide_memory();
            let origin = ConfigSource { path: config_path(args.config), env: Env::of_process() };
            load(&origin.path, &origin.env).map_or_else(|code| code, |config| start::serve(config, origin))
        }
        Command::Demo(args) => {
            start::hide_memory();
            start::demo(&args)
        }
        Command::Sandbox(args) => start::sandbox(args),
        Command::Check(args) => {
            load(&config_path(args.config), &Env::of_process()).map_or_else(|code| code, |config| check(&config))
        }
        Command::Doctor(args) => doctor::args::run(args),
        Command::Init(args) => init::run(&args),
        Command::Healthcheck(args) => control::healthcheck(args),
        Command::Wait(args) => control::wait(args),
        Command::Stop(args) => control::stop(args),
        Command::Usersig(command) => usersig::run(command),
        Command::Completions(args) => pages::completions(&args),
        Command::Man(args) => pages::man(&args),
        Command::Version => print(concat!("chatgate ", env!("CARGO_PKG_VERSION"), "\n")),
    }
}

fn check(config: &Config) -> ExitCode {
    for warning in &config.warnings {
        complain(format_args!("warning: {warning}"));
    }
    print(&check::report(config))
}

/// The configuration, or the exit code after all its problems were told.
fn load(path: &Path, env: &Env) -> Result<Config, ExitCode> {
    crate::config::load(path, env).map_err(|problems| {
        complain(problems);
        ExitCode::from(BAD_CONFIG)
    })
}

/// `--config`, else `CHATGATE_CONFIG`, else the usual place.
fn config_path(given: Option<PathBuf>) -> PathBuf {
    let from_variable = || std::env::var_os(CONFIG_VARIABLE).filter(|value| !value.is_empty()).map(PathBuf::from);
    given.or_else(from_variable).unwrap_or_else(|| PathBuf::from(PATH_DEFAULT))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definitions_hold_together() {
        Cli::command().debug_assert();
    }

    #[test]
    fn wrong_usage_has_code_2_and_help_has_0() {
        let code = |line: &[&str]| Cli::try_parse_from(line).map(|_| ()).map_err(|error| error.exit_code());
        for line in [
            &["chatgate", "nonsense"][..],
            &["chatgate", "serve", "--config"],
            &["chatgate", "serve", "x"],
            &["chatgate", "usersig", "mint", "--sdkappid", "7"],
            &["chatgate", "usersig", "mint", "--sdkappid", "0", "--identifier", "a", "--key-file", "k"],
            &["chatgate", "usersig", "mint", "--app", "a", "--sdkappid", "7", "--identifier", "a", "--key-file", "k"],
            &["chatgate", "usersig", "inspect", "--config", "x"],
        ] {
            assert_eq!(code(line), Err(2), "{line:?}");
        }
        for line in [&["chatgate", "--help"][..], &["chatgate", "--version"], &["chatgate", "serve", "--help"]] {
            assert_eq!(code(line), Err(0), "{line:?}");
        }
        let hyphen = ["chatgate", "usersig", "mint", "--sdkappid=7", "--identifier", "-dash", "--key-file=k"];
        assert_eq!(code(&hyphen), Ok(()));
    }

    #[test]
    fn the_flag_goes_first() {
        assert_eq!(config_path(Some("x".into())), PathBuf::from("x"));
    }
}
