//! Output that ignores a closed pipe, on which `println!` would panic.

use std::fmt::Display;
use std::io::{self, Write};
use std::process::ExitCode;

/// Prints requested output on stdout. A pipe that the reader has closed, as with `| head -1`, counts as success. Any
/// other error, such as a full disk, is a failure.
pub(super) fn print(text: &str) -> ExitCode {
    match write_all(io::stdout().lock(), text) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            print_error(format_args!("cannot write to stdout: {error}"));
            ExitCode::FAILURE
        }
    }
}

/// Prints a message on stderr, followed by a line end. Errors are ignored.
pub(super) fn print_error(message: impl Display) {
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
    fn closed_pipe_is_success_and_full_disk_is_failure() {
        let mut written = Vec::new();
        assert!(write_all(&mut written, "text").is_ok());
        assert_eq!(written, b"text");
        assert!(write_all(Fails(io::ErrorKind::BrokenPipe), "text").is_ok());
        assert!(write_all(Fails(io::ErrorKind::StorageFull), "text").is_err());
    }
}
