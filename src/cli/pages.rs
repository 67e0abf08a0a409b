//! `chatgate completions` and `chatgate man`: shell completion scripts and manual pages.

use std::process::ExitCode;

use clap::{Command, CommandFactory};
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

use super::output::{print, print_error};
use super::{Cli, USAGE};
use crate::cli::doctor::Cause;

/// Options of `chatgate completions`.
#[derive(Debug, clap::Args)]
pub(super) struct CompletionsArgs {
    /// Shell that the script is for
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

/// Options of `chatgate man`.
#[derive(Debug, clap::Args)]
pub(super) struct ManArgs {
    /// Subcommand, for example `usersig mint` [default: the page of the whole program]
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
            print_error(format_args!("cannot create the manual page: {error}"));
            ExitCode::FAILURE
        }
        None => {
            print_error(format_args!("unknown subcommand `{}`; see chatgate --help", args.command.join(" ")));
            ExitCode::from(USAGE)
        }
    }
}

/// Returns the page of a subcommand in roff format, or `None` if the subcommand does not exist.
fn page(names: &[String]) -> Option<std::io::Result<String>> {
    let mut program = Cli::command();
    // Sets the full name and usage of each subcommand.
    program.build();
    let mut command: &Command = &program;
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
        exit_status_and_files().to_writer(&mut out)
    });
    Some(rendered.map(|()| String::from_utf8_lossy(&out).into_owned()))
}

/// Returns the sections that only the page of the program has: exit codes, including those of `doctor`, and files.
fn exit_status_and_files() -> Roff {
    let mut roff = Roff::new();
    roff.control("SH", ["EXIT STATUS"]);
    let common =
        [(0, "Success, also after SIGTERM if the drain completed."), (1, "Failure at run time."), (2, "Wrong usage.")];
    let causes = Cause::ALL.into_iter().filter(|cause| cause.exit_code() != 1);
    let causes = causes.map(|cause| (cause.exit_code(), format!("Only doctor: {}.", cause.what())));
    let rows = common.into_iter().map(|(code, text)| (code, text.to_owned()));
    for (code, text) in rows.chain(causes).chain([(78, "The configuration is invalid.".to_owned())]) {
        roff.control("TP", []);
        roff.text([bold(code.to_string())]);
        roff.text([roman(text)]);
    }
    roff.control("SH", ["FILES"]);
    roff.control("TP", []);
    roff.text([bold(crate::config::PATH_DEFAULT)]);
    roff.text([roman("The configuration, unless --config or CHATGATE_CONFIG is set.")]);
    roff
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_subcommand_has_a_page() {
        fn visit(command: &Command, names: &mut Vec<String>, pages: &mut usize) {
            let text = page(names).expect("a command").expect("rendered");
            assert!(text.contains(".TH") && text.contains(".SH SYNOPSIS"), "{names:?}\n{text}");
            *pages += 1;
            for sub in command.get_subcommands() {
                names.push(sub.get_name().to_owned());
                visit(sub, names, pages);
                names.pop();
            }
        }
        let mut pages = 0;
        visit(&Cli::command(), &mut Vec::new(), &mut pages);
        assert!(pages > 10, "{pages}");
        assert!(page(&["nonsense".to_owned()]).is_none());
    }

    #[test]
    fn page_of_the_program_lists_every_exit_code() {
        let text = page(&[]).expect("the program").expect("rendered");
        for code in Cause::ALL.map(Cause::exit_code).into_iter().chain([0, 2, 78]) {
            assert!(text.contains(&format!(".TP\n\\fB{code}\\fR\n")), "{code}\n{text}");
        }
    }
}
