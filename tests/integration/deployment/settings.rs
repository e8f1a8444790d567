//! Settings: an invalid one ends a process at its start with one sentence that names it.

use std::process::Command;
use tests::binaries::Binaries;

fn run(program: &str, args: &[&str], settings: &[(&str, &str)]) -> (Option<i32>, String) {
    let binaries = Binaries::get().expect("binaries");
    let program = match program {
        "ingest" => &binaries.ingest,
        "worker" => &binaries.worker,
        "control" => &binaries.control,
        _ => &binaries.tidegate,
    };
    let ran = Command::new(program)
        .args(args)
        .env_clear()
        .envs(settings.iter().copied())
        .output()
        .expect("it runs");
    (ran.status.code(), String::from_utf8(ran.stderr).expect("text"))
}

const ID: &str = "00ff00ff00ff00ff00ff00ff00ff00ff";
const RING: &str = "k1:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
const NATS: (&str, &str) = ("TIDEGATE_NATS_URL", "nats://127.0.0.1:1");
const POSTGRES: (&str, &str) = ("TIDEGATE_POSTGRES_URL", "postgres://127.0.0.1:1/none");
const SIGNING: (&str, &str) = ("TIDEGATE_SIGNING_SECRET_KEYRING", RING);
const TOKENS: (&str, &str) = ("TIDEGATE_TOKEN_KEYRING", RING);

