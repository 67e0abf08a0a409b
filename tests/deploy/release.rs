//! deploy/release with the tested program instead of a release build, the scripts of the Debian package in
//! deploy/debian, and the workflow that makes a release.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::LazyLock;

use serde_json::Value;
use tempfile::TempDir;

use crate::{printed, project, read, tool, yaml};

/// Time of the files, in seconds since 1970.
const EPOCH: &str = "1700000000";

/// The tested program without debug information, and the files that deploy/release makes of it.
struct Release {
    folder: TempDir,
    files: BTreeMap<String, PathBuf>,
}

static RELEASE: LazyLock<Release> = LazyLock::new(|| {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut strip = tool("strip", "binutils");
    let output = strip.arg("-o").arg(folder.path().join("program")).arg(env!("CARGO_BIN_EXE_chatgate")).output();
    assert!(output.expect("strip starts").status.success());
    let out = folder.path().join("first");
    let output = release(&folder.path().join("program"), &out, &[]);
    assert!(output.status.success(), "{}", printed(&output));
    Release { files: files(&out), folder }
});

impl Release {
    fn program(&self) -> PathBuf {
        self.folder.path().join("program")
    }

    fn file(&self, ending: &str) -> &Path {
        let found = self.files.iter().find(|(name, _)| name.ends_with(ending));
        found.unwrap_or_else(|| panic!("no {ending}: {:?}", self.files)).1
    }
}

fn release(program: &Path, out: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(project("deploy/release"));
    command.arg("--binary").arg(program).arg("--out").arg(out).args(arguments);
    command.env("SOURCE_DATE_EPOCH", EPOCH).stdin(Stdio::null()).output().expect("the script starts")
}

/// Returns the files directly in a folder, by name.
fn files(folder: &Path) -> BTreeMap<String, PathBuf> {
    let entries = fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("own folder").path());
    let named = |path: PathBuf| Some((path.file_name()?.to_str()?.to_owned(), path.clone()));
    entries.filter(|path| path.is_file()).filter_map(named).collect()
}

/// Returns the lines that a command prints.
fn lines(command: &mut Command) -> Vec<String> {
    let output = command.stdin(Stdio::null()).output().expect("it starts");
    assert!(output.status.success(), "{command:?}: {}", printed(&output));
    String::from_utf8(output.stdout).expect("text").lines().map(str::to_owned).collect()
}

#[test]
fn release_files_have_checksums_and_are_reproducible() {
    let release_files = &RELEASE.files;
    assert_eq!(release_files.len(), 4, "{release_files:?}");
    let check = lines(
        tool("sha256sum", "coreutils")
            .args(["--strict", "--check"])
            .arg(RELEASE.file(".sha256"))
            .current_dir(RELEASE.file(".sha256").parent().expect("a folder")),
    );
    assert_eq!(check.len(), 3, "{check:?}");

    let second = RELEASE.folder.path().join("second");
    let output = release(&RELEASE.program(), &second, &[]);
    assert!(output.status.success(), "{}", printed(&output));
    for (name, path) in files(&second) {
        assert!(fs::read(&path).expect("a file") == fs::read(&release_files[&name]).expect("a file"), "{name} differs");
    }
}

#[test]
fn archive_has_the_program_with_manual_pages_and_completions() {
    let archive = RELEASE.file(".tar.gz");
    let listed = lines(tool("tar", "tar").args(["--list", "--file"]).arg(archive));
    let top = archive.file_name().and_then(|name| name.to_str()?.strip_suffix(".tar.gz")).expect("a name");
    let names: BTreeSet<&str> = listed.iter().filter_map(|name| name.strip_prefix(top)?.strip_prefix('/')).collect();
    for name in ["chatgate", "LICENSE", "config/chatgate.toml", "systemd/chatgate.service", "docs/deployment.md"] {
        assert!(names.contains(name), "{name}: {names:?}");
    }
    for shell in ["chatgate.bash", "_chatgate", "chatgate.fish"] {
        assert!(names.contains(&*format!("completions/{shell}")), "{shell}");
    }
    for page in ["chatgate", "chatgate-serve", "chatgate-doctor", "chatgate-usersig", "chatgate-usersig-mint"] {
        assert!(names.contains(&*format!("man/{page}.1")), "{page}: {names:?}");
    }
    let page = lines(tool("tar", "tar").args(["-xOf"]).arg(archive).arg(format!("{top}/man/chatgate-usersig-mint.1")));
    assert!(page.iter().any(|line| line.starts_with(".TH chatgate-usersig-mint")), "{page:#?}");
}

