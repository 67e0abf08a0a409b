//! The fuzz targets over their corpus, on a stable compiler and without a fuzzer: what was found once
//! stays mended. `fuzz/README.md` says how to look for more.

#[allow(dead_code, unreachable_pub, reason = "it is a crate of its own for the fuzzer")]
#[path = "../fuzz/src/lib.rs"]
mod targets;

use std::fs;
use std::path::Path;

/// Most bytes of all files together: a corpus is kept small or it is kept nowhere.
const LEN_MAX: u64 = 300 * 1024;

/// Hands every file of a target's folder to it.
fn each_file(target: &str, run: impl Fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let files = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut count = 0;
    for file in files {
        let path = file.expect("an entry").path();
        // What is printed is shown only if the test fails.
        println!("{}", path.display());
        run(&fs::read(&path).expect("a file"));
        count += 1;
    }
    assert!(count >= 5, "{} has {count} files", folder.display());
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
        fn every_target_is_run_here_and_every_corpus_is_small() {
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

targets! { answer config envelope http1 path_and_query question usersig webhook }