/// A missing or malformed setting ends the process with exit code 64 and one sentence that names
/// it.
#[test]
fn rejects_invalid_settings() {
    let bad_ring = ("TIDEGATE_SIGNING_SECRET_KEYRING", "k1:c2VjcmV0");
    let no_file = ("TIDEGATE_TOKEN_KEYRING", "file:/nonexistent/ring");
    let no_url = ("TIDEGATE_POSTGRES_URL", "file:/nonexistent/url");
    type Case<'a> = (&'a str, &'a [&'a str], &'a [(&'a str, &'a str)], &'a str);
    let cases: [Case<'_>; 31] = [
        ("ingest", &[], &[SIGNING], "TIDEGATE_NATS_URL is not set: "),
        ("ingest", &[], &[NATS], "TIDEGATE_SIGNING_SECRET_KEYRING is not set: "),
        ("ingest", &[], &[NATS, bad_ring], "TIDEGATE_SIGNING_SECRET_KEYRING is malformed"),
        (
            "ingest",
            &[],
            &[NATS, SIGNING, ("TIDEGATE_HTTP_LISTEN", "here")],
            "TIDEGATE_HTTP_LISTEN is malformed",
        ),
        (
            "ingest",
            &[],
            &[NATS, SIGNING, ("TIDEGATE_HTTP_MAX_UNVERIFIED_BYTES", "64")],
            "TIDEGATE_HTTP_MAX_UNVERIFIED_BYTES is malformed (expected a number with its unit",
        ),
        (
            "ingest",
            &[],
            &[NATS, SIGNING, ("TIDEGATE_HTTP_MAX_IN_FLIGHT_BYTES", "512KiB")],
            "TIDEGATE_HTTP_MAX_IN_FLIGHT_BYTES is malformed (expected at least 1MiB",
        ),
        (
            "ingest",
            &[],
            &[NATS, SIGNING, ("TIDEGATE_QUOTA_WEBHOOKS_PER_SECOND", "0")],
            "TIDEGATE_QUOTA_WEBHOOKS_PER_SECOND is malformed (expected more than zero)",
        ),
        (
            "ingest",
            &[],
            &[NATS, SIGNING, ("TIDEGATE_QUOTA_MAX_BYTE_BURST", "16")],
            "TIDEGATE_QUOTA_MAX_BYTE_BURST is malformed",
        ),
        (
            "worker",
            &[],
            &[NATS, SIGNING, TOKENS, POSTGRES, ("TIDEGATE_STREAM_MAX_BYTES_PER_CONNECTION", "1GB")],
            "TIDEGATE_STREAM_MAX_BYTES_PER_CONNECTION is malformed",
        ),
        (
            "worker",
            &[],
            &[NATS, SIGNING, TOKENS, POSTGRES, ("TIDEGATE_WORKER_ID", "a.b")],
            "TIDEGATE_WORKER_ID is malformed",
        ),
        (
            "ingest",
            &[],
            &[NATS, SIGNING, ("TIDEGATE_LOG_FILTER", "[[")],
            "TIDEGATE_LOG_FILTER is malformed",
        ),
        (
            "ingest",
            &[],
            &[NATS, SIGNING, ("TIDEGATE_LOG_FORMAT", "xml")],
            "TIDEGATE_LOG_FORMAT is malformed (expected text or json)",
        ),
        (
            "ingest",
            &[],
            &[NATS, SIGNING, ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4318")],
            "OTEL_EXPORTER_OTLP_ENDPOINT is malformed",
        ),
        (
            "worker",
            &[],
            &[NATS, SIGNING, TOKENS, POSTGRES, ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "here")],
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT is malformed",
        ),
        (
            "worker",
            &[],
            &[NATS, SIGNING, TOKENS, POSTGRES, ("TIDEGATE_AGENT_ALLOWED_NETWORKS", "here")],
            "TIDEGATE_AGENT_ALLOWED_NETWORKS is malformed",
        ),
        ("worker", &[], &[NATS, SIGNING, TOKENS], "TIDEGATE_POSTGRES_URL is not set: "),
        ("worker", &[], &[NATS, SIGNING, no_file, POSTGRES], "TIDEGATE_TOKEN_KEYRING is malformed"),
        (
            "worker",
            &[],
            &[NATS, SIGNING, TOKENS, POSTGRES, ("TIDEGATE_LEASE_TTL", "3")],
            "TIDEGATE_LEASE_TTL is malformed",
        ),
        (
            "worker",
            &[],
            &[NATS, SIGNING, TOKENS, POSTGRES, ("TIDEGATE_LEASE_TTL", "1ms")],
            "TIDEGATE_LEASE_TTL is too short",
        ),
        (
            "worker",
            &[],
            &[
                NATS,
                SIGNING,
                TOKENS,
                POSTGRES,
                ("TIDEGATE_SLACK_API_URL", "http://example.com/api/"),
            ],
            "TIDEGATE_SLACK_API_URL is unsafe: use https",
        ),
        ("worker", &[], &[NATS, SIGNING, TOKENS, no_url], "TIDEGATE_POSTGRES_URL is malformed"),
        (
            "worker",
            &[],
            &[NATS, SIGNING, TOKENS, POSTGRES, ("TIDEGATE_AUDIT_LOG_RETENTION_PERIOD", "29d")],
            "TIDEGATE_AUDIT_LOG_RETENTION_PERIOD is too short: use 30d or more",
        ),
        ("control", &[], &[NATS, TOKENS], "TIDEGATE_POSTGRES_URL is not set: "),
        ("control", &[], &[NATS, POSTGRES], "TIDEGATE_TOKEN_KEYRING is not set: "),
        (
            "control",
            &[],
            &[NATS, TOKENS, POSTGRES, ("TIDEGATE_API_KEY_MAX_RATE", "0")],
            "TIDEGATE_API_KEY_MAX_RATE is malformed",
        ),
        (
            "tidegate",
            &["keys", "status"],
            &[POSTGRES, SIGNING],
            "TIDEGATE_TOKEN_KEYRING is not set",
        ),
        (
            "tidegate",
            &["connections", "rotate-signing-secret", ID, "--secret", "env:RING"],
            &[NATS, TOKENS, POSTGRES, ("RING", RING)],
            "TIDEGATE_SIGNING_SECRET_KEYRING is not set",
        ),
        (
            "tidegate",
            &["dead-letters", "show", "1"],
            &[POSTGRES, SIGNING],
            "TIDEGATE_TOKEN_KEYRING is not set",
        ),
        ("tidegate", &["keygen", "--out", "/nonexistent", "--key-id", "a-b"], &[], "--key-id is"),
        ("tidegate", &["migrate"], &[NATS], "TIDEGATE_POSTGRES_URL is not set: "),
        ("tidegate", &["migrate", "schema"], &[NATS], "TIDEGATE_POSTGRES_URL is not set: "),
        ("tidegate", &["migrate", "stream"], &[POSTGRES], "TIDEGATE_NATS_URL is not set: "),
    ];
    for (program, args, settings, expected) in cases {
        let (code, stderr) = run(program, args, settings);
        assert!(stderr.starts_with(expected), "{program} {settings:?}: {stderr}");
        assert_eq!((stderr.lines().count(), code), (1, Some(64)), "{program}: {code:?} {stderr}");
        assert!(!stderr.contains("c2VjcmV0"), "it prints a secret: {stderr}");
    }
}

