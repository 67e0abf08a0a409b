//! Completions that their shells can read, and manual pages without a complaint of groff.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::support::process::Process;

async fn printed(args: &[&str]) -> String {
    let outcome = Process::run(args, Path::new("/"), &[]).await;
    assert_eq!((outcome.code, outcome.stderr.as_str()), (0, ""), "{args:?}");
    outcome.stdout
}

/// What the program says about the text on its stdin; nothing if all is well.
fn complaints(program: &str, args: &[&str], text: &str) -> String {
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{program} is needed for this test: {error}"));
    child.stdin.take().expect("piped").write_all(text.as_bytes()).expect("it reads");
    let output = child.wait_with_output().expect("own child");
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.success() { words } else { format!("{} {words}", output.status) }
}

#[tokio::test]
async fn completions_name_every_command_and_bash_can_read_them() {
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let script = printed(&["completions", shell]).await;
        for name in ["serve", "doctor", "usersig", "healthcheck", "--config"] {
            assert!(script.contains(name.trim_start_matches('-')), "{shell}: no {name}");
        }
        if shell == "bash" {
            assert_eq!(complaints("bash", &["-n"], &script), "");
            assert_ne!(complaints("bash", &["-n"], &format!("{script}\nif")), "", "bash would say so");
        }
    }
    assert_eq!(Process::run(&["completions", "tcsh"], Path::new("/"), &[]).await.code, 2);
}

#[tokio::test]
async fn manual_pages_are_sound() {
    let groff = ["-man", "-ww", "-z", "-Tutf8"];
    for args in [&["man"][..], &["man", "doctor"], &["man", "sandbox"], &["man", "usersig", "mint"]] {
        let page = printed(args).await;
        assert_eq!(complaints("groff", &groff, &page), "", "{args:?}\n{page}");
    }
    assert_ne!(complaints("groff", &groff, ".TH x 1\n.nonsense\n"), "", "groff would say so");
    assert_eq!(Process::run(&["man", "nonsense"], Path::new("/"), &[]).await.code, 2);
}
