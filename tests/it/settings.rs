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
const SIGNING: (&str, &str) = ("TIDEGATE_SIGNING_SECRET_KEYRING", RING);
const TOKENS: (&str, &str) = ("TIDEGATE_TOKEN_KEYS", RING);

#[test]
fn an_unset_or_malformed_setting_ends_the_process_with_one_sentence_that_names_it() {
    let bad_ring = ("TIDEGATE_SIGNING_SECRET_KEYRING", "k1:c2VjcmV0");
    let no_file = ("TIDEGATE_TOKEN_KEYS", "file:/nonexistent/ring");
    let no_url = ("TIDEGATE_POSTGRES_URL", "file:/nonexistent/url");
    type Case<'a> = (&'a str, &'a [&'a str], &'a [(&'a str, &'a str)], &'a str);
    let cases: [Case<'_>; 15] = [
        ("ingest", &[], &[SIGNING], "TIDEGATE_NATS_URL is not set: "),
        ("ingest", &[], &[NATS], "TIDEGATE_SIGNING_SECRET_KEYRING is not set: "),
        ("ingest", &[], &[NATS, bad_ring], "TIDEGATE_SIGNING_SECRET_KEYRING is malformed"),
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
        (
            "worker",
            &[],
            &[NATS, SIGNING, TOKENS, POSTGRES, ("TIDEGATE_AGENT_NETWORKS", "here")],
            "TIDEGATE_AGENT_NETWORKS is malformed",
        ),
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
        ("worker", &[], &[NATS, SIGNING, TOKENS, no_url], "TIDEGATE_POSTGRES_URL is malformed"),
        ("tidegate", &["migrate"], &[NATS], "TIDEGATE_POSTGRES_URL is not set: "),
        ("tidegate", &["migrate", "schema"], &[NATS], "TIDEGATE_POSTGRES_URL is not set: "),
        ("tidegate", &["migrate", "stream"], &[POSTGRES], "TIDEGATE_NATS_URL is not set: "),
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

#[test]
fn the_keys_of_a_new_installation_are_made_once_and_never_overwritten() {
    let run_dir = tests::guard::RunDir::new("keygen").expect("a folder");
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
    for user in ["ingest", "worker", "operator"] {
        assert!(read(&format!("nats-{user}.seed")).starts_with("SU"));
        assert!(public.contains(&format!("TIDEGATE_{}_NKEY=U", user.to_uppercase())), "{public}");
    }
    let (code, said) = keygen(&[]);
    assert!(code == Some(1) && said.contains("signing.keys exists already"), "{said}");
    assert_eq!(keygen(&["--if-missing"]), (Some(0), String::new()));
    assert_eq!(read("signing.keys"), signing);
}