/// A secret as an argument is rejected and not printed: other users of a machine can read
/// arguments.
#[test]
fn rejects_secrets_as_arguments() {
    let rotate = ["connections", "rotate-signing-secret", ID, "--secret", "c2VjcmV0"];
    let enable = ["connections", "enable-token-rotation", ID, "--client-id", "1.2"];
    let client = ["--client-secret", "c2VjcmV0", "--refresh-token", "env:RING"];
    let refresh = ["--client-secret", "env:RING", "--refresh-token", "c2VjcmV0"];
    for (args, flag) in [
        (rotate.to_vec(), "--secret"),
        ([&enable[..], &client].concat(), "--client-secret"),
        ([&enable[..], &refresh].concat(), "--refresh-token"),
    ] {
        let settings = [NATS, SIGNING, TOKENS, POSTGRES, ("RING", RING)];
        let (code, stderr) = run("tidegate", &args, &settings);
        let expected = format!("{flag} is malformed (expected file:<path>, env:<name>, or - for ");
        assert!(stderr.starts_with(&expected) && !stderr.contains("c2VjcmV0"), "{stderr}");
        assert_eq!((stderr.lines().count(), code), (1, Some(64)), "{stderr}");
    }
    let ring = ["keys", "status", "--token-keyring", RING];
    let (code, stderr) = run("tidegate", &ring, &[SIGNING, POSTGRES]);
    assert!(
        code == Some(64) && stderr.starts_with("TIDEGATE_TOKEN_KEYRING is an argument"),
        "{stderr}"
    );
}

/// `--help` of ingest and worker shows settings of the program, of logs and of traces.
#[test]
fn shows_settings_in_help() {
    for (program, setting) in [("ingest", "TIDEGATE_HTTP_LISTEN"), ("worker", "TIDEGATE_LEASE_TTL")]
    {
        let binaries = Binaries::get().expect("binaries");
        let program = if program == "ingest" { &binaries.ingest } else { &binaries.worker };
        let ran = Command::new(program).arg("--help").output().expect("it runs");
        let help = String::from_utf8(ran.stdout).expect("text");
        for setting in [setting, "TIDEGATE_LOG_FORMAT", "OTEL_EXPORTER_OTLP_ENDPOINT"] {
            assert!(ran.status.success() && help.contains(setting), "{setting} is missing: {help}");
        }
    }
}

/// `keygen` writes valid keys for every user, overwrites none, and separates them by role.
#[test]
fn generates_keys_once() {
    let run_dir = tests::run_dir::RunDir::new("keygen").expect("a folder");
    let keys = run_dir.path().join("keys");
    let keygen = |more: &[&str]| {
        let out = keys.to_str().expect("text");
        run("tidegate", &[&["keygen", "--out", out], more].concat(), &[])
    };
    assert_eq!(keygen(&[]), (Some(0), String::new()));
    let read = |name: &str| std::fs::read_to_string(keys.join(name)).expect("a file");
    let (signing, token) = (read("signing.keys"), read("token.keys"));
    assert!(signing.parse::<shared::secrets::KeyRing>().is_ok() && signing != token);
    let public = read("nats-users.env");
    for user in ["ingest", "worker", "operator", "control"] {
        assert!(read(&format!("nats-{user}.seed")).starts_with("SU"));
        assert!(public.contains(&format!("TIDEGATE_{}_NKEY=U", user.to_uppercase())), "{public}");
    }
    let (code, stderr) = keygen(&[]);
    assert!(code == Some(1) && stderr.contains("signing.keys exists, "), "{stderr}");
    assert_eq!(keygen(&["--if-missing"]), (Some(0), String::new()));
    let (code, stderr) = keygen(&["--key-id", "a-b"]); // no process would accept such a keyring
    assert!(code == Some(64) && stderr.contains("letters and digits"), "{stderr}");
    assert_eq!(read("signing.keys"), signing);
    let split = run_dir.path().join("split");
    let out = split.to_str().expect("text");
    assert_eq!(run("tidegate", &["keygen", "--by-role", "--out", out], &[]).0, Some(0));
    let files = |role: &str| {
        let entries = std::fs::read_dir(split.join(role)).expect("a folder");
        let mut names: Vec<_> = entries.map(|e| e.expect("an entry").file_name()).collect();
        names.sort();
        names
    };
    assert_eq!(files("ingest"), ["nats-ingest.seed", "signing.keys"]);
    assert_eq!(files("worker"), ["nats-worker.seed", "signing.keys", "token.keys"]);
    assert_eq!(files("control"), ["nats-control.seed", "signing.keys", "token.keys"]);
    assert_eq!(files("nats"), ["nats-users.env"]);
}
