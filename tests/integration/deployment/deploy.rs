//! Agreement of the files under `deploy/` with the programs: settings exist and are valid, grace
//! periods fit the drains, metrics are exported. `deploy/check` validates each file by itself.

use clap::CommandFactory;
use serde_json::Value;
use shared::{
    domain::OAUTH_CALLBACK_PATH,
    runtime::config,
    stream::{self, PARTITIONS},
};
use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    path::{Path, PathBuf},
    process::Command,
    sync::LazyLock,
    time::Duration,
};
use tests::{
    binaries::Binaries,
    eventually::try_eventually,
    slack::webhook::Webhook,
    test_env::{PAIR, TIMEOUT, TestEnv, agent_id},
};

fn deploy_folder() -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy")).to_owned()
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Returns the documents of a YAML file.
fn yaml_documents(path: &Path) -> Vec<Value> {
    serde_saphyr::from_multiple(&read(path))
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Returns the services of the compose file by name.
fn services() -> BTreeMap<String, Value> {
    let file = yaml_documents(&deploy_folder().join("compose.yaml")).remove(0);
    let services = file["services"].as_object().expect("services");
    services.iter().map(|(name, service)| (name.clone(), service.clone())).collect()
}

/// Returns the settings of an environment as arguments, which the programs take for the same
/// settings. Replaces secrets by values of their kind: an installation has them in files, and they
/// can't be arguments.
fn arguments(command: &clap::Command, environment: &[(String, String)]) -> Vec<OsString> {
    static RING: LazyLock<String> = LazyLock::new(|| {
        let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join("ring");
        let ring = "k1:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
        std::fs::write(&file, ring).expect("a file");
        format!("file:{}", file.display())
    });
    let mut arguments = vec![command.get_name().to_owned().into()];
    for (name, value) in environment {
        let setting = command
            .get_arguments()
            .find(|argument| argument.get_env().is_some_and(|env| env == name.as_str()))
            .unwrap_or_else(|| panic!("{name} is no setting of {}", command.get_name()));
        let value = match (value.starts_with("file:"), name.as_str()) {
            (_, "TIDEGATE_POSTGRES_URL") => "postgres://host/database",
            (true, _) => &RING,
            (false, _) => value,
        };
        arguments.push(format!("--{}={value}", setting.get_long().expect("a flag")).into());
    }
    arguments
}

/// Parses the settings of an environment. Fails with the message of the program.
fn parse_settings<C: clap::Parser>(environment: &[(String, String)]) -> C {
    config::parse_from(arguments(&C::command(), environment))
        .unwrap_or_else(|wrong| panic!("{environment:?}: {wrong:?}"))
}

/// Variables that the OpenTelemetry SDK reads in ingest and worker. They have no flags.
const SDK_VARIABLES: [&str; 6] = [
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_EXPORTER_OTLP_HEADERS",
    "OTEL_SERVICE_NAME",
    "OTEL_RESOURCE_ATTRIBUTES",
    "OTEL_TRACES_SAMPLER",
];

/// Returns the settings of Tidegate in an environment.
fn own_settings(pairs: impl Iterator<Item = (String, String)>) -> Vec<(String, String)> {
    let pairs = pairs.inspect(|(name, _)| {
        assert!(!name.starts_with("OTEL_") || SDK_VARIABLES.contains(&name.as_str()), "{name}");
    });
    pairs.filter(|(name, _)| name.starts_with("TIDEGATE_")).collect()
}

/// Returns the settings of the commands used here, from their help.
fn tidegate_settings() -> BTreeSet<String> {
    let program = &Binaries::get().expect("binaries").tidegate;
    let help = |verb: &[&str]| {
        let ran = Command::new(program).args(verb).arg("--help").output().expect("it runs");
        assert!(ran.status.success(), "tidegate {verb:?} is no command");
        String::from_utf8(ran.stdout).expect("text")
    };
    let all = help(&["migrate"]) + &help(&["apply"]);
    let named = all.split("[env: ").skip(1);
    named.filter_map(|rest| rest.split(['=', ']']).next()).map(str::to_owned).collect()
}

/// Returns the maximum time from SIGTERM to the end of an ingest.
fn ingest_stop_time(settings: &ingest::Config) -> Duration {
    settings.drain_period + ingest::FINISH_TIMEOUT
}

fn worker_stop_time(settings: &worker::Config) -> Duration {
    settings.shutdown_grace_period + worker::BEYOND_GRACE
}

fn control_stop_time(settings: &control::Config) -> Duration {
    settings.drain_period + control::FINISH_TIMEOUT
}

/// Time for the kernel, the container runtime and the log.
const MARGIN: Duration = Duration::from_secs(2);

/// The compose file sets valid settings, and its grace periods leave time to drain.
#[test]
fn sets_valid_settings_in_compose() {
    let mut seen = BTreeSet::new();
    for (name, service) in services() {
        let set = service["environment"].as_object().into_iter().flatten();
        let set = own_settings(set.map(|(k, v)| (k.clone(), v.as_str().expect("text").to_owned())));
        let grace =
            || config::parse_duration(service["stop_grace_period"].as_str().expect("a grace"));
        let program = service["image"].as_str().and_then(|image| image.strip_prefix("tidegate/"));
        match program {
            Some("ingest") => {
                let ends = ingest_stop_time(&parse_settings(&set));
                assert!(grace().expect("a duration") >= ends + MARGIN, "{name}: {ends:?}");
            }
            Some("worker") => {
                let ends = worker_stop_time(&parse_settings(&set));
                assert!(grace().expect("a duration") >= ends + MARGIN, "{name}: {ends:?}");
            }
            Some("control") => {
                let ends = control_stop_time(&parse_settings(&set));
                assert!(grace().expect("a duration") >= ends + MARGIN, "{name}: {ends:?}");
            }
            Some("tidegate") => {
                let settings = tidegate_settings();
                for (setting, _) in &set {
                    assert!(settings.contains(setting), "{setting} is no setting of tidegate");
                }
            }
            _ => assert!(set.is_empty(), "{name} is no program of Tidegate"),
        }
        seen.extend(program.map(str::to_owned));
    }
    assert_eq!(seen.len(), 4, "{seen:?}");
}

/// A process of the compose file has the keys of its role only, no superuser of Postgres, and no
/// port for other machines. Agents reach neither NATS nor Postgres.
#[test]
fn separates_roles_in_compose() {
    let names = |list: &Value| -> BTreeSet<String> {
        let list = list.as_array().into_iter().flatten();
        list.map(|name| name.as_str().expect("text").to_owned()).collect()
    };
    let (mut of_keys, mut ports) = (BTreeSet::new(), 0);
    let (mut with_agents, mut with_servers) = (BTreeSet::new(), BTreeSet::new());
    for (name, service) in services() {
        let role = name.trim_end_matches(|c: char| c.is_ascii_digit() || c == '-');
        let role = if role == "migrate" || role == "tidegate" { "operator" } else { role };
        let volumes = service["volumes"].as_array().into_iter().flatten();
        for volume in volumes.filter(|volume| volume.to_string().contains("keys")) {
            match role {
                "keys" => {} // makes them
                _ => {
                    let folder = (&volume["volume"]["subpath"], &volume["read_only"]);
                    let expected = (&Value::from(role), &Value::from(true));
                    assert_eq!(folder, expected, "{name}: {volume}");
                }
            }
            of_keys.insert(role.to_owned());
        }
        let url = service["environment"]["TIDEGATE_POSTGRES_URL"].as_str();
        assert!(url.is_none_or(|url| url.starts_with("postgres://tidegate_")), "{name}: {url:?}");
        for port in names(&service["ports"]) {
            assert!(port.starts_with("127.0.0.1:"), "{name}: {port}");
            ports += 1;
        }
        let networks = names(&service["networks"]);
        assert!(!networks.is_empty(), "{name} is in the default network");
        if name == "nats" || name == "postgres" {
            with_servers.extend(networks);
        } else if name == "agent" {
            with_agents.extend(networks);
        }
    }
    let roles = ["control", "ingest", "keys", "nats", "operator", "worker"];
    assert!(of_keys.iter().eq(roles), "{of_keys:?}");
    assert_eq!(ports, 3, "the proxy's, the API's and the console's");
    assert!(!with_agents.is_empty() && with_agents.is_disjoint(&with_servers), "{with_agents:?}");
}

/// Budgets, buffers and the directory of an ingest add up to less than its container may use.
#[test]
fn fits_ingest_in_memory_limits() {
    let pod = containers().into_iter().find(|(_, container, _)| {
        container["name"] == "ingest" && container["resources"]["limits"]["memory"].is_string()
    });
    let pod = pod.expect("the pod has a limit").1;
    let own = pod["env"].as_array().cloned().unwrap_or_default();
    let own = own.iter().map(|variable| {
        let value = variable["value"].as_str().unwrap_or_default();
        (variable["name"].as_str().expect("a name").to_owned(), value.to_owned())
    });
    let settings: ingest::Config =
        parse_settings(&own_settings(config_map().into_iter().chain(own)));
    let limit = pod["resources"]["limits"]["memory"].as_str().expect("text");
    let limit = config::parse_bytes(&format!("{limit}B")).expect("a size");
    let most = settings.memory_max() as u64;
    assert!(most <= limit, "Kubernetes: {} of {} MiB", most >> 20, limit >> 20);
    assert!(most > limit / 2, "the limit is for these settings: {} MiB", most >> 20);

    let ingests =
        services().into_iter().filter(|(_, service)| service["image"] == "tidegate/ingest");
    for (name, service) in ingests {
        let set = service["environment"].as_object().into_iter().flatten();
        let set = own_settings(set.map(|(k, v)| (k.clone(), v.as_str().expect("text").to_owned())));
        let most = parse_settings::<ingest::Config>(&set).memory_max() as u64;
        let limit = service["mem_limit"].as_str().expect("a limit").replace('m', "MiB");
        let limit = config::parse_bytes(&limit).expect("a size");
        assert!(most <= limit, "{name}: {} of {} MiB", most >> 20, limit >> 20);
    }
}

/// `max_payload` of NATS is the maximum body plus the maximum headers.
#[test]
fn allows_largest_webhook_in_nats() {
    let limits = read(&deploy_folder().join("nats/limits.conf"));
    let most = stream::BODY_BYTES_MAX + stream::HEADER_BYTES_MAX;
    assert!(limits.lines().any(|line| line == format!("max_payload: {most}")), "{limits}");
}

/// Returns the only document of a kind and name.
fn manifest(kind: &str, name: &str) -> Value {
    let named = |it: &Value| it["kind"] == kind && it["metadata"]["name"] == name;
    let found: Vec<_> = manifests().into_iter().filter(|(_, it)| named(it)).collect();
    let [(_, manifest)] = &found[..] else { panic!("not one {kind} {name}: {found:?}") };
    manifest.clone()
}

/// Returns the prefixes of paths that a route of the edge publishes.
fn published(route: &Value) -> Vec<String> {
    let rules = route["spec"]["rules"].as_array().expect("rules");
    let matches = rules.iter().flat_map(|rule| rule["matches"].as_array().expect("paths"));
    matches.map(|of| of["path"]["value"].as_str().expect("a path").to_owned()).collect()
}

/// Parses a duration of a manifest.
fn seconds(value: &Value) -> Duration {
    config::parse_duration(value.as_str().expect("text")).expect("a duration")
}

/// Browsers reach the pages of an installation and no other path of the control API, for as long as
/// a page may take.
#[test]
fn publishes_install_pages_only() {
    let (gateway, route) = (manifest("Gateway", "slack"), manifest("HTTPRoute", "installs"));
    assert_eq!(published(&route), ["/install", "/slack/oauth"]);
    assert!(OAUTH_CALLBACK_PATH.starts_with("/slack/oauth/"));
    assert_eq!(route["spec"]["rules"][0]["backendRefs"][0]["name"], "control");
    let listeners = gateway["spec"]["listeners"].as_array().expect("listeners");
    let listener = listeners.iter().find(|it| it["name"] == "installs").expect("a listener");
    assert_eq!(route["spec"]["parentRefs"][0]["sectionName"], listener["name"]);
    assert_eq!(route["spec"]["hostnames"][0], listener["hostname"]);
    let client = manifest("ClientTrafficPolicy", "installs");
    assert_eq!(client["spec"]["targetRefs"][0]["sectionName"], listener["name"]);
    let backend = manifest("BackendTrafficPolicy", "installs");
    assert_eq!(backend["spec"]["targetRefs"][0]["name"], route["metadata"]["name"]);
    assert!(backend["spec"]["retry"].is_null(), "a code is exchanged once");
    let http = &client["spec"]["timeout"]["http"];
    for time in [&http["streamIdleTimeout"], &backend["spec"]["timeout"]["http"]["requestTimeout"]]
    {
        assert!(seconds(time) > control::FINISH_TIMEOUT, "{time}");
    }
    let policy = manifest("NetworkPolicy", "installs");
    assert_eq!(policy["spec"]["podSelector"]["matchLabels"]["app.kubernetes.io/name"], "control");
    let webhooks = manifest("NetworkPolicy", "webhooks");
    assert_eq!(policy["spec"]["ingress"], webhooks["spec"]["ingress"], "the same proxies");

    let proxy = read(&deploy_folder().join("compose/haproxy.cfg"));
    assert!(proxy.contains("acl installs path_beg /install/ /slack/oauth/\n"), "{proxy}");
    let (_, backend) = proxy.split_once("backend controls\n").expect("a backend");
    let backend = backend.split("\nbackend").next().unwrap_or_default();
    let time = backend.lines().find_map(|line| line.trim().strip_prefix("timeout server "));
    let time = config::parse_duration(time.expect("a time")).expect("a duration");
    assert!(time > control::FINISH_TIMEOUT && backend.contains("retries 0"), "{backend}");
    let services = services();
    let networks = |name: &str| services[name]["networks"].as_array().expect("networks").clone();
    assert!(networks("control").contains(&networks("proxy")[0]), "the proxy reaches it");
}

/// Webhooks pass a gateway that buffers whole requests, limits rates and times, and has the limits
/// of ingest and of compose's proxy.
#[test]
fn matches_edge_limits_to_ingest() {
    let kinds: BTreeSet<String> =
        manifests().iter().map(|(_, it)| it["kind"].as_str().unwrap_or_default().into()).collect();
    assert!(!kinds.contains("Ingress"), "{kinds:?}");
    let (gateway, route) = (manifest("Gateway", "slack"), manifest("HTTPRoute", "slack"));
    assert_eq!(route["spec"]["parentRefs"][0]["name"], gateway["metadata"]["name"]);
    let paths = published(&route);
    assert_eq!(paths, ["/api/v1/webhooks", "/slack/events"], "only the paths that Slack needs");

    let client = manifest("ClientTrafficPolicy", "slack");
    let backend = manifest("BackendTrafficPolicy", "slack");
    let target = |policy: &Value| policy["spec"]["targetRefs"][0].clone();
    assert_eq!(target(&client)["kind"], "Gateway");
    assert_eq!(target(&client)["name"], gateway["metadata"]["name"]);
    assert_eq!(target(&client)["sectionName"], route["spec"]["parentRefs"][0]["sectionName"]);
    assert_eq!(target(&backend)["kind"], "HTTPRoute");
    assert_eq!(target(&backend)["name"], route["metadata"]["name"]);

    let bytes = |size: &Value| config::parse_bytes(&format!("{}B", size.as_str()?)).ok();
    let body = bytes(&backend["spec"]["requestBuffer"]["limit"]).expect("whole requests");
    assert_eq!(body, stream::BODY_BYTES_MAX as u64);
    let buffer = bytes(&client["spec"]["connection"]["bufferLimit"]).expect("a buffer");
    assert!(buffer >= body, "a buffer of {buffer} bytes");
    let head = bytes(&client["spec"]["headers"]["maxRequestHeaderLimit"]).expect("a head's limit");
    assert_eq!(head, ingest::HEAD_BYTES_MAX as u64);
    assert_eq!(client["spec"]["timeout"]["http"]["requestReceivedTimeout"], "3s");

    let limits =
        backend["spec"]["rateLimit"]["local"]["rules"].as_array().expect("limits of rates");
    let per_second = |rule: &Value| {
        assert_eq!(rule["limit"]["unit"], "Second", "{rule}");
        rule["limit"]["requests"].as_u64().expect("a number")
    };
    assert_eq!(limits[0]["clientSelectors"][0]["sourceCIDR"]["type"], "Distinct", "of an address");
    assert!(limits[1]["clientSelectors"].is_null(), "of all addresses together");
    assert!(per_second(&limits[0]) < per_second(&limits[1]));

    let proxy = read(&deploy_folder().join("compose/haproxy.cfg"));
    for line in ["option http-buffer-request", "timeout http-request 3s"] {
        assert!(proxy.lines().any(|it| it.trim() == line), "{line}");
    }
}

/// Crates, tools, actions and base images are pinned by hash, and CI checks licenses and sources of
/// crates.
#[test]
fn pins_supply_chain() {
    let root = deploy_folder().join("..");
    let ci = read(&root.join(".ci/run"));
    let step = |text: &str| ci.lines().position(|line| line.trim() == text);
    let tools = step("bash deploy/check").expect("the tools' step");
    let deny = "target/checks/bin/cargo-deny --locked --config .cargo/deny.toml check bans licenses sources";
    assert!(
        tools < step(deny).expect("a step of cargo-deny"),
        "cargo-deny is installed before its step"
    );
    for line in ci
        .lines()
        .filter(|line| ["cargo clippy", "cargo test"].iter().any(|it| line.trim().starts_with(it)))
    {
        assert!(line.contains(" --locked"), "{line}");
    }
    let advisories = read(&root.join(".github/workflows/advisories.yml"));
    assert!(advisories.contains("--config .cargo/deny.toml check advisories"), "advisories");
    for workflow in ["advisories.yml", "ci.yml"] {
        let text = read(&root.join(".github/workflows").join(workflow));
        for action in text.lines().filter_map(|line| line.trim().strip_prefix("- uses: ")) {
            let (_, version) = action.split_once('@').expect("a version");
            let commit = version.split(' ').next().unwrap_or_default();
            let is_commit = commit.len() == 40 && commit.bytes().all(|b| b.is_ascii_hexdigit());
            assert!(is_commit, "{workflow}: {action}");
        }
    }

    let check = read(&deploy_folder().join("check"));
    let installs = check.lines().filter(|line| line.contains(" -r \"$checks/requirements.txt\""));
    let installs: Vec<&str> = installs.filter(|line| line.contains("install")).collect();
    assert!(!installs.is_empty() && installs.iter().all(|it| it.contains("--require-hashes")));
    assert!(
        check.contains("npm ci ") && !check.contains("npm install"),
        "npm installs by the lock file"
    );
    let tools = read(&deploy_folder().join("checks/requirements.txt"));
    assert!(
        tools.contains("\nastral-dev-toolchain-cargo-deny=="),
        "cargo-deny is one of the tools"
    );
    // Releases replace the whole name of an image.
    let dockerfile = read(&deploy_folder().join("Dockerfile"));
    let from: Vec<&str> =
        dockerfile.lines().filter_map(|line| line.strip_prefix("FROM ")).collect();
    assert!(from.iter().all(|it| it.starts_with("${BUILDER} ") || it.starts_with("${RUNTIME} ")));
    let release = read(&deploy_folder().join("release"));
    for argument in ["BUILDER=$builder", "RUNTIME=$runtime"] {
        assert!(release.contains(&format!("--build-arg \"{argument}\"")), "{argument}");
    }
}

/// Returns the documents under deploy/kubernetes with their file names.
fn manifests() -> Vec<(String, Value)> {
    let mut found = Vec::new();
    for folder in ["base", "overlays/dev", "overlays/prod", "overlays/shared-app"] {
        let folder = deploy_folder().join("kubernetes").join(folder);
        for entry in std::fs::read_dir(&folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            let name = path.strip_prefix(deploy_folder()).expect("below it").display().to_string();
            found
                .extend(yaml_documents(&path).into_iter().map(|document| (name.clone(), document)));
        }
    }
    assert!(found.len() > 20, "{}", found.len());
    found
}

/// Returns the settings of the generated ConfigMap, in the base and in the overlays.
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
    // A later literal replaces an earlier one.
    pairs.collect::<BTreeMap<_, _>>().into_iter().collect()
}

