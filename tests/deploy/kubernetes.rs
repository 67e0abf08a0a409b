//! deploy/kubernetes, with and without kubectl.

use std::process::Command;

use serde_json::{Value, json};

use crate::support::{Program, shell};
use crate::{
    assert_redis_evicts_nothing, check_configuration, guide, printed, project, python_tool, read, run_with, yaml,
};

/// Applies the sidecar's patch to a Deployment as Kustomize does: merges objects and concatenates lists.
fn merge(under: Value, over: &Value) -> Value {
    match (under, over) {
        (Value::Object(mut under), Value::Object(over)) => {
            for (key, value) in over {
                let below = under.remove(key);
                under.insert(key.clone(), below.map_or_else(|| value.clone(), |below| merge(below, value)));
            }
            Value::Object(under)
        }
        (Value::Array(mut under), Value::Array(over)) => {
            under.extend(over.iter().cloned());
            Value::Array(under)
        }
        (under, _) => under,
    }
}

/// Returns the Deployment of the base with the sidecar.
fn deployment() -> Value {
    let service = yaml(&read("deploy/kubernetes/base/service.yaml")).remove(0);
    merge(service, &yaml(&read("deploy/kubernetes/sidecar/sidecar.yaml"))[0])
}

/// Asserts that the schemas of Kubernetes accept these objects and all their members.
fn validate(objects: &str) {
    let output = validation(objects);
    assert!(output.status.success(), "{}\n{objects}", printed(&output));
}

fn validation(objects: &str) -> std::process::Output {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("objects.yaml");
    std::fs::write(&file, objects).expect("own folder");
    run_with(python_tool("kubernetes-validate").arg("--strict").arg(&file), "")
}

#[test]
fn kubernetes_schemas_accept_the_objects() {
    let with_sidecar = deployment();
    validate(&with_sidecar.to_string());
    let mut wrong = with_sidecar;
    wrong["spec"]["template"]["spec"]["initContainers"][0]["restartPolicies"] = json!("Always");
    assert!(!validation(&wrong.to_string()).status.success(), "an unknown member passed");
    validate(&read("deploy/kubernetes/overlays/fleet/redis.yaml"));
}

#[test]
fn kustomize_builds_base_and_overlay() {
    // Debian's kubectl does not support components, so tests/run does not install it.
    let kustomize = |folder: &str| Command::new("kubectl").arg("kustomize").arg(project(folder)).output();
    for folder in ["deploy/kubernetes/base", "deploy/kubernetes/overlays/fleet"] {
        let Ok(output) = kustomize(folder) else {
            println!("NOT RUN: kubectl kustomize {folder}");
            return;
        };
        assert!(output.status.success(), "{}", printed(&output));
        let built = String::from_utf8(output.stdout).expect("YAML is text");
        validate(&built);
        let objects = yaml(&built);
        let feed = objects.iter().find(|object| object["metadata"]["name"] == "feed").expect("the service");
        assert_eq!(feed["spec"]["template"]["spec"]["initContainers"][0]["name"], "chatgate", "{folder}");
        let volumes = feed["spec"]["template"]["spec"]["volumes"].as_array().expect("volumes");
        let map = volumes.iter().find_map(|volume| volume["configMap"]["name"].as_str()).expect("a ConfigMap");
        assert!(
            map.starts_with("chatgate-"),
            "the name has no hash, so a configuration change does not restart the pods: {map}"
        );
    }
}

#[test]
fn sidecar_outlives_its_service_and_has_minimal_privileges() {
    let deployment = deployment();
    let pod = &deployment["spec"]["template"]["spec"];
    let sidecar = &pod["initContainers"][0];
    assert_eq!(sidecar["restartPolicy"], "Always");
    // The preStop hooks of all containers run at the same time, before any container gets SIGTERM.
    assert_eq!(sidecar["lifecycle"], Value::Null, "a preStop hook stops chatgate while the service still serves");
    for (probe, rule) in [("startupProbe", 1), ("readinessProbe", 10), ("livenessProbe", 15)] {
        assert_eq!(sidecar[probe]["exec"]["command"][1], "healthcheck", "{probe}");
        assert_eq!(sidecar[probe]["periodSeconds"], rule, "{probe}");
    }
    for container in [sidecar, &pod["containers"][0]] {
        let security = &container["securityContext"];
        assert_eq!(security["runAsNonRoot"], true);
        assert_eq!(security["readOnlyRootFilesystem"], true);
        assert_eq!(security["allowPrivilegeEscalation"], false);
        assert_eq!(security["capabilities"], json!({"drop": ["ALL"]}));
        assert_eq!(security["seccompProfile"]["type"], "RuntimeDefault");
    }
    assert_eq!(pod["automountServiceAccountToken"], false);
}