#[test]
fn program_for_another_target_or_unknown_arguments_are_rejected() {
    let out = RELEASE.folder.path().join("rejected");
    for arguments in [["--target", "riscv64gc-unknown-linux-musl"], ["--bogus", "x"]] {
        let output = release(&RELEASE.program(), &out, &arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {}", printed(&output));
        assert!(!out.exists(), "{arguments:?} left files");
    }
}

/// A `cargo` whose builds only copy a program and log their arguments and flags, and a `rustc` that says which target is
/// installed. Their folder is the first of `PATH`, and the real ones do the rest.
const COMPILERS: &str = r#"#!/bin/sh
here=$(dirname "$0") tool=$(basename "$0")
case "$tool $1 $2" in
    "rustc --print target-libdir")
        [ "$4" = "$(cat "$here/installed")" ] && echo "$here" || echo "$here/missing"
        ;;
    "cargo build --release")
        echo "$* $RUSTFLAGS $CFLAGS" >>"$here/log"
        mkdir -p "$CARGO_TARGET_DIR/$5/release"
        cp "$here/../program" "$CARGO_TARGET_DIR/$5/release/chatgate"
        ;;
    *) PATH=${PATH#*:} exec "$tool" "$@" ;;
esac
"#;

#[test]
fn program_is_built_for_musl_if_installed_and_else_for_glibc() {
    let tools = RELEASE.folder.path().join("tools");
    fs::create_dir(&tools).expect("own folder");
    for name in ["cargo", "rustc"] {
        fs::write(tools.join(name), COMPILERS).expect("own folder");
        fs::set_permissions(tools.join(name), fs::Permissions::from_mode(0o755)).expect("own file");
    }
    let path = format!("{}:{}", tools.display(), std::env::var("PATH").expect("a path"));
    let build = |installed: &str| {
        fs::write(tools.join("installed"), installed).expect("own folder");
        let mut command = Command::new(project("deploy/release"));
        command.arg("--out").arg(tools.join(installed)).env("PATH", &path);
        command.env("CARGO_TARGET_DIR", tools.join("target")).env("SOURCE_DATE_EPOCH", EPOCH).stdin(Stdio::null());
        let output = command.output().expect("the script starts");
        let log = fs::read_to_string(tools.join("log")).expect("a build");
        (output.status.code(), printed(&output), log.lines().last().unwrap_or_default().to_owned())
    };
    let cpu = std::env::consts::ARCH;
    let (gnu, musl) = (format!("{cpu}-unknown-linux-gnu"), format!("{cpu}-unknown-linux-musl"));
    let (code, output, log) = build(&gnu);
    assert_eq!(code, Some(0), "{output}");
    assert!(output.contains("not static") && output.contains(&musl), "{output}");
    assert!(log.starts_with(&format!("build --release --locked --target {gnu} ")), "{log}");
    for flag in
        [format!("--remap-path-prefix={}=/chatgate", env!("CARGO_MANIFEST_DIR")), "-ffile-prefix-map=".to_owned()]
    {
        assert!(log.contains(&flag), "{flag}: {log}");
    }
    // The copied program is for glibc, which the script notices.
    let (code, output, log) = build(&musl);
    assert!(log.starts_with(&format!("build --release --locked --target {musl} ")), "{log}");
    assert_eq!(code, Some(1), "{output}");
    assert!(output.contains(&format!("for {gnu}, not for {musl}")), "{output}");
}

#[test]
fn sbom_lists_the_packages_of_the_program() {
    let sbom: Value = serde_json::from_slice(&fs::read(RELEASE.file(".cdx.json")).expect("a file")).expect("JSON");
    assert_eq!((sbom["bomFormat"].as_str(), sbom["specVersion"].as_str()), (Some("CycloneDX"), Some("1.5")));
    assert_eq!(sbom["metadata"]["timestamp"], "2023-11-14T22:13:20Z");
    let components = sbom["components"].as_array().expect("a list");
    let scope: BTreeMap<&str, &str> = components
        .iter()
        .map(|part| (part["name"].as_str().expect("a name"), part["scope"].as_str().expect("one")))
        .collect();
    for (name, expected) in [("tokio", "required"), ("aws-lc-sys", "required"), ("syn", "excluded"), ("cc", "excluded")]
    {
        assert_eq!(scope.get(name), Some(&expected), "{name}");
    }
    assert!(!scope.contains_key("proptest") && !scope.contains_key("chatgate"), "{scope:?}");
    for part in components {
        let digest = part["hashes"][0]["content"].as_str().expect("a checksum");
        assert!(read("Cargo.lock").contains(digest) && part["licenses"][0]["expression"].is_string(), "{part}");
    }
    let known: BTreeSet<_> = components.iter().map(|part| part["bom-ref"].as_str()).collect();
    let graph = sbom["dependencies"].as_array().expect("a list");
    assert_eq!(graph.len(), components.len() + 1);
    for entry in graph {
        let unknown =
            entry["dependsOn"].as_array().expect("a list").iter().find(|name| !known.contains(&name.as_str()));
        assert!(unknown.is_none(), "{entry}");
    }
}

/// Runs dpkg in its own root directory, which has no shell: the package's scripts run outside of it, with `DPKG_ROOT`.
fn dpkg(root: &Path, arguments: &[&str]) -> Output {
    let mut command = tool("unshare", "util-linux");
    if fs::metadata(root).expect("a folder").uid() != 0 {
        command.arg("--map-root-user");
    }
    command.args(["dpkg", "--force-script-chrootless,depends"]).arg(format!("--root={}", root.display()));
    command.args(arguments).output().expect("unshare starts")
}

#[test]
fn debian_package_installs_upgrades_and_purges() {
    let root = tempfile::tempdir().expect("a temporary folder");
    let at = |path: &str| root.path().join(path.trim_start_matches('/'));
    fs::create_dir_all(at("var/lib/dpkg/updates")).expect("own folder");
    fs::create_dir_all(at("var/lib/dpkg/info")).expect("own folder");
    fs::write(at("var/lib/dpkg/status"), "").expect("own folder");
    let package = RELEASE.file(".deb").to_str().expect("a plain path");
    let install = || {
        let output = dpkg(root.path(), &["--install", package]);
        assert!(output.status.success(), "{}", printed(&output));
    };
    install();

    // The unit starts and names only files of the package, and the group of the socket exists.
    let unit = fs::read_to_string(at("/usr/lib/systemd/system/chatgate.service")).expect("the unit");
    let start = unit.lines().find_map(|line| line.strip_prefix("ExecStart=")).expect("an ExecStart");
    let document = unit.lines().find_map(|line| line.strip_prefix("Documentation=file://")).expect("a document");
    for path in start.split(' ').filter(|word| word.starts_with('/')).chain([document]) {
        assert!(at(path).is_file(), "{path}");
    }
    assert!(at("/usr/lib/systemd/system/chatgate.socket").is_file());
    assert!(fs::read_to_string(at("/etc/group")).expect("a group").contains("chatgate-callers:"));
    assert!(at("/usr/share/man/man1/chatgate.1.gz").is_file());
    assert_eq!(
        lines(Command::new(at("/usr/bin/chatgate")).arg("--version")),
        [format!("chatgate {}", env!("CARGO_PKG_VERSION"))]
    );
    let version = lines(tool("systemctl", "systemd").arg("--version"));
    let version: u32 = version[0].split(' ').nth(1).and_then(|word| word.parse().ok()).expect("a number");
    let drop_in = at("/usr/lib/systemd/system/chatgate.service.d/before-253.conf");
    assert_eq!(drop_in.exists(), version < 253, "systemd {version}");

    // An upgrade keeps the configuration, and a purge keeps only the key.
    let config = at("/etc/chatgate/chatgate.toml");
    fs::write(&config, "# edited\n").expect("own file");
    fs::write(at("/etc/chatgate/chat-key"), "key\n").expect("own folder");
    install();
    assert_eq!(fs::read_to_string(&config).expect("kept"), "# edited\n");
    let output = dpkg(root.path(), &["--purge", "chatgate"]);
    assert!(output.status.success(), "{}", printed(&output));
    let left = lines(tool("find", "findutils").arg(root.path()).args(["-path", "*chatgate*", "-type", "f"]));
    assert_eq!(left, [at("/etc/chatgate/chat-key").display().to_string()]);
}

#[test]
fn release_workflow_runs_the_script_for_both_cpus_with_pinned_actions() {
    let text = read(".github/workflows/release.yml");
    let workflow = yaml(&text).remove(0);
    let job = &workflow["jobs"]["files"];
    let cpus: Vec<&Value> =
        job["strategy"]["matrix"]["include"].as_array().expect("a list").iter().map(|at| &at["cpu"]).collect();
    assert_eq!(cpus, ["x86_64", "aarch64"]);
    assert!(job["env"]["TARGET"].as_str().is_some_and(|target| target.ends_with("-unknown-linux-musl")), "{job}");
    assert!(text.contains("run: deploy/release --target \"$TARGET\""), "{text}");
    for action in text.lines().filter_map(|line| line.trim().strip_prefix("- uses: ")) {
        let commit = action.split(['@', ' ']).nth(1).expect("a version");
        assert!(commit.len() == 40 && commit.bytes().all(|byte| byte.is_ascii_hexdigit()), "{action}");
    }
    let toolchain = read("deploy/Dockerfile")
        .lines()
        .find_map(|line| line.strip_prefix("FROM rust:")?.split('-').next().map(str::to_owned));
    assert!(
        text.contains(&format!("rustup default {}.0", toolchain.expect("a version"))),
        "the image has another compiler"
    );
}
