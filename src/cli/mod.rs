//! The command line: subcommands, their output, and exit codes.
//!
//! stdout has the requested output, stderr the log and messages. Exit codes: 0 success, 1 failure at run time,
//! [`USAGE`] wrong usage, [`BAD_CONFIG`] invalid configuration. `doctor` has one code per cause.

mod check;
mod control;
pub(crate) mod demo;
mod doctor;
mod init;
mod output;
mod pages;
mod pasted;
mod start;
mod usersig;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{Parser, Subcommand};

use self::output::{print, print_error};
use crate::cli::demo::DemoArgs;
use crate::config::{Config, Env, PATH_DEFAULT};
use crate::domain::quote::{MESSAGE_LEN_MAX, looks_like_key, shorten, without_keys};
use crate::runtime::reload::ConfigSource;
use crate::sandbox::SandboxArgs;

/// Exit code for wrong usage, as in clap.
pub const USAGE: u8 = 2;

/// Exit code for an invalid configuration: `EX_CONFIG` of sysexits(3).
pub const BAD_CONFIG: u8 = 78;

/// Variable with the path of the configuration, unless `--config` is given.
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
    /// Run the gateway
    Serve(ConfigArgs),
    /// Run a gateway and a Chat simulator in one process, without credentials
    Demo(DemoArgs),
    /// Run a Chat simulator, for tests without an account
    Sandbox(SandboxArgs),
    /// Validate the configuration and print the effective settings
    Check(ConfigArgs),
    /// Diagnose key, app, DNS, TLS, and network problems with one read-only call per app
    Doctor(doctor::DoctorArgs),
    /// Write a commented starter configuration
    Init(init::InitArgs),
    /// Check whether a running gateway is ready
    Healthcheck(control::AdminArgs),
    /// Wait until a gateway is ready
    Wait(control::WaitArgs),
    /// Drain and stop a running gateway, and wait for it to exit
    Stop(control::StopArgs),
    /// Create and inspect UserSigs
    #[command(subcommand)]
    Usersig(usersig::UsersigCommand),
    /// Print a shell completion script
    Completions(pages::CompletionsArgs),
    /// Print a manual page in roff format
    Man(pages::ManArgs),
    /// Print the version
    #[command(hide = true)] // an alias of --version
    Version,
}

#[derive(Debug, clap::Args)]
struct ConfigArgs {
    /// Configuration file [default: $CHATGATE_CONFIG, else /etc/chatgate/chatgate.toml]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// Runs the program with these arguments; the first is the name of the program.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let cli = match Cli::try_parse_from(&arguments) {
        Ok(cli) => cli,
        Err(error) => {
            // clap repeats arguments: one of them could be a key, and of any length.
            let text = error.to_string();
            if looks_like_key(&text) || is_too_long(error.kind(), &text) {
                print_error(shorten(without_keys(&text).trim_end()));
            } else {
                // clap also returns help and version as errors, with code 0. A closed pipe is not an error here.
                let _ = error.print();
            }
            if names_file_without_option(error.kind(), &arguments) {
                print_error("  tip: name the configuration with --config FILE");
            }
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(USAGE));
        }
    };
    match cli.command {
        Command::Serve(args) => {
            start::hide_memory();
            let source = ConfigSource { path: config_path(args.config), env: Env::of_process() };
            load(&source.path, &source.env).map_or_else(|code| code, |config| start::serve(config, source))
        }
        Command::Demo(args) => {
            start::hide_memory();
            start::demo(&args)
        }
        Command::Sandbox(args) => start::sandbox(args),
        Command::Check(args) => {
            load(&config_path(args.config), &Env::of_process()).map_or_else(|code| code, |config| check(&config))
        }
        Command::Doctor(args) => doctor::run(args),
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

/// Returns whether an error of clap is too long for a message. Help is long, and repeats no argument.
fn is_too_long(kind: ErrorKind, text: &str) -> bool {
    use ErrorKind::{DisplayHelp, DisplayHelpOnMissingArgumentOrSubcommand, DisplayVersion};
    let is_help = matches!(kind, DisplayHelp | DisplayHelpOnMissingArgumentOrSubcommand | DisplayVersion);
    !is_help && text.len() > MESSAGE_LEN_MAX
}

/// Returns whether an argument that is not understood is probably the configuration file.
fn names_file_without_option(kind: ErrorKind, arguments: &[OsString]) -> bool {
    let is_unknown = matches!(kind, ErrorKind::UnknownArgument | ErrorKind::InvalidSubcommand);
    is_unknown && arguments.iter().any(|argument| Path::new(argument).extension().is_some_and(|kind| kind == "toml"))
}

/// `chatgate check`.
fn check(config: &Config) -> ExitCode {
    for warning in &config.warnings {
        print_error(format_args!("warning: {warning}"));
    }
    for path in check::occupied_sockets(config) {
        print_error(format_args!(
            "warning: {} is a file, not a socket; remove it or choose another path",
            path.display()
        ));
    }
    print(&check::report(config))
}

/// Loads the configuration. On failure, prints all problems and returns the exit code.
fn load(path: &Path, env: &Env) -> Result<Config, ExitCode> {
    crate::config::load(path, env).map_err(|problems| {
        print_error(problems);
        ExitCode::from(BAD_CONFIG)
    })
}

/// Returns the path from `--config`, else from `CHATGATE_CONFIG`, else the default.
fn config_path(flag: Option<PathBuf>) -> PathBuf {
    let from_variable = || std::env::var_os(CONFIG_VARIABLE).filter(|value| !value.is_empty()).map(PathBuf::from);
    flag.or_else(from_variable).unwrap_or_else(|| PathBuf::from(PATH_DEFAULT))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn argument_definitions_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn wrong_usage_exits_2_and_help_exits_0() {
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
    fn config_flag_overrides_the_environment() {
        assert_eq!(config_path(Some("x".into())), PathBuf::from("x"));
    }
}