#[test]
fn only_the_sidecar_mounts_the_key_and_sees_rotations() {
    let deployment = deployment();
    let pod = &deployment["spec"]["template"]["spec"];
    assert_eq!(pod["containers"][0]["volumeMounts"], Value::Null);
    for mount in pod["initContainers"][0]["volumeMounts"].as_array().expect("mounts") {
        assert_eq!(mount["subPath"], Value::Null, "a file mounted by subPath never changes: {mount}");
        assert_eq!(mount["readOnly"], true, "{mount}");
    }
    let secret = pod["volumes"].as_array().expect("volumes").iter().find(|volume| volume["secret"].is_object());
    // Kubernetes reads YAML 1.1, in which 0440 is octal.
    assert_eq!(secret.expect("a secret")["secret"]["defaultMode"], 0o440);
    assert_eq!(pod["securityContext"]["fsGroup"], pod["initContainers"][0]["securityContext"]["runAsGroup"]);
}

#[test]
fn check_accepts_the_kubernetes_configurations() {
    let secret = |name: &str| format!("/run/secrets/chatgate/{name}");
    check_configuration("deploy/kubernetes/sidecar/chatgate.toml", &[&secret("chat-key")]);
    let secrets = ["chat-key", "admin-token", "redis-url"].map(secret);
    check_configuration("deploy/kubernetes/overlays/fleet/chatgate.toml", &secrets.each_ref().map(String::as_str));
}

#[test]
fn redis_of_the_overlay_evicts_nothing() {
    let redis = yaml(&read("deploy/kubernetes/overlays/fleet/redis.yaml")).remove(0);
    assert_redis_evicts_nothing(&redis["spec"]["template"]["spec"]["containers"][0]["args"]);
}

#[test]
fn guide_names_version_image_and_configuration() {
    let (guide, deployment) = (guide("Kubernetes"), deployment());
    let image = deployment["spec"]["template"]["spec"]["initContainers"][0]["image"].as_str().expect("an image");
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(image, format!("chatgate:{version}"));
    for text in
        ["Kubernetes 1.29", &format!("/chatgate:{version} ."), "- name: chatgate", &format!("newTag: {version}")]
    {
        assert!(guide.contains(text), "the guide does not contain {text}");
    }
    // What a reader must change in the ConfigMap.
    for key in ["sdkappid", "region", "access.allow"] {
        assert!(guide.contains(&format!("`{key}`")), "the guide does not mention {key}");
    }
}

/// Runs a gateway with the sidecar's configuration in front of a simulator, and sends the requests of the guide and of
/// the example service.
#[test]
fn documented_requests_pass_the_configuration_of_the_sidecar() {
    let key = "5b".repeat(32);
    let sdkappid = ["--sdkappid", "1400000001", "--identifier", "administrator", "--secret-key", &key];
    let mut sandbox = Program::start(&[&["sandbox", "--listen", "127.0.0.1:0"][..], &sdkappid].concat());
    let simulator = format!("http://{}", sandbox.address("sandbox"));
    shell(&format!(
        "curl -sf {simulator}/__sandbox/graph -d '{{\"users\":[\"u1\",\"u2\",\"alice\",\"bob\"],\"edges\":[]}}'"
    ));
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("chat-key");
    std::fs::write(&file, &key).expect("own folder");
    let config = project("deploy/kubernetes/sidecar/chatgate.toml");
    let mut gateway = Program::start_with(
        &["serve", "--config", config.to_str().expect("a plain path")],
        &[
            ("CHATGATE__SERVER__LISTEN", "127.0.0.1:0"),
            ("CHATGATE__SERVER__ADMIN", "127.0.0.1:0"),
            ("CHATGATE__APP__0__SECRET_KEY_FILE", file.to_str().expect("a plain path")),
            ("CHATGATE__APP__0__ENDPOINT", &simulator),
        ],
    );
    let address = gateway.address("data");
    let service = read("deploy/kubernetes/base/service.yaml");
    let guide = guide("Kubernetes");
    for (name, text, end) in [("guide", &guide, "\n```"), ("service", &service, "sleep")] {
        let (_, request) =
            text.split_once("curl -s http://127.0.0.1:8700").unwrap_or_else(|| panic!("{name}: no curl"));
        let request = request.split(end).next().unwrap_or_default();
        let send = |request: &str| shell(&format!("curl -s http://{address}{request}"));
        assert!(send(request).contains("\"ErrorCode\":0"), "{name}: {request}: {}", send(request));
        let without = request.replace("-H 'Chatgate: 1'", "");
        assert!(send(&without).contains("129403"), "{name}: the header is not required");
    }
    assert!(gateway.stop().success());
}
