//! What is under deploy/ agrees with the programs: every setting there is one of theirs and is taken, the graces fit the drains,
//! every figure that an alert or the dashboard names is told. That each file is valid by itself is looked at by deploy/check.

use clap::CommandFactory;
use serde_json::Value;
use shared::{config, partition::PARTITIONS, stream};
use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};
use tests::{
    binaries::Binaries,
    slack::webhook::Webhook,
    until::try_until,
    world::{PAIR, SOON, World, agent_id},
};

fn deploy() -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy")).to_owned()
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Every document of a YAML file.
fn yaml(path: &Path) -> Vec<Value> {
    serde_saphyr::from_multiple(&read(path))
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A service of the compose file, by its name.
fn services() -> BTreeMap<String, Value> {
    let file = yaml(&deploy().join("compose.yaml")).remove(0);
    let services = file["services"].as_object().expect("services");
    services.iter().map(|(name, service)| (name.clone(), service.clone())).collect()
}

/// The settings of an environment, as arguments: the programs are the same for both.
///
/// Files that only an installation has are stood in for by ones with a content of their kind.
fn arguments(command: &clap::Command, environment: &[(String, String)]) -> Vec<OsString> {
    const RING: &str = "k1:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
    let mut arguments = vec![command.get_name().to_owned().into()];
    for (name, value) in environment {
        let setting = command
            .get_arguments()
            .find(|argument| argument.get_env().is_some_and(|env| env == name.as_str()))
            .unwrap_or_else(|| panic!("{name} is no setting of {}", command.get_name()));
        let value = match (value.starts_with("file:"), name.as_str()) {
            (true, "TIDEGATE_POSTGRES_URL") => "postgres://host/database",
            (true, _) => RING,
            (false, _) => value,
        };
        arguments.push(format!("--{}={value}", setting.get_long().expect("a flag")).into());
    }
    arguments
}

/// The settings that an environment gives, or the program's own sentence on what is wrong.
fn settings<C: clap::Parser>(environment: &[(String, String)]) -> C {
    config::parse_from(arguments(&C::command(), environment))
        .unwrap_or_else(|wrong| panic!("{environment:?}: {wrong:?}"))
}

/// What ours an environment sets; other programs' variables are theirs.
fn environment(pairs: impl Iterator<Item = (String, String)>) -> Vec<(String, String)> {
    pairs.filter(|(name, _)| name.starts_with("TIDEGATE_")).collect()
}

/// Every setting that the verbs used here know, as their help tells.
fn tidegate_settings() -> BTreeSet<String> {
    let program = &Binaries::get().expect("binaries").tidegate;
    let help = |verb: &[&str]| {
        let ran = Command::new(program).args(verb).arg("--help").output().expect("it runs");
        assert!(ran.status.success(), "tidegate {verb:?} is no verb");
        String::from_utf8(ran.stdout).expect("text")
    };
    let all = help(&["migrate"]) + &help(&["connections", "disable"]);
    let named = all.split("[env: ").skip(1);
    named.filter_map(|rest| rest.split(['=', ']']).next()).map(str::to_owned).collect()
}

/// How long a process may take to end after SIGTERM, by its settings.
fn ingest_ends_within(settings: &ingest::Config) -> Duration {
    settings.drain_delay + ingest::FINISH_TIMEOUT
}

fn worker_ends_within(settings: &worker::Config) -> Duration {
    settings.grace + worker::BEYOND_GRACE
}

/// The kernel, the container and the log need a moment, too.
const MARGIN: Duration = Duration::from_secs(2);

#[test]
fn what_compose_sets_is_a_setting_and_is_taken() {
    let mut seen = BTreeSet::new();
    for (name, service) in services() {
        let set = service["environment"].as_object().into_iter().flatten();
        let set = environment(set.map(|(k, v)| (k.clone(), v.as_str().expect("text").to_owned())));
        let grace = || config::duration(service["stop_grace_period"].as_str().expect("a grace"));
        match service["build"]["target"].as_str() {
            Some("ingest") => {
                let ends = ingest_ends_within(&settings(&set));
                assert!(grace().expect("a duration") >= ends + MARGIN, "{name}: {ends:?}");
            }
            Some("worker") => {
                let ends = worker_ends_within(&settings(&set));
                assert!(grace().expect("a duration") >= ends + MARGIN, "{name}: {ends:?}");
            }
            Some("tidegate") => {
                let settings = tidegate_settings();
                for (setting, _) in &set {
                    assert!(settings.contains(setting), "{setting} is none of tidegate's");
                }
            }
            _ => assert!(set.is_empty(), "{name} is none of ours"),
        }
        seen.extend(service["build"]["target"].as_str().map(str::to_owned));
    }
    assert_eq!(seen.len(), 3, "{seen:?}");
}

#[test]
fn nats_takes_a_webhook_of_every_size_that_ingest_takes() {
    let limits = read(&deploy().join("nats/limits.conf"));
    let most = stream::BODY_BYTES_MAX + stream::HEADER_BYTES_MAX;
    assert!(limits.lines().any(|line| line == format!("max_payload: {most}")), "{limits}");
}

/// Every document under deploy/kubernetes, with its file's name.
fn manifests() -> Vec<(String, Value)> {
    let mut found = Vec::new();
    for folder in ["base", "overlays/dev", "overlays/prod"] {
        let folder = deploy().join("kubernetes").join(folder);
        for entry in std::fs::read_dir(&folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            let name = path.strip_prefix(deploy()).expect("below it").display().to_string();
            found.extend(yaml(&path).into_iter().map(|document| (name.clone(), document)));
        }
    }
    assert!(found.len() > 20, "{}", found.len());
    found
}

/// What the generated ConfigMap sets, in the base and in the overlays.
fn config_map() -> Vec<(String, String)> {
    let kustomizations = manifests().into_iter().filter(|(_, d)| d["kind"] == "Kustomization");
    let literals = kustomizations.flat_map(|(_, document)| {
        let maps = document["configMapGenerator"].as_array().cloned().unwrap_or_default();
        maps.into_iter().flat_map(|map| map["literals"].as_array().cloned().unwrap_or_default())
    });
    let pairs = literals.map(|literal| {
        let (name, value) = literal.as_str().and_then(|text| text.split_once('=')).expect("a pair");
        (name.to_owned(), value.to_owned())
    });
    // A later one replaces an earlier one.
    pairs.collect::<BTreeMap<_, _>>().into_iter().collect()
}

/// The first container of every Deployment and Job, patches included, with its pod.
fn containers() -> Vec<(String, Value, Value)> {
    let workloads = manifests()
        .into_iter()
        .filter(|(_, document)| document["kind"] == "Deployment" || document["kind"] == "Job");
    let found: Vec<_> = workloads
        .map(|(file, document)| {
            let pod = document["spec"]["template"]["spec"].clone();
            (file, pod["containers"][0].clone(), pod)
        })
        .collect();
    assert!(found.len() >= 6, "two programs, two jobs, two patches: {}", found.len());
    found
}

#[test]
fn what_kubernetes_sets_is_a_setting_is_taken_and_leaves_time_to_drain() {
    let tidegate = tidegate_settings();
    for (file, container, pod) in containers() {
        let own = container["env"].as_array().cloned().unwrap_or_default();
        let own = own.iter().map(|variable| {
            // What the cluster fills in is a pod's name.
            let value = variable["value"].as_str().unwrap_or("worker-5d9c7");
            (variable["name"].as_str().expect("a name").to_owned(), value.to_owned())
        });
        let own: Vec<_> = own.collect();
        let all = [config_map(), own.clone()].concat();
        let grace = pod["terminationGracePeriodSeconds"].as_u64().map(Duration::from_secs);
        let whole = container.get("image").is_some(); // a patch is not
        match container["name"].as_str() {
            Some("ingest") if whole => {
                let ends = ingest_ends_within(&settings(&all)) + MARGIN;
                assert!(grace.expect("a grace") >= ends, "{file}: {ends:?}");
            }
            Some("worker") if whole => {
                let ends = worker_ends_within(&settings(&all)) + MARGIN;
                assert!(grace.expect("a grace") >= ends, "{file}: {ends:?}");
            }
            Some("ingest") => drop(arguments(&ingest::Config::command(), &own)),
            Some("worker") => drop(arguments(&worker::Config::command(), &own)),
            Some("migrate") => {
                for (name, _) in &own {
                    assert!(tidegate.contains(name), "{file}: {name} is none of tidegate's");
                }
            }
            other => panic!("{file}: {other:?} is none of ours"),
        }
        assert!(whole || grace.is_none(), "{file} changes a grace past this test");
    }
}

#[test]
fn no_probe_of_life_looks_past_the_process_and_no_more_workers_run_than_partitions() {
    let mut probed = 0;
    for (file, container, _) in containers() {
        for probe in ["startupProbe", "livenessProbe"] {
            if let Some(probe) = container.get(probe) {
                assert_eq!(probe["httpGet"]["path"], "/healthz", "{file}");
                assert_eq!(probe["httpGet"]["port"], "admin", "{file}");
                probed += 1;
            }
        }
    }
    assert_eq!(probed, 4, "each program has both");
    let scaled = manifests().into_iter().find(|(_, document)| document["kind"] == "ScaledObject");
    let (_, scaled) = scaled.expect("workers are scaled");
    assert_eq!(scaled["spec"]["maxReplicaCount"], PARTITIONS);
    assert_eq!(scaled["spec"]["scaleTargetRef"]["name"], "worker");
}

#[test]
fn the_collectors_pipelines_are_of_parts_that_it_has() {
    let collector = yaml(&deploy().join("observability/collector.yaml")).remove(0);
    let service = &collector["service"];
    let pipelines = service["pipelines"].as_object().expect("pipelines");
    let used = |of: &Value, part: &str| {
        let names = of[part].as_array().expect("a list").iter();
        names.map(|name| (part.to_owned(), name.as_str().expect("text").to_owned())).collect()
    };
    let mut named: Vec<(String, String)> = used(service, "extensions");
    for pipeline in pipelines.values() {
        for part in ["receivers", "processors", "exporters"] {
            named.extend::<Vec<_>>(used(pipeline, part));
        }
    }
    assert!(named.len() >= 6, "{named:?}");
    for (part, name) in named {
        assert!(collector[&part].get(&name).is_some(), "{part} has no {name}");
    }
    let port = collector["receivers"]["otlp"]["protocols"]["http"]["endpoint"].as_str();
    let sent_to = config_map().into_iter().find(|(name, _)| name == "TIDEGATE_OTLP_ENDPOINT");
    let port = port.and_then(|address| address.rsplit(':').next()).expect("a port");
    assert!(sent_to.expect("traces are sent").1.ends_with(port));
}

/// The names of metrics in an expression of PromQL: what is left without strings, matchers, ranges, labels and functions.
fn metrics_in(expression: &str) -> BTreeSet<String> {
    let mut rest = expression.to_owned();
    for (open, close) in [('"', '"'), ('{', '}'), ('[', ']')] {
        while let Some(start) = rest.find(open) {
            let length = rest[start + 1..].find(close).expect("it is closed");
            rest.replace_range(start..start + length + 2, " ");
        }
    }
    for word in ["by", "without", "on", "ignoring"] {
        while let Some(start) = rest.find(&format!("{word} (")) {
            let end = rest[start..].find(')').expect("it is closed");
            rest.replace_range(start..=start + end, " ");
        }
    }
    let mut names = BTreeSet::new();
    let part_of_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    let mut at = 0;
    while let Some(start) = rest[at..].find(part_of_name).map(|found| at + found) {
        let end =
            rest[start..].find(|c| !part_of_name(c)).map_or(rest.len(), |found| start + found);
        let (word, called) = (&rest[start..end], rest[end..].trim_start().starts_with('('));
        let keyword = ["and", "or", "unless", "bool"].contains(&word);
        if !called && !keyword && !word.starts_with(|c: char| c.is_ascii_digit()) {
            names.insert(word.to_owned());
        }
        at = end;
    }
    names
}

/// Every text under this key, at any depth.
fn texts<'v>(value: &'v Value, key: &str, found: &mut Vec<&'v str>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                if name == key {
                    found.extend(value.as_str());
                }
                texts(value, key, found);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| texts(item, key, found)),
        _ => {}
    }
}

