//! History of the benchmark: every run records its measurements, machine and targets. Speed is not
//! tested.

use serde_json::Value;
use std::path::Path;

/// Each run of the history has its machine and versions, and its targets are marked as met or
/// missed correctly.
#[test]
fn describes_every_recorded_run() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("bench/history.jsonl");
    let history = std::fs::read_to_string(&path).expect("a history");
    assert!(history.lines().count() > 0, "the history is empty");
    for line in history.lines() {
        let run: Value = serde_json::from_str(line).expect("a run is a line of JSON");
        for field in ["cpu", "kernel", "nats_server", "postgres", "rustc", "commit"] {
            let text = run["context"]["machine"][field].as_str().unwrap_or_default();
            assert!(!text.is_empty(), "{field} is missing in {line}");
        }
        let others = run["context"]["others"].as_f64().expect("what others used");
        assert!((0.0..=1.0).contains(&others), "{others}");
        for target in run["targets"].as_array().expect("targets") {
            let (value, met) = (target["value"].as_f64(), target["met"].as_bool());
            let value = value.expect("a target has a value");
            let bound = &target["bound"];
            let holds = match (bound["at_least"].as_f64(), bound["at_most"].as_f64()) {
                (Some(least), None) => value >= least,
                (None, Some(most)) => value <= most,
                _ => panic!("a target asks for one thing: {bound}"),
            };
            assert_eq!(met, Some(holds), "{target}");
        }
    }
}
