//! What is under deploy/ agrees with the programs: every setting there is one of theirs and is taken, the graces fit the drains.
//! That each file is valid by itself is looked at by deploy/check.

use serde_json::Value;
use shared::{config, stream};
use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};
use tests::binaries::Binaries;

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
    let all = help(&["migrate"]) + &help(&["connections", "stop"]);
    let named = all.split("[env: ").skip(1);
    named.filter_map(|rest| rest.split(['=', ']']).next()).map(str::to_owned).collect()
}

/// How long a process may take to end after SIGTERM, by its settings.
fn ingest_ends_within(settings: &ingest::config::Config) -> Duration {
    settings.drain_delay + ingest::serve::FINISH_DEADLINE
}

fn worker_ends_within(settings: &worker::config::Config) -> Duration {
    settings.grace + worker::config::BEYOND_GRACE
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
