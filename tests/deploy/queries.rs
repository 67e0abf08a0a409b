//! The alerts and the dashboard use only metrics, labels and label values that a running gateway exports.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use serde_json::Value;

use crate::support::{Program, shell};
use crate::{printed, read, tool, yaml};

/// Labels that Prometheus adds, and the bucket label of histograms.
const PROMETHEUS_LABELS: [&str; 3] = ["instance", "job", "le"];

/// Returns names and labels of the samples in an exposition.
fn samples(exposition: &str) -> BTreeMap<&str, BTreeSet<&str>> {
    let mut samples: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for line in exposition.lines().filter(|line| !line.starts_with('#')) {
        let (name, rest) = line.split_once(['{', ' ']).expect("name and value");
        let labels = rest.split_once('}').map_or("", |(labels, _)| labels);
        let names = labels.split('"').step_by(2).filter_map(|text| text.trim_matches(',').strip_suffix('='));
        samples.entry(name).or_default().extend(names);
    }
    samples
}

/// Returns the metrics of a gateway that has answered one request, made one call and rejected one request, so that most
/// metrics have a sample.
fn exposition() -> String {
    let (mut demo, data, admin) = Program::demo();
    let body = r#"{"From_Account":"alice","To_Account":["bob"]}"#;
    shell(&format!("curl -s http://{data}/v4/follow/follow_check -d '{body}'; curl -s http://{data}/v4/a/b -d '{{}}'"));
    let exposition = shell(&format!("curl -s http://{admin}/metrics"));
    assert!(demo.stop().success(), "the demo exits with an error");
    exposition
}

/// Returns the queries of the dashboard and of its variables and annotations.
fn dashboard_queries() -> Vec<String> {
    fn collect(value: &Value, found: &mut Vec<String>) {
        match value {
            Value::Object(members) => {
                let texts = members.iter().filter(|(key, _)| *key == "expr" || *key == "definition");
                found.extend(texts.filter_map(|(_, text)| text.as_str()).map(str::to_owned));
                members.values().for_each(|value| collect(value, found));
            }
            Value::Array(values) => values.iter().for_each(|value| collect(value, found)),
            _ => {}
        }
    }
    let mut found = Vec::new();
    collect(&serde_json::from_str(&read("deploy/grafana/chatgate.json")).expect("JSON"), &mut found);
    assert!(found.len() > 20, "too few queries in the dashboard: {found:?}");
    found
}

fn alert_queries() -> Vec<String> {
    let rules = yaml(&read("deploy/prometheus/alerts.yml")).remove(0);
    let rules = rules["groups"][0]["rules"].as_array().expect("rules").clone();
    rules.iter().map(|rule| rule["expr"].as_str().expect("an expr").to_owned()).collect()
}

/// Returns the metrics that a query names, each with the labels of its selector.
fn metrics(query: &str) -> Vec<(String, Vec<String>)> {
    let is_name = |byte: char| byte.is_ascii_alphanumeric() || byte == '_';
    let mut found = Vec::new();
    let mut rest = query;
    while let Some(start) = rest.find(|byte: char| byte.is_ascii_alphabetic() || byte == '"') {
        rest = &rest[start..];
        if let Some(quoted) = rest.strip_prefix('"') {
            rest = quoted.split_once('"').expect("a closing quote").1;
            continue;
        }
        let (name, after) = rest.split_at(rest.find(|byte| !is_name(byte)).unwrap_or(rest.len()));
        rest = after;
        if name.starts_with("chatgate_") || name.starts_with("process_") {
            let selector = after.strip_prefix('{').and_then(|text| text.split_once('}')).map_or("", |(text, _)| text);
            let labels = selector.split('"').step_by(2).map(|text| text.trim_matches([',', ' ', '=', '~', '!']));
            found.push((name.to_owned(), labels.filter(|label| !label.is_empty()).map(str::to_owned).collect()));
        }
    }
    found
}

