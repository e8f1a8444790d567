//! Imports between the modules of each crate: only downwards, so that there are no cycles.

use super::architecture::{root, sources};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

/// Top-level modules of a crate with those that they may import, which are above them in the list.
/// `lib` and `main` may import all modules.
type Order = &'static [(&'static str, &'static [&'static str])];

const SHARED: Order = &[
    ("domain", &[]),
    ("secrets", &[]),
    ("signature", &["secrets"]),
    ("slack", &["domain"]),
    ("stream", &["domain"]),
    ("runtime", &["domain", "secrets"]),
    ("directory", &["domain", "secrets", "stream"]),
    ("store", &["domain", "secrets", "slack", "stream", "runtime", "directory"]),
    ("operations", &["domain", "secrets", "stream", "directory", "store"]),
];
const INGEST: Order = &[
    ("app_health", &[]),
    ("directory", &[]),
    ("metrics", &[]),
    ("webhook", &["app_health", "directory", "metrics"]),
    ("http", &["directory", "metrics", "webhook"]),
    ("config", &["http", "webhook"]),
];
/// `intake`, `dispatch` and `outbox` meet in tables, and `routing` imports nothing.
const WORKER: Order = &[
    ("answer_generator", &[]),
    ("batcher", &[]),
    ("claim_pacer", &[]),
    ("config", &[]),
    ("metrics", &[]),
    ("probe", &[]),
    ("usage", &[]),
    ("worker_lease", &[]),
    ("connection_cache", &[]),
    ("agent_client", &["answer_generator"]),
    ("slack", &["answer_generator"]),
    ("routing", &["answer_generator"]),
    (
        "context",
        &["agent_client", "connection_cache", "metrics", "probe", "slack", "usage", "worker_lease"],
    ),
    ("decider", &["probe", "routing"]),
    ("intake", &["context", "decider", "metrics", "routing"]),
    (
        "dispatch",
        &[
            "agent_client",
            "answer_generator",
            "batcher",
            "claim_pacer",
            "context",
            "metrics",
            "probe",
            "routing",
            "slack",
        ],
    ),
    ("outbox", &["batcher", "claim_pacer", "context", "probe", "slack"]),
    ("maintenance", &["metrics", "context", "decider", "routing", "slack"]),
    ("readiness", &["context", "intake"]),
    (
        "app",
        &[
            "agent_client",
            "batcher",
            "config",
            "connection_cache",
            "context",
            "decider",
            "dispatch",
            "intake",
            "maintenance",
            "metrics",
            "outbox",
            "probe",
            "readiness",
            "routing",
            "slack",
            "usage",
        ],
    ),
];
const CLI: Order = &[
    ("app_manifest", &[]),
    ("dev_settings", &[]),
    ("output", &[]),
    ("settings", &[]),
    ("slack_api", &[]),
    ("stream_reader", &[]),
    (
        "commands",
        &["app_manifest", "dev_settings", "output", "settings", "slack_api", "stream_reader"],
    ),
];

const DEV: Order = &[
    ("eventually", &[]),
    ("port", &[]),
    ("run_dir", &[]),
    ("process", &["eventually", "run_dir"]),
    ("programs", &[]),
    ("python_wheel", &["process", "programs", "run_dir"]),
    ("finder", &["programs", "python_wheel", "run_dir"]),
    ("nats", &["eventually", "port", "process", "run_dir"]),
    ("postgres", &["eventually", "port", "process", "run_dir"]),
];

/// The console shares the API's pages of lists and its errors.
const CONTROL: Order = &[
    ("config", &[]),
    ("cookies", &[]),
    ("metrics", &[]),
    ("server", &[]),
    ("api", &["metrics"]),
    ("console", &["api", "cookies", "metrics"]),
    ("install", &["cookies", "metrics"]),
    ("app", &["api", "config", "console", "install", "metrics", "server"]),
];

/// Returns the first segments of the paths that begin with `crate::`, in code.
fn imported(text: &str) -> BTreeSet<String> {
    let lines = text.lines().filter(|line| !line.trim_start().starts_with("//"));
    let code = lines.collect::<Vec<_>>().join("\n");
    let mut words = BTreeSet::new();
    for (at, _) in code.match_indices("crate::") {
        let path = &code[at + "crate::".len()..];
        let (mut depth, mut word, mut has_first) = (0, String::new(), false);
        for c in path.chars() {
            if c.is_alphanumeric() || c == '_' {
                word.push(c);
                continue;
            }
            let first = std::mem::take(&mut word);
            if !has_first && !first.is_empty() {
                words.insert(first);
                has_first = true;
            }
            match c {
                '{' => depth += 1,
                '}' => depth -= 1,
                ',' if depth == 1 => has_first = false, // the next item of the outer braces
                _ => {}
            }
            if depth == 0 {
                break;
            }
        }
    }
    words
}

/// Returns the top-level module of a source.
fn top(dir: &Path, file: &Path) -> String {
    let inner = file.strip_prefix(dir).expect("below the crate");
    let first = inner.iter().next().expect("a name").to_string_lossy();
    first.trim_end_matches(".rs").to_owned()
}

/// The first modules of all `crate::` paths are found, except in comments.
#[test]
fn finds_imported_modules() {
    let text = "use crate::{a::{b, c}, d, e::f};\nlet x = crate::g::h();\n// crate::comment\n";
    assert_eq!(imported(text), ["a", "d", "e", "g"].map(str::to_owned).into());
}

/// The modules of each crate import only those that the lists allow.
#[test]
fn allows_downward_imports_only() {
    let crates = [
        ("shared", SHARED),
        ("ingest", INGEST),
        ("worker", WORKER),
        ("deploy/cli", CLI),
        ("deploy/control", CONTROL),
        ("deploy/dev", DEV),
    ];
    let mut wrong = Vec::new();
    for (name, order) in crates {
        let dir = root().join(name).join("src");
        let above: BTreeMap<&str, usize> =
            order.iter().enumerate().map(|(n, (module, _))| (*module, n)).collect();
        for (module, allowed) in order {
            for import in *allowed {
                assert!(above[import] < above[module], "{name}: {module} > {import} is upwards");
            }
        }
        let mut found = BTreeSet::new();
        for file in sources(&dir) {
            let module = top(&dir, &file);
            if module == "lib" || module == "main" {
                continue;
            }
            found.insert(module.clone());
            let allowed = order.iter().find(|(of, _)| *of == module).map(|(_, allowed)| *allowed);
            let Some(allowed) = allowed else {
                wrong.push(format!("{name}: {module} is in no list"));
                continue;
            };
            let text = std::fs::read_to_string(&file).expect("a source");
            for import in imported(&text) {
                let is_module = above.contains_key(import.as_str());
                if is_module && import != module && !allowed.contains(&import.as_str()) {
                    wrong.push(format!("{name}: {} imports {import}", file.display()));
                }
            }
        }
        let listed: BTreeSet<String> = order.iter().map(|(of, _)| (*of).to_owned()).collect();
        assert_eq!(found, listed, "{name}");
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
