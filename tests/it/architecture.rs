//! Who must not know whom.

use std::{collections::BTreeSet, path::Path, process::Command};

pub fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

#[test]
fn ingest_can_not_reach_postgres() {
    let ran = Command::new(env!("CARGO"))
        .args([
            "tree",
            "--package",
            "ingest",
            "--edges",
            "normal,build",
            "--prefix",
            "none",
            "--locked",
        ])
        .current_dir(root())
        .output()
        .expect("cargo tree runs");
    let tree = String::from_utf8(ran.stdout).expect("text");
    assert!(
        ran.status.success() && tree.contains("async-nats"),
        "{}",
        String::from_utf8_lossy(&ran.stderr)
    );
    assert!(!tree.contains("sqlx"), "{tree}");
}

#[test]
fn the_root_holds_what_it_should_and_nothing_else() {
    let ran = Command::new("git")
        .args(["ls-tree", "--name-only", "HEAD"])
        .current_dir(root())
        .output()
        .expect("git runs");
    let names = String::from_utf8(ran.stdout).expect("text");
    let visible: BTreeSet<&str> = names.lines().filter(|name| !name.starts_with('.')).collect();
    let expected = [
        "Cargo.lock",
        "Cargo.toml",
        "LICENSE",
        "README.md",
        "deploy",
        "ingest",
        "shared",
        "tests",
        "worker",
    ];
    assert_eq!(visible, BTreeSet::from(expected));
}

/// Reads every `use` and path of a file.
fn names(file: &Path, word: &str) -> bool {
    let text = std::fs::read_to_string(file).expect("a source file");
    text.lines().filter(|line| !line.trim_start().starts_with("//")).any(|line| line.contains(word))
}

/// Returns the Rust files of a folder.
pub fn sources(dir: &Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found
}

#[test]
fn verify_and_the_handlers_name_neither_nats_nor_sql() {
    let mut files = sources(&root().join("worker/src/routing"));
    files.push(root().join("ingest/src/webhook/signature.rs"));
    files.push(root().join("ingest/src/webhook/classify.rs"));
    files.push(root().join("ingest/src/directory/signing_key.rs"));
    assert!(files.len() > 5);
    for file in files {
        for word in ["async_nats", "sqlx", "jetstream"] {
            assert!(!names(&file, word), "{} names {word}", file.display());
        }
    }
}

#[test]
fn only_the_store_speaks_sql() {
    for dir in ["shared/src", "ingest/src", "worker/src", "deploy/cli/src"] {
        for file in sources(&root().join(dir)) {
            let in_store = file.components().any(|part| part.as_os_str() == "store");
            assert!(in_store || !names(&file, "sqlx"), "{} names sqlx", file.display());
        }
    }
}