/// Returns the first container of every Deployment and Job with its pod, patches included.
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

/// The manifests set valid settings, and their grace periods leave time to drain.
#[test]
fn sets_valid_settings_in_kubernetes() {
    let tidegate = tidegate_settings();
    for (file, container, pod) in containers() {
        let own = container["env"].as_array().cloned().unwrap_or_default();
        let own = own.iter().map(|variable| {
            // The cluster provides pod names.
            let value = variable["value"].as_str().unwrap_or("worker-5d9c7");
            (variable["name"].as_str().expect("a name").to_owned(), value.to_owned())
        });
        let own: Vec<_> = own.collect();
        let all = own_settings(config_map().into_iter().chain(own.clone()));
        let grace = pod["terminationGracePeriodSeconds"].as_u64().map(Duration::from_secs);
        let whole = container.get("image").is_some(); // a patch has no image
        match container["name"].as_str() {
            Some("ingest") if whole => {
                let ends = ingest_stop_time(&parse_settings(&all)) + MARGIN;
                assert!(grace.expect("a grace") >= ends, "{file}: {ends:?}");
            }
            Some("worker") if whole => {
                let ends = worker_stop_time(&parse_settings(&all)) + MARGIN;
                assert!(grace.expect("a grace") >= ends, "{file}: {ends:?}");
            }
            Some("control") if whole => {
                let ends = control_stop_time(&parse_settings(&all)) + MARGIN;
                assert!(grace.expect("a grace") >= ends, "{file}: {ends:?}");
            }
            Some("ingest") => drop(arguments(&ingest::Config::command(), &own)),
            Some("worker") => drop(arguments(&worker::Config::command(), &own)),
            Some("migrate") => {
                for (name, _) in &own {
                    assert!(tidegate.contains(name), "{file}: {name} is no setting of tidegate");
                }
            }
            other => panic!("{file}: {other:?} is no program of Tidegate"),
        }
        assert!(whole || grace.is_none(), "{file} changes a grace period that is not checked here");
    }
    let patches = manifests().into_iter().filter_map(|(_, document)| document.as_array().cloned());
    let names =
        patches.flatten().filter_map(|patch| Some(patch["value"]["name"].as_str()?.to_owned()));
    let variables: Vec<_> = names.filter(|name| name.starts_with("TIDEGATE_")).collect();
    assert!(variables.len() >= 2 && variables.iter().all(|name| tidegate.contains(name)));
}

