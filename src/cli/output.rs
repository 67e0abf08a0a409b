//! Printing that survives a reader who has gone. `println!` would panic on a closed pipe.

use std::fmt::Display;
use std::io::{self, Write};
use std::process::ExitCode;

/// Prints what was asked for on stdout. A reader who closes the pipe has seen enough, as with
/// `| head -1`; any other failure, such as a full disk, is one.
pub(super) fn print(text: &str) -> ExitCode {
    match write_all(io::stdout().lock(), text) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(format_args!("cannot write to stdout: {error}"));
            ExitCode::FAILURE
        }
    }
}

/// Tells people something on stderr, on lines of its own. If nobody can be told, so be it.
pub(super) fn complain(message: impl Display) {
    let _ = writeln!(io::stderr().lock(), "{message}");
}

fn write_all(mut writer: impl Write, text: &str) -> io::Result<()> {
    match writer.write_all(text.as_bytes()).and_then(|()| writer.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        outcome => outcome,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fails(io::ErrorKind);

    impl Write for Fails {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_closed_pipe_is_no_failure_and_a_full_disk_is() {
        let mut written = Vec::new();
        assert!(write_all(&mut written, "text").is_ok());
        assert_eq!(written, b"text");
        assert!(write_all(Fails(io::ErrorKind::BrokenPipe), "text").is_ok());
        assert!(write_all(Fails(io::ErrorKind::StorageFull), "text").is_err());
    }
}
