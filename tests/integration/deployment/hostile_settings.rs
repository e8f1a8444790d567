//! Settings with hostile values: a process rejects them with a sentence, or works.

use clap::CommandFactory;
use std::{
    path::Path,
    process::{Command, Stdio},
    sync::Mutex,
    thread,
    time::{Duration, Instant},
};
use tests::binaries::Binaries;

const RING: &str = "k1:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
/// Settings with which each process starts. Its servers refuse connections.
const BASE: [(&str, &str); 7] = [
    ("TIDEGATE_NATS_URL", "nats://127.0.0.1:1"),
    ("TIDEGATE_POSTGRES_URL", "postgres://127.0.0.1:1/none"),
    ("TIDEGATE_SIGNING_SECRET_KEYRING", RING),
    ("TIDEGATE_TOKEN_KEYRING", RING),
    ("TIDEGATE_HTTP_LISTEN", "127.0.0.1:0"),
    ("TIDEGATE_ADMIN_LISTEN", "127.0.0.1:0"),
    ("TIDEGATE_DRAIN_PERIOD", "0s"),
];
/// Values that are empty, zero, negative, huge, or of another kind.
const VALUES: [&str; 14] = [
    "",
    "0",
    "-1",
    "1",
    "4294967296",
    "18446744073709551615",
    "0s",
    "36500d",
    "9999999999y",
    "0B",
    "17179869183GiB",
    "file:/nonexistent",
    "nats://",
    "postgres://",
];
/// Time after which a process has used a value that it accepts.
const RUN_TIME: Duration = Duration::from_millis(600);
/// Processes at the same time.
const CONCURRENT: usize = 24;

/// Runs a process with one setting. Returns its output if it panicked or aborted.
fn panics(program: &Path, setting: &str, value: &str) -> Option<String> {
    let mut command = Command::new(program);
    command.env_clear().envs(BASE).env(setting, value);
    let mut child =
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
    let ends = Instant::now() + RUN_TIME;
    while Instant::now() < ends && child.try_wait().expect("a status").is_none() {
        thread::sleep(Duration::from_millis(20));
    }
    let _ = child.kill(); // it may have ended
    let ran = child.wait_with_output().expect("output");
    let output = [ran.stdout, ran.stderr].concat();
    let text = String::from_utf8_lossy(&output).into_owned();
    let aborted = text.contains("panicked") || text.contains("capacity overflow");
    (aborted || text.contains("memory allocation")).then_some(text)
}

/// No process panics, aborts or runs out of memory with any of the values in any of its settings.
#[test]
fn survives_any_value() {
    let binaries = Binaries::get().expect("binaries");
    let programs = [
        (&binaries.ingest, ingest::Config::command()),
        (&binaries.worker, worker::Config::command()),
        (&binaries.control, control::Config::command()),
    ];
    let mut cases = Vec::new();
    for (program, command) in &programs {
        let settings = command.get_arguments().filter_map(|argument| argument.get_env());
        for setting in settings {
            let setting = setting.to_string_lossy().into_owned();
            cases.extend(VALUES.map(|value| (*program, setting.clone(), value)));
        }
    }
    assert!(cases.len() > 500, "{}", cases.len());
    let (cases, found) = (Mutex::new(cases), Mutex::new(Vec::new()));
    thread::scope(|scope| {
        for _ in 0..CONCURRENT {
            scope.spawn(|| {
                loop {
                    let next = cases.lock().expect("no panic").pop();
                    let Some((program, setting, value)) = next else { break };
                    if let Some(text) = panics(program, &setting, value) {
                        let case = format!("{}: {setting}={value}: {text}", program.display());
                        found.lock().expect("no panic").push(case);
                    }
                }
            });
        }
    });
    let found = found.into_inner().expect("no panic");
    assert!(found.is_empty(), "{}", found.join("\n"));
}
