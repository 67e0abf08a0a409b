//! The program. What it can do stands in `chatgate::cli`.

use std::process::ExitCode;

/// Faster than the allocators of glibc and musl when many threads work.
#[cfg(feature = "mimalloc")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    chatgate::cli::run(std::env::args_os())
}