#[test]
fn queries_use_every_metric_and_only_existing_ones() {
    let exposition = exposition();
    let exported = samples(&exposition);
    let code = read("src/admin/metrics.rs");
    let mut queried = BTreeSet::new();
    let base = |name: &str| {
        ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name).to_owned()
    };
    for query in dashboard_queries().into_iter().chain(alert_queries()) {
        for (metric, labels) in metrics(&query) {
            let Some(own) = exported.get(metric.as_str()) else {
                // Some metrics exist only with a feature that the demo does not configure.
                assert!(code.contains(&format!("\"{}\"", base(&metric))), "no metric {metric}, in {query}");
                queried.insert(metric);
                continue;
            };
            for label in labels {
                assert!(
                    own.contains(label.as_str()) || PROMETHEUS_LABELS.contains(&label.as_str()),
                    "{metric} has no {label}: {query}"
                );
            }
            queried.insert(metric);
        }
    }
    // Every exported metric is used by the dashboard or by an alert.
    let queried: BTreeSet<String> = queried.iter().map(|name| base(name)).collect();
    let is_unused = |name: &&str| name.starts_with("chatgate_") && !queried.contains(&base(name));
    let unused: Vec<&str> = exported.keys().copied().filter(is_unused).collect();
    assert!(unused.is_empty(), "neither the dashboard nor an alert uses {unused:?}");
    // The same for metrics of features that the demo does not configure.
    let in_code: BTreeSet<&str> = code.split('"').filter(|text| text.starts_with("chatgate_")).collect();
    assert!(in_code.len() > 20, "too few metrics in the code: {in_code:?}");
    let unused: Vec<&&str> = in_code.iter().filter(|name| !queried.contains(**name)).collect();
    assert!(unused.is_empty(), "neither the dashboard nor an alert uses {unused:?}");
}

#[test]
fn queries_select_only_existing_outcomes_and_sources() {
    // Outcomes are slugs, and some values of the labels alone.
    let labels = read("src/telemetry/metrics/labels.rs") + &read("src/error.rs");
    let sources = read("src/telemetry/metrics/mod.rs");
    for query in dashboard_queries().into_iter().chain(alert_queries()) {
        for (label, code) in [("outcome", &labels), ("source", &sources)] {
            for selected in
                query.split(label).skip(1).filter_map(|rest| rest.trim_start_matches(['=', '~', '!']).strip_prefix('"'))
            {
                for value in selected.split('"').next().expect("a value").split('|') {
                    assert!(code.contains(&format!("\"{value}\"")), "no {label} {value}: {query}");
                }
            }
        }
    }
}

/// Replaces variables with values, as Grafana does.
#[test]
fn promtool_accepts_the_queries_of_the_dashboard() {
    let queries = dashboard_queries().into_iter().filter(|query| !query.starts_with("label_values("));
    let rules: String = queries
        .map(|query| query.replace("$__rate_interval", "1m").replace("$instance", ".*").replace("$app", ".*"))
        .enumerate()
        .map(|(number, query)| format!("      - record: query:{number}\n        expr: '{query}'\n"))
        .collect();
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("rules.yml");
    fs::write(&file, format!("groups:\n  - name: dashboard\n    rules:\n{rules}")).expect("own folder");
    let output = tool("promtool", "prometheus").args(["check", "rules"]).arg(&file).output().expect("promtool starts");
    assert!(output.status.success(), "{}", printed(&output));
}

#[test]
fn query_parser_returns_metrics_and_labels() {
    let query = r#"sum by (app) (rate(chatgate_x_total{a="process_y", b=~"1|2"}[5m])) > 0.5 * process_z"#;
    let expected = [("chatgate_x_total", vec!["a", "b"]), ("process_z", vec![])];
    let found = metrics(query);
    assert_eq!(found.len(), expected.len(), "{found:?}");
    for ((metric, labels), (name, names)) in found.iter().zip(expected) {
        assert_eq!((metric.as_str(), labels), (name, &names.into_iter().map(str::to_owned).collect()));
    }
    let text = "# HELP a x\na{b=\"c\",d=\"e\"} 1\nf 2\n";
    assert_eq!(samples(text), BTreeMap::from([("a", BTreeSet::from(["b", "d"])), ("f", BTreeSet::new())]));
}
