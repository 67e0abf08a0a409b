//! `chatgate completions` and `chatgate man`: what the command line can do, for shells and for man(1).

use std::process::ExitCode;

use clap::{Command, CommandFactory};
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

use super::output::{complain, print};
use super::{Cli, USAGE};
use crate::cli::doctor::Cause;

/// Options of `chatgate completions`.
#[derive(Debug, clap::Args)]
pub(super) struct CompletionsArgs {
    /// The shell that is to complete
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

/// Options of `chatgate man`.
#[derive(Debug, clap::Args)]
pub(super) struct ManArgs {
    /// The command whose page is wanted, `usersig mint` as two words [default: that of the whole program]
    #[arg(value_name = "COMMAND")]
    command: Vec<String>,
}

pub(super) fn completions(args: &CompletionsArgs) -> ExitCode {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "chatgate", &mut script);
    print(&String::from_utf8_lossy(&script))
}

pub(super) fn man(args: &ManArgs) -> ExitCode {
    match page(&args.command) {
        Some(Ok(page)) => print(&page),
        Some(Err(error)) => {
            complain(format_args!("the page could not be made: {error}"));
            ExitCode::FAILURE
        }
        None => {
            complain(format_args!("there is no command `{}`; see chatgate --help", args.command.join(" ")));
            ExitCode::from(USAGE)
        }
    }
}

/// The page of a command in roff; `None` if there is no such command.
fn page(names: &[String]) -> Option<std::io::Result<String>> {
    let mut whole = Cli::command();
    // Gives each command its full name and usage.
    whole.build();
    let mut command: &Command = &whole;
    for name in names {
        command = command.get_subcommands().find(|sub| sub.get_name() == name)?;
    }
    let mut command = command.clone();
    if !names.is_empty() {
        let title = format!("chatgate-{}", names.join("-"));
        command = command.display_name(title);
    }
    let man = Man::new(command).section("1");
    let mut out = Vec::new();
    let rendered = man.render(&mut out).and_then(|()| {
        if !names.is_empty() {
            return Ok(());
        }
        exit_status().to_writer(&mut out)
    });
    Some(rendered.map(|()| String::from_utf8_lossy(&out).into_owned()))
}

/// What the whole program adds: its exit codes, those of `doctor` among them, and where it looks.
fn exit_status() -> Roff {
    let mut roff = Roff::new();
    roff.control("SH", ["EXIT STATUS"]);
    let common = [
        (0, "All is well; after SIGTERM also everything that was there is finished."),
        (1, "Failed."),
        (2, "Wrong usage."),
    ];
    let causes = Cause::ALL.into_iter().filter(|cause| cause.exit_code() != 1);
    let causes = causes.map(|cause| (cause.exit_code(), format!("Only doctor: {}.", cause.what())));
    let rows = common.into_iter().map(|(code, text)| (code, text.to_owned()));
    for (code, text) in rows.chain(causes).chain([(78, "The configuration is refused.".to_owned())]) {
        roff.control("TP", []);
        roff.text([bold(code.to_string())]);
        roff.text([roman(text)]);
    }
    roff.control("SH", ["FILES"]);
    roff.control("TP", []);
    roff.text([bold(crate::config::PATH_DEFAULT)]);
    roff.text([roman("The configuration, if neither --config nor CHATGATE_CONFIG names another.")]);
    roff
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_page_and_nothing_else_has() {
        fn each(command: &Command, names: &mut Vec<String>, seen: &mut usize) {
            let text = page(names).expect("a command").expect("rendered");
            assert!(text.contains(".TH") && text.contains(".SH SYNOPSIS"), "{names:?}\n{text}");
            *seen += 1;
            for sub in command.get_subcommands() {
                names.push(sub.get_name().to_owned());
                each(sub, names, seen);
                names.pop();
            }
        }
        let mut seen = 0;
        each(&Cli::command(), &mut Vec::new(), &mut seen);
        assert!(seen > 10, "{seen}");
        assert!(page(&["nonsense".to_owned()]).is_none());
    }

    #[test]
    fn the_page_of_the_program_lists_every_exit_code() {
        let text = page(&[]).expect("the program").expect("rendered");
        for code in Cause::ALL.map(Cause::exit_code).into_iter().chain([0, 2, 78]) {
            assert!(text.contains(&format!(".TP\n\\fB{code}\\fR\n")), "{code}\n{text}");
        }
    }
}
