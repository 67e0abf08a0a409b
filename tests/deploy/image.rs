//! deploy/Dockerfile. No image is built here, because a build needs a daemon and the base image.

use crate::{printed, project, python_tool, read};

#[test]
fn hadolint_accepts_the_dockerfile() {
    let output = python_tool("hadolint").arg("deploy/Dockerfile").output().expect("hadolint starts");
    assert!(output.status.success(), "{}", printed(&output));
}

#[test]
fn image_contains_only_the_program_and_runs_without_root() {
    let text = read("deploy/Dockerfile");
    let last = text.rsplit("\nFROM ").next().expect("a stage");
    assert!(last.starts_with("scratch\n"), "{last}");
    assert!(last.contains("\nUSER 65532:65532\n"), "{last}");
    assert!(last.contains("CMD [\"/chatgate\", \"healthcheck\"]"), "{last}");
    assert!(!last.contains("\nRUN "), "an empty image has no shell for RUN");
    assert!(last.contains(&format!("ARG VERSION={}\n", env!("CARGO_PKG_VERSION"))), "{last}");
    for label in ["title", "description", "licenses", "version", "revision"] {
        assert!(last.contains(&format!("org.opencontainers.image.{label}=")), "{label}");
    }
}

#[test]
fn build_context_contains_only_the_copied_files() {
    let ignore = read("deploy/Dockerfile.dockerignore");
    let mut included: Vec<&str> = ignore.lines().filter_map(|line| line.strip_prefix('!')).collect();
    assert_eq!(ignore.lines().find(|line| !line.starts_with('#')), Some("*"), "the first pattern excludes everything");
    let dockerfile = read("deploy/Dockerfile");
    let copies =
        dockerfile.lines().filter_map(|line| line.strip_prefix("COPY ")).filter(|line| !line.starts_with("--from"));
    let copied = copies.flat_map(|line| line.rsplit_once(' ').expect("source and target").0.split(' '));
    let mut copied: Vec<&str> = copied.map(|name| name.split("/$TARGETARCH").next().unwrap_or(name)).collect();
    copied.sort_unstable();
    included.sort_unstable();
    assert_eq!(copied, included);
    // deploy/release makes the files in dist/.
    for name in copied.into_iter().filter(|name| !name.starts_with("dist/")) {
        assert!(project(name).exists(), "{name}");
    }
}
