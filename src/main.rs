//! The program. `chatgate::cli` has its subcommands.

use std::process::ExitCode;

/// Faster than the allocators of glibc and musl with many threads.
#[cfg(feature = "mimalloc")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    chatgate::cli::run(std::env::args_os())
}