/// Liveness probes check the process only, and there are at most as many workers as partitions.
#[test]
fn bounds_probes_and_replicas() {
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
    assert_eq!(probed, 6, "each program has both");
    let scaled = manifests().into_iter().find(|(_, document)| document["kind"] == "ScaledObject");
    let (_, scaled) = scaled.expect("workers are scaled");
    assert_eq!(scaled["spec"]["maxReplicaCount"], PARTITIONS);
    assert_eq!(scaled["spec"]["scaleTargetRef"]["name"], "worker");
}

/// Each component of the collector's pipelines is defined, and traces are sent to its port.
#[test]
fn defines_collector_pipelines() {
    let collector = yaml_documents(&deploy_folder().join("observability/collector.yaml")).remove(0);
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
    let sent_to = config_map().into_iter().find(|(name, _)| name == "OTEL_EXPORTER_OTLP_ENDPOINT");
    let port = port.and_then(|address| address.rsplit(':').next()).expect("a port");
    assert!(sent_to.expect("traces are sent").1.ends_with(port));
}

/// Returns the metric names of a PromQL expression: the words outside strings, matchers, ranges,
/// labels and functions.
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

/// Collects the texts under a key at any depth.
fn texts_of_key<'v>(value: &'v Value, key: &str, found: &mut Vec<&'v str>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                if name == key {
                    found.extend(value.as_str());
                }
                texts_of_key(value, key, found);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| texts_of_key(item, key, found)),
        _ => {}
    }
}

