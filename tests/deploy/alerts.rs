//! deploy/prometheus.

use std::fs;

use crate::{printed, project, read, tool};

#[test]
fn each_alert_fires_only_for_its_condition() {
    let rules = read("deploy/prometheus/alerts.yml");
    let tests = read("deploy/prometheus/alerts_test.yml");
    let run_rule_tests = |rules: &str| {
        let folder = tempfile::tempdir().expect("a temporary folder");
        fs::write(folder.path().join("alerts.yml"), rules).expect("own folder");
        fs::write(folder.path().join("alerts_test.yml"), &tests).expect("own folder");
        let mut promtool = tool("promtool", "prometheus");
        promtool
            .args(["test", "rules", "alerts_test.yml"])
            .current_dir(folder.path())
            .output()
            .expect("promtool starts")
    };
    let output = run_rule_tests(&rules);
    assert!(output.status.success(), "{}", printed(&output));
    for name in names(&rules) {
        assert!(tests.contains(&format!("- name: {name}\n")), "alerts_test.yml has no test of {name}");
    }
    for (from, to) in [
        ("> 0.05", "> 0.5"),
        ("== 2", "== 3"),
        ("> 0.01", "> 0.001"),
        ("< 14 *", "< 1 *"),
        ("connected == 0", "connected == 1"),
        ("\"ok|failed\"", "\"ok\""),
        (
            "0.5 * sum by (instance, app) (rate(chatgate_upstream",
            "0.4 * sum by (instance, app) (rate(chatgate_upstream",
        ),
        ("> 0.001 + (sum", "> -0.001 + (sum"),
    ] {
        assert!(rules.contains(from), "{from}");
        assert!(!run_rule_tests(&rules.replace(from, to)).status.success(), "{to} passed");
    }
}

#[test]
fn promtool_accepts_the_alert_rules() {
    let output = tool("promtool", "prometheus")
        .args(["check", "rules"])
        .arg(project("deploy/prometheus/alerts.yml"))
        .output()
        .expect("promtool starts");
    assert!(output.status.success(), "{}", printed(&output));
}

/// Returns the names of the alerts.
pub(crate) fn names(rules: &str) -> Vec<&str> {
    let names: Vec<&str> = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    assert!(!names.is_empty(), "no alert was found in the rules");
    names
}
