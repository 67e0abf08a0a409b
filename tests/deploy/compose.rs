//! deploy/compose.

use serde_json::Value;

use crate::support::{Program, Stream};
use crate::{check_configuration, project, python_tool, read, run_with, said, tool, yaml};

/// Reads Compose's grammar strictly, and says whether what the parts name of each other is there.
const JUDGE: &str = "
import sys, compose_spec
options = compose_spec.PyOptions()
options.apply_merge = True
options.from_yaml(sys.stdin.read()).validate()
";

#[test]
fn compose_understands_its_file() {
    let judge = |text: &str| run_with(python_tool("python").args(["-c", JUDGE]), text);
    let text = read("deploy/compose/compose.yaml");
    let output = judge(&text);
    assert!(output.status.success(), "{}", said(&output));
    for (from, to) in [("tmpfs:", "tmpfss:"), ("source: chatgate", "source: other"), (":8700\"", ":87x0\"")] {
        assert!(text.contains(from), "{from}");
        assert!(!judge(&text.replace(from, to)).status.success(), "{to} passed");
    }
}

#[test]
fn what_is_mounted_is_there_and_what_is_published_is_on_loopback() {
    let file = yaml(&read("deploy/compose/compose.yaml")).remove(0);
    let folder = project("deploy/compose");
    let mut mounted = 0;
    for (name, service) in file["services"].as_object().expect("services") {
        for port in service["ports"].as_array().into_iter().flatten() {
            assert!(port.as_str().is_some_and(|port| port.starts_with("127.0.0.1:")), "{name}: {port}");
        }
        for volume in service["volumes"].as_array().into_iter().flatten() {
            let source = volume.as_str().and_then(|text| text.split(':').next()).expect("source:target");
            if source.starts_with('.') {
                assert!(folder.join(source).exists(), "{name}: {source}");
                mounted += 1;
            }
        }
        let build = &service["build"];
        if let Some(context) = build["context"].as_str() {
            let dockerfile = folder.join(context).join(build["dockerfile"].as_str().expect("a Dockerfile"));
            assert!(dockerfile.exists(), "{}", dockerfile.display());
        }
    }
    assert!(mounted >= 3, "mounts were not understood");
}

#[test]
fn the_configurations_are_accepted() {
    check_configuration("deploy/compose/chatgate.toml", &[]);
    // Its rule file is where Compose mounts it, so the syntax alone is looked at here.
    let output = tool("promtool", "prometheus")
        .args(["check", "config", "--syntax-only", "deploy/compose/prometheus.yml"])
        .output()
        .expect("it starts");
    assert!(output.status.success(), "{}", said(&output));
}

#[test]
fn the_sandbox_takes_its_arguments() {
    let file = yaml(&read("deploy/compose/compose.yaml")).remove(0);
    let arguments: Vec<&str> =
        file["services"]["sandbox"]["command"].as_array().expect("a list").iter().filter_map(Value::as_str).collect();
    // On a port of its own: the file's is for a network of its own.
    let arguments: Vec<String> = arguments.iter().map(|text| text.replace(":9700", ":0")).collect();
    let mut sandbox = Program::start(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    sandbox.wait_until(|program| program.heard(Stream::Stderr).find(|line| line.contains("\"address\"")).map(drop));
}
