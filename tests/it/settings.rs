//! A wrong setting ends a process at its start, with one sentence that names it.

use std::process::Command;
use tests::binaries::Binaries;

fn run(program: &str, args: &[&str], settings: &[(&str, &str)]) -> (Option<i32>, String) {
    let binaries = Binaries::get().expect("binaries");
    let program = match program {
        "ingest" => &binaries.ingest,
        "worker" => &binaries.worker,
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

const RING: &str = "k1:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
const NATS: (&str, &str) = ("TIDEGATE_NATS_URL", "nats://127.0.0.1:1");
const POSTGRES: (&str, &str) = ("TIDEGATE_POSTGRES_URL", "postgres://127.0.0.1:1/none");
const SIGNING: (&str, &str) = ("TIDEGATE_SIGNING_KEYS", RING);
const TOKENS: (&str, &str) = ("TIDEGATE_TOKEN_KEYS", RING);

#[test]
fn an_unset_or_malformed_setting_ends_the_process_with_one_sentence_that_names_it() {
    let bad_ring = ("TIDEGATE_SIGNING_KEYS", "k1:c2VjcmV0");
    let no_file = ("TIDEGATE_TOKEN_KEYS", "file:/nonexistent/ring");
    type Case<'a> = (&'a str, &'a [&'a str], &'a [(&'a str, &'a str)], &'a str);
    let cases: [Case<'_>; 11] = [
        ("ingest", &[], &[SIGNING], "TIDEGATE_NATS_URL is not set: "),
        ("ingest", &[], &[NATS], "TIDEGATE_SIGNING_KEYS is not set: "),
        ("ingest", &[], &[NATS, bad_ring], "TIDEGATE_SIGNING_KEYS is malformed"),
        (
            "ingest",
            &[],
            &[NATS, SIGNING, ("TIDEGATE_LISTEN", "here")],
            "TIDEGATE_LISTEN is malformed",
        ),
        (
            "worker",
            &[],
            &[NATS, SIGNING, TOKENS, POSTGRES, ("TIDEGATE_WORKER_ID", "a.b")],
            "TIDEGATE_WORKER_ID is malformed",
        ),
        ("ingest", &[], &[NATS, SIGNING, ("TIDEGATE_LOG", "[[")], "TIDEGATE_LOG is malformed"),
        ("worker", &[], &[NATS, SIGNING, TOKENS], "TIDEGATE_POSTGRES_URL is not set: "),
        ("worker", &[], &[NATS, SIGNING, no_file, POSTGRES], "TIDEGATE_TOKEN_KEYS is malformed"),
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
        ("tidegate", &["migrate"], &[NATS, SIGNING, TOKENS], "TIDEGATE_POSTGRES_URL is not set: "),
    ];
    for (program, args, settings, says) in cases {
        let (code, stderr) = run(program, args, settings);
        assert!(stderr.starts_with(says), "{program} {settings:?}: {stderr}");
        assert_eq!((stderr.lines().count(), code), (1, Some(64)), "{program}: {code:?} {stderr}");
        assert!(!stderr.contains("c2VjcmV0"), "it prints a secret: {stderr}");
    }
}

#[test]
fn every_setting_is_in_the_help() {
    for (program, setting) in [("ingest", "TIDEGATE_LISTEN"), ("worker", "TIDEGATE_LEASE_TTL")] {
        let binaries = Binaries::get().expect("binaries");
        let program = if program == "ingest" { &binaries.ingest } else { &binaries.worker };
        let ran = Command::new(program).arg("--help").output().expect("it runs");
        assert!(ran.status.success() && String::from_utf8_lossy(&ran.stdout).contains(setting));
    }
}
