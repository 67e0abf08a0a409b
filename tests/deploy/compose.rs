//! deploy/compose.

use serde_json::Value;

use crate::support::{Program, Stream};
use crate::{
    assert_redis_evicts_nothing, check_configuration, printed, project, python_tool, read, run_with, tool, yaml,
};

/// Validates a Compose file strictly, including references between its parts.
const VALIDATE: &str = "
import sys, compose_spec
options = compose_spec.PyOptions()
options.apply_merge = True
options.from_yaml(sys.stdin.read()).validate()
";

#[test]
fn compose_file_is_valid() {
    let validate = |text: &str| run_with(python_tool("python").args(["-c", VALIDATE]), text);
    let text = read("deploy/compose/compose.yaml");
    let output = validate(&text);
    assert!(output.status.success(), "{}", printed(&output));
    for (from, to) in [("tmpfs:", "tmpfss:"), ("source: chatgate", "source: other"), (":8700\"", ":87x0\"")] {
        assert!(text.contains(from), "{from}");
        assert!(!validate(&text.replace(from, to)).status.success(), "{to} passed");
    }
}

#[test]
fn compose_mounts_exist_and_ports_are_on_loopback() {
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
    assert!(mounted >= 3, "no mount was found");
}

#[test]
fn redis_of_the_demo_environment_evicts_nothing() {
    let file = yaml(&read("deploy/compose/compose.yaml")).remove(0);
    assert_redis_evicts_nothing(&file["services"]["redis"]["command"]);
}

#[test]
fn check_accepts_the_compose_configurations() {
    check_configuration("deploy/compose/chatgate.toml", &[]);
    // The rule file exists only where Compose mounts it, so this checks only the syntax.
    let output = tool("promtool", "prometheus")
        .args(["check", "config", "--syntax-only", "deploy/compose/prometheus.yml"])
        .output()
        .expect("promtool starts");
    assert!(output.status.success(), "{}", printed(&output));
}

#[test]
fn simulator_accepts_its_compose_arguments() {
    let file = yaml(&read("deploy/compose/compose.yaml")).remove(0);
    let arguments: Vec<&str> =
        file["services"]["sandbox"]["command"].as_array().expect("a list").iter().filter_map(Value::as_str).collect();
    // Uses a free port, because the file's port is for Compose's network.
    let arguments: Vec<String> = arguments.iter().map(|text| text.replace(":9700", ":0")).collect();
    let mut sandbox = Program::start(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    sandbox.wait_until(|program| program.lines_on(Stream::Stderr).find(|line| line.contains("\"address\"")).map(drop));
}