fn alerts() -> Value {
    yaml(&deploy().join("observability/alerts.yaml")).remove(0)
}

/// The names under which a page's figures arrive in Prometheus.
fn told(page: &str) -> BTreeSet<String> {
    let types = page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
    let named = types.flat_map(|(name, kind)| {
        let suffixes: &[&str] = match kind {
            "counter" => &["_total"],
            "histogram" => &["_bucket", "_sum", "_count"],
            "info" => &["_info"],
            _ => &[""],
        };
        suffixes.iter().map(move |suffix| format!("{name}{suffix}"))
    });
    named.collect()
}

/// Told by others: NATS's exporter, kube-state-metrics, cert-manager.
const FOREIGN: [&str; 3] = ["jetstream_", "kube_", "certmanager_"];

#[tokio::test]
async fn every_figure_that_the_dashboard_the_alerts_and_the_scaler_name_is_told_by_a_live_process()
{
    let dashboard: Value =
        serde_json::from_str(&read(&deploy().join("observability/dashboard.json")))
            .expect("the dashboard is JSON");
    let (alerts, mut expressions, mut recorded) = (alerts(), Vec::new(), Vec::new());
    texts(&dashboard, "expr", &mut expressions);
    let panels = expressions.len();
    texts(&alerts, "expr", &mut expressions);
    texts(&alerts, "record", &mut recorded);
    let scaled = manifests().into_iter().find(|(_, document)| document["kind"] == "ScaledObject");
    let scaled = scaled.expect("workers are scaled").1;
    texts(&scaled, "query", &mut expressions);
    assert!(panels > 30 && expressions.len() > panels + 20, "{panels} {}", expressions.len());
    let mut named = BTreeSet::new();
    for expression in expressions {
        let names = metrics_in(expression);
        assert!(!names.is_empty(), "{expression} names nothing");
        named.extend(names);
    }
    named.retain(|name| !FOREIGN.iter().any(|prefix| name.starts_with(prefix)));
    named.retain(|name| !recorded.contains(&name.as_str()));
    let missing = RefCell::new(named);

    // What `cargo demo` runs, and what it does. A figure with labels is told from its first time on.
    let world = World::start(PAIR).await.expect("a world");
    let app = world.connect_as(|new| new.agent = Some(agent_id())).await.expect("a connection");
    let webhook = Webhook::message(&world.slack, &app, "C1", "U1", "hello");
    world.send(&app, &webhook).await.expect("an answer");
    let ingests = world.ingests.iter().map(|ingest| ingest.admin("/metrics"));
    let pages: Vec<_> =
        ingests.chain(world.workers.iter().map(|worker| worker.admin("/metrics"))).collect();
    let all_told = try_until("every figure is told", SOON, async || {
        for page in &pages {
            let told = told(&reqwest::get(page).await.ok()?.text().await.ok()?);
            missing.borrow_mut().retain(|name| !told.contains(name));
        }
        missing.borrow().is_empty().then_some(())
    });
    assert!(all_told.await.is_ok(), "nobody tells {missing:?}");
    assert_eq!(dashboard["uid"], "tidegate", "links to it stay");
}
