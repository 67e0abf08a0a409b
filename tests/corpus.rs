//! Runs the fuzz targets over their corpus and over mutated copies, with a stable compiler and without a fuzzer, so
//! that fixed bugs stay fixed. `fuzz/README.md` describes fuzzing.

#[allow(dead_code, unreachable_pub, reason = "it is a separate crate for the fuzzer")]
#[path = "../fuzz/src/lib.rs"]
mod targets;

#[path = "corpus/peers.rs"]
mod peers;

#[path = "support/suites.rs"]
mod suites;

use std::fs;
use std::path::Path;

/// Maximum size of all corpus files together, in bytes.
const LEN_MAX: u64 = 300 * 1024;

/// Mutated copies of each file; `CHATGATE_FUZZ_ROUNDS` overrides it.
const ROUNDS: u64 = 50;

/// Mutated copies of each input.
fn rounds() -> u64 {
    std::env::var("CHATGATE_FUZZ_ROUNDS").map_or(ROUNDS, |text| text.parse().expect("a number"))
}

/// Runs a target on every file of its folder, and on mutated copies that are the same in every run.
fn each_file(target: &str, run: impl Fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut paths: Vec<_> = entries.map(|entry| entry.expect("an entry").path()).collect();
    paths.sort();
    let files: Vec<Vec<u8>> = paths.iter().map(|path| fs::read(path).expect("a file")).collect();
    assert!(files.len() >= 5, "{} has {} files", folder.display(), files.len());
    for (path, file) in paths.iter().zip(&files) {
        eprintln!("{}", path.display());
        run(file);
        for seed in 0..rounds() {
            let bytes = mutated(file, &files, seed);
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(&bytes)));
            assert!(outcome.is_ok(), "{}, mutated by seed {seed}: b\"{}\"", path.display(), bytes.escape_ascii());
        }
    }
}

/// Makes one to four mutations: a changed byte, or a removed, repeated, or inserted part of a file.
fn mutated(file: &[u8], all: &[Vec<u8>], seed: u64) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut bytes = file.to_vec();
    for _ in 0..random.usize(1..=4) {
        let piece = |of: &[u8], random: &mut fastrand::Rng| {
            let begin = random.usize(0..=of.len());
            begin..(begin + random.usize(0..=16)).min(of.len())
        };
        let at = random.usize(0..=bytes.len());
        match random.u8(0..5) {
            0 if at < bytes.len() => bytes[at] = random.u8(..),
            1 if at < bytes.len() => bytes[at] ^= 1 << random.u8(0..8),
            2 => drop(bytes.drain(piece(&bytes, &mut random))),
            3 => {
                let doubled = bytes[piece(&bytes, &mut random)].to_vec();
                bytes.splice(at..at, doubled);
            }
            _ => {
                let other = &all[random.usize(..all.len())];
                bytes.splice(at..at, other[piece(other, &mut random)].to_vec());
            }
        }
    }
    bytes
}

#[test]
fn http1_requests_of_other_suites() {
    for case in suites::http_requests() {
        eprintln!("{}", case.name);
        // The first byte is the size of the pieces.
        for size in [1, 7, 255] {
            targets::http1::run(&[&[size], &*case.bytes].concat());
        }
    }
}

#[test]
fn json_texts_of_another_suite() {
    for case in suites::json_texts() {
        eprintln!("{}", case.name);
        let wrapped = [b"{\"ErrorCode\":", &*case.bytes, b"}"].concat();
        for text in [&case.bytes, &wrapped] {
            targets::question::run(text);
            targets::answer::run(text);
            targets::envelope::run(text);
            targets::webhook::run(text);
            targets::scan::run(text);
        }
    }
}

#[test]
fn mutated_json_texts_of_another_suite() {
    let texts: Vec<_> =
        suites::json_texts().iter().map(|case| [b"{\"n\":1,\"a\":", &*case.bytes, b"}"].concat()).collect();
    for (text, seed) in texts.iter().flat_map(|text| (0..rounds()).map(move |seed| (text, seed))) {
        let bytes = mutated(text, &texts, seed);
        let outcome = std::panic::catch_unwind(|| targets::scan::run(&bytes));
        assert!(outcome.is_ok(), "b\"{}\"", bytes.escape_ascii());
    }
}

macro_rules! targets {
    ($($target:ident)*) => {
        $(
            #[test]
            fn $target() {
                each_file(stringify!($target), targets::$target::run);
            }
        )*

        #[test]
        fn corpus_is_small_and_every_target_runs() {
            let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
            let names = |folder: &str| {
                let entries = fs::read_dir(fuzz.join(folder)).expect("a folder");
                let stem = |entry: fs::DirEntry| entry.path().file_stem().expect("a name").to_string_lossy().into_owned();
                let mut names: Vec<String> = entries.map(|entry| stem(entry.expect("an entry"))).collect();
                names.sort();
                names
            };
            let mut here = vec![$(stringify!($target).to_owned()),*];
            here.sort();
            assert_eq!(names("fuzz_targets"), here);
            assert_eq!(names("corpus"), here);
            let files = here.iter().flat_map(|name| fs::read_dir(fuzz.join("corpus").join(name)).expect("a folder"));
            let len: u64 = files.map(|file| file.and_then(|file| file.metadata()).expect("a file").len()).sum();
            assert!(len <= LEN_MAX, "the corpus has {len} bytes");
        }
    };
}

targets! { answer config envelope http1 http2 path_and_query question scan tunnel usersig webhook }
