//! deploy/Dockerfile. No image is built here, for that takes a daemon and the base image.

use crate::{project, python_tool, read, said};

#[test]
fn the_dockerfile_breaks_no_rule() {
    let output = python_tool("hadolint").arg("deploy/Dockerfile").output().expect("it starts");
    assert!(output.status.success(), "{}", said(&output));
}

#[test]
fn the_image_holds_the_program_alone_and_runs_it_as_nobody_in_particular() {
    let text = read("deploy/Dockerfile");
    let last = text.rsplit("\nFROM ").next().expect("a stage");
    assert!(last.starts_with("scratch\n"), "{last}");
    assert!(last.contains("\nUSER 65532:65532\n"), "{last}");
    assert!(last.contains("CMD [\"/chatgate\", \"healthcheck\"]"), "{last}");
    assert!(!last.contains("\nRUN "), "there is nothing to run in an empty image");
    assert!(last.contains(&format!("ARG VERSION={}\n", env!("CARGO_PKG_VERSION"))), "{last}");
    for label in ["title", "description", "licenses", "version", "revision"] {
        assert!(last.contains(&format!("org.opencontainers.image.{label}=")), "{label}");
    }
}

#[test]
fn the_build_is_given_what_it_copies_and_nothing_else() {
    let ignore = read("deploy/Dockerfile.dockerignore");
    let mut let_in: Vec<&str> = ignore.lines().filter_map(|line| line.strip_prefix('!')).collect();
    assert_eq!(ignore.lines().find(|line| !line.starts_with('#')), Some("*"), "all is left out first");
    let dockerfile = read("deploy/Dockerfile");
    let copies =
        dockerfile.lines().filter_map(|line| line.strip_prefix("COPY ")).filter(|line| !line.starts_with("--from"));
    let mut copied: Vec<&str> =
        copies.flat_map(|line| line.rsplit_once(' ').expect("source and target").0.split(' ')).collect();
    copied.sort_unstable();
    let_in.sort_unstable();
    assert_eq!(copied, let_in);
    for name in copied {
        assert!(project(name).exists(), "{name}");
    }
}
