//! deploy/kubernetes, with and without kubectl.

use std::process::Command;

use serde_json::{Value, json};

use crate::{check_configuration, project, python_tool, read, run_with, said, yaml};

/// Lays the sidecar's patch over a Deployment as kustomize does: objects become one, lists are joined.
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

/// The Deployment of the base, with the sidecar in it.
fn deployment() -> Value {
    let service = yaml(&read("deploy/kubernetes/base/service.yaml")).remove(0);
    merge(service, &yaml(&read("deploy/kubernetes/sidecar/sidecar.yaml"))[0])
}

/// Holds that the schemas of Kubernetes know every member of these objects.
fn validate(objects: &str) {
    let output = validation(objects);
    assert!(output.status.success(), "{}\n{objects}", said(&output));
}

fn validation(objects: &str) -> std::process::Output {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("objects.yaml");
    std::fs::write(&file, objects).expect("own folder");
    run_with(python_tool("kubernetes-validate").arg("--strict").arg(&file), "")
}

#[test]
fn the_objects_are_as_kubernetes_knows_them() {
    let with_sidecar = deployment();
    validate(&with_sidecar.to_string());
    let mut wrong = with_sidecar;
    wrong["spec"]["template"]["spec"]["initContainers"][0]["restartPolicies"] = json!("Always");
    assert!(!validation(&wrong.to_string()).status.success(), "a member that is not there passed");
    validate(&read("deploy/kubernetes/overlays/fleet/redis.yaml"));
}

#[test]
fn kustomize_builds_base_and_overlay() {
    // Debian's kubectl is older than components, so tests/run installs none.
    let kustomize = |folder: &str| Command::new("kubectl").arg("kustomize").arg(project(folder)).output();
    for folder in ["deploy/kubernetes/base", "deploy/kubernetes/overlays/fleet"] {
        let Ok(output) = kustomize(folder) else {
            println!("NOT RUN: kubectl kustomize {folder}");
            return;
        };
        assert!(output.status.success(), "{}", said(&output));
        let built = String::from_utf8(output.stdout).expect("YAML is text");
        validate(&built);
        let objects = yaml(&built);
        let feed = objects.iter().find(|object| object["metadata"]["name"] == "feed").expect("the service");
        assert_eq!(feed["spec"]["template"]["spec"]["initContainers"][0]["name"], "chatgate", "{folder}");
        let volumes = feed["spec"]["template"]["spec"]["volumes"].as_array().expect("volumes");
        let map = volumes.iter().find_map(|volume| volume["configMap"]["name"].as_str()).expect("a ConfigMap");
        assert!(map.starts_with("chatgate-"), "a change of the configuration rolls the pods: {map}");
    }
}

#[test]
fn the_sidecar_lives_as_long_as_its_service_and_can_do_nothing_beside() {
    let deployment = deployment();
    let pod = &deployment["spec"]["template"]["spec"];
    let sidecar = &pod["initContainers"][0];
    assert_eq!(sidecar["restartPolicy"], "Always");
    // Hooks of all containers run at once, before any of them is told to stop.
    assert_eq!(sidecar["lifecycle"], Value::Null, "a preStop takes chatgate away while the service still answers");
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
fn only_the_sidecar_sees_the_key_and_sees_it_change() {
    let deployment = deployment();
    let pod = &deployment["spec"]["template"]["spec"];
    assert_eq!(pod["containers"][0]["volumeMounts"], Value::Null);
    for mount in pod["initContainers"][0]["volumeMounts"].as_array().expect("mounts") {
        assert_eq!(mount["subPath"], Value::Null, "a file mounted by subPath never changes: {mount}");
        assert_eq!(mount["readOnly"], true, "{mount}");
    }
    let secret = pod["volumes"].as_array().expect("volumes").iter().find(|volume| volume["secret"].is_object());
    // YAML 1.1, as Kubernetes reads it, takes 0440 for octal.
    assert_eq!(secret.expect("a secret")["secret"]["defaultMode"], 0o440);
    assert_eq!(pod["securityContext"]["fsGroup"], pod["initContainers"][0]["securityContext"]["runAsGroup"]);
}

#[test]
fn the_configurations_are_accepted() {
    let secret = |name: &str| format!("/run/secrets/chatgate/{name}");
    check_configuration("deploy/kubernetes/sidecar/chatgate.toml", &[&secret("chat-key")]);
    let secrets = ["chat-key", "admin-token", "redis-url"].map(secret);
    check_configuration("deploy/kubernetes/overlays/fleet/chatgate.toml", &secrets.each_ref().map(String::as_str));
}
