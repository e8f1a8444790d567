//! Images, which are built once each, and alerts, which concern Tidegate only and link to the
//! runbook.

use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

fn read(file: &str) -> String {
    let path = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy")).join(file);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn yaml(file: &str) -> Value {
    let mut documents: Vec<Value> = serde_saphyr::from_multiple(&read(file)).expect(file);
    documents.remove(0)
}

/// Returns the stages of the Dockerfile that become images.
fn stages() -> BTreeSet<String> {
    let dockerfile = read("Dockerfile");
    let stages =
        dockerfile.lines().filter_map(|line| line.strip_prefix("FROM ")?.split_once(" AS "));
    stages.map(|(_, stage)| stage.to_owned()).filter(|stage| stage != "build").collect()
}

/// Each stage of the Dockerfile has one target, tag and compose service that builds it: two builds
/// of one tag at the same time fail with "already exists".
#[test]
fn builds_each_image_once() {
    let bake: Value = serde_json::from_str(&read("bake.json")).expect("JSON");
    let targets = bake["target"].as_object().expect("targets");
    let mut tags = BTreeMap::new();
    for (name, target) in targets {
        assert_eq!(
            (&target["context"], &target["dockerfile"]),
            (&".".into(), &"deploy/Dockerfile".into())
        );
        assert_eq!(target["target"], **name, "one target per stage");
        for tag in target["tags"].as_array().expect("tags") {
            let tag = tag.as_str().expect("text").to_owned();
            let other = tags.insert(tag, name.clone());
            assert_eq!(other, None, "{name} shares a tag");
        }
    }
    assert_eq!(targets.keys().cloned().collect::<BTreeSet<_>>(), stages());
    let group = bake["group"]["default"]["targets"].as_array().expect("a group");
    let group: BTreeSet<_> = group.iter().filter_map(Value::as_str).map(str::to_owned).collect();
    assert_eq!(group, stages());

    let compose = yaml("compose.yaml");
    let mut builders = BTreeMap::new();
    for (service, definition) in compose["services"].as_object().expect("services") {
        let image = definition["image"].as_str().expect("an image");
        if let Some(target) = definition["build"]["target"].as_str() {
            assert_eq!(tags.get(image).map(String::as_str), Some(target), "{service}");
            let other = builders.insert(image.to_owned(), service.clone());
            assert_eq!(other, None, "{service} builds {image} again");
        }
    }
    assert_eq!(builders.keys().collect::<Vec<_>>(), tags.keys().collect::<Vec<_>>());
}

/// The build context includes each member of the workspace, without which the build fails.
#[test]
fn includes_whole_workspace_in_images() {
    let manifest = read("../Cargo.toml");
    let members =
        manifest.lines().find_map(|line| line.strip_prefix("members = ")).expect("a list");
    let members: Vec<String> = serde_json::from_str(members).expect("a list");
    let ignored = read("Dockerfile.dockerignore");
    for member in members {
        assert!(ignored.lines().any(|line| line == format!("!{member}")), "{member} is ignored");
    }
}

fn alerts() -> Vec<Value> {
    let rules = yaml("observability/alerts.yaml");
    let groups = rules["spec"]["groups"].as_array().expect("groups").clone();
    let rules =
        groups.into_iter().flat_map(|group| group["rules"].as_array().cloned().unwrap_or_default());
    rules.filter(|rule| rule["alert"].is_string()).collect()
}

/// Each alert links to its entry in the runbook, and has a severity that Alertmanager routes.
#[test]
fn links_alerts_to_runbook() {
    let runbook = read("RUNBOOK.md");
    let alerts = alerts();
    assert!(alerts.len() > 30, "{}", alerts.len());
    for alert in &alerts {
        let name = alert["alert"].as_str().expect("a name");
        assert!(runbook.contains(&format!("\n### {name}\n")), "{name} has no entry");
        let url = alert["annotations"]["runbook_url"].as_str().unwrap_or_default();
        let anchor = format!("RUNBOOK.md#{}", name.to_lowercase());
        assert!(url.starts_with("https://") && url.ends_with(&anchor), "{name}: {url}");
        assert_eq!(alert["labels"]["service"], "tidegate", "{name}");
        assert!(
            ["page", "ticket"].contains(&alert["labels"]["severity"].as_str().unwrap_or_default())
        );
    }
    let routed = read("observability/alertmanager.example.yaml");
    for severity in ["page", "ticket"] {
        let matchers = format!("matchers: [service = tidegate, severity = {severity}]");
        assert!(routed.contains(&matchers), "{severity}");
    }
    let labels = yaml("observability/kustomization.yaml")["labels"][0]["pairs"].clone();
    assert!(labels["release"].is_string(), "the default selector of operators: {labels}");
}

/// Metrics that other services may export have a namespace selector in each alert.
#[test]
fn limits_alerts_to_tidegate() {
    let foreign = ["jetstream_", "kube_", "certmanager_"];
    for alert in alerts() {
        let expression = alert["expr"].as_str().expect("an expression");
        let words = expression.split(|c: char| !c.is_ascii_alphanumeric() && !"_:".contains(c));
        for word in words.filter(|word| word.contains('_')) {
            let is_foreign = foreign.iter().any(|prefix| word.starts_with(prefix));
            for (at, _) in expression.match_indices(word).filter(|_| is_foreign) {
                let selector = &expression[at + word.len()..];
                let selected = selector.starts_with("{namespace=");
                assert!(selected, "{}: {word} of any service", alert["alert"]);
            }
        }
        let has_own = expression.contains("tidegate");
        assert!(
            has_own || foreign.iter().any(|prefix| expression.contains(prefix)),
            "{expression}"
        );
        assert!(!expression.contains(" http_") && !expression.starts_with("http_"), "{expression}");
    }
}