fn alerts() -> Value {
    yaml_documents(&deploy_folder().join("observability/alerts.yaml")).remove(0)
}

/// Returns the names of a page's metrics in Prometheus.
fn exported_names(page: &str) -> BTreeSet<String> {
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

/// Metrics of other exporters: NATS, kube-state-metrics, cert-manager.
const FOREIGN: [&str; 3] = ["jetstream_", "kube_", "certmanager_"];

/// Metrics of the dashboard, the alerts and the autoscaler are exported by running processes.
#[tokio::test]
async fn exports_every_used_metric() {
    let dashboard: Value =
        serde_json::from_str(&read(&deploy_folder().join("observability/dashboard.json")))
            .expect("the dashboard is JSON");
    let (alerts, mut expressions, mut recorded) = (alerts(), Vec::new(), Vec::new());
    texts_of_key(&dashboard, "expr", &mut expressions);
    let panels = expressions.len();
    texts_of_key(&alerts, "expr", &mut expressions);
    texts_of_key(&alerts, "record", &mut recorded);
    let scaled = manifests().into_iter().find(|(_, document)| document["kind"] == "ScaledObject");
    let scaled = scaled.expect("workers are scaled").1;
    texts_of_key(&scaled, "query", &mut expressions);
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

    // A metric with labels is exported after its first use.
    let mut env = TestEnv::start(PAIR).await.expect("a test environment");
    env.start_control().await.expect("a control API");
    reqwest::get(env.controls[0].path("/v1/usage")).await.expect("an answer");
    let app = env.connect_as(|new| new.agent = Some(agent_id())).await.expect("a connection");
    let webhook = Webhook::message(&env.slack, &app, "C1", "U1", "hello");
    env.send(&app, &webhook).await.expect("an answer");
    let ingests = env.ingests.iter().map(|ingest| ingest.admin("/metrics"));
    let pages: Vec<_> =
        ingests.chain(env.workers.iter().map(|worker| worker.admin("/metrics"))).collect();
    let pages: Vec<_> = pages.into_iter().chain([env.controls[0].admin("/metrics")]).collect();
    let all_exported = try_eventually("every metric is exported", TIMEOUT, async || {
        for page in &pages {
            let exported = exported_names(&reqwest::get(page).await.ok()?.text().await.ok()?);
            missing.borrow_mut().retain(|name| !exported.contains(name));
        }
        missing.borrow().is_empty().then_some(())
    });
    assert!(all_exported.await.is_ok(), "not exported: {missing:?}");
    assert_eq!(dashboard["uid"], "tidegate", "the id of the dashboard, which links contain");
}
