//! Documents: the data map of SECURITY.md agrees with the schema, the encrypted columns and the
//! streams; links lead to headings; the README is short.

use crate::meta::architecture::{root, sources};
use shared::{
    store::SEALED_COLUMNS,
    stream::{DIRECTORY_BUCKET, INGESTS_BUCKET, STREAM},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    os::unix::fs::{PermissionsExt, symlink},
    path::Path,
    process::{Command, Output},
};
use tests::run_dir::RunDir;

/// Documents whose links are checked. RUNBOOK.md and CAPACITY.md are checked by
/// `runbook::resolves_every_link`.
const DOCUMENTS: [&str; 7] = [
    "README.md",
    "tests/GUARANTEES.md",
    "shared/docs/ARCHITECTURE.md",
    ".github/CONTRIBUTING.md",
    ".github/SECURITY.md",
    "deploy/CHANGELOG.md",
    "deploy/QUICKSTART.md",
];
/// Limits of the README.
const WORDS_MAX: usize = 900;
const LINES_MAX: usize = 110;

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Returns the cells of the rows of the first table under a heading.
fn rows(text: &str, heading: &str) -> Vec<Vec<String>> {
    let (_, chapter) = text.split_once(&format!("\n{heading}\n")).expect("a heading");
    let table = chapter.lines().skip_while(|line| !line.starts_with('|'));
    let rows = table.take_while(|line| line.starts_with('|')).skip(2);
    rows.map(|row| row.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect())
        .collect()
}

/// Returns the names between backticks.
fn names(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

/// Returns the tables that the migrations create, without the slots of rotating tables, which a
/// loop creates.
fn migrated_tables() -> BTreeSet<String> {
    let folder = root().join("shared/migrations");
    let mut tables = BTreeSet::new();
    for entry in std::fs::read_dir(folder).expect("the migrations") {
        let migration = read(&entry.expect("an entry").path());
        let made = migration.lines().filter_map(|line| {
            let kinds = ["create table ", "create unlogged table "];
            kinds.into_iter().find_map(|kind| line.strip_prefix(kind))
        });
        for line in made {
            let line = line.strip_prefix("if not exists ").unwrap_or(line);
            tables.extend(line.split([' ', '(']).next().map(str::to_owned));
        }
        let dropped = migration.lines().filter_map(|line| line.strip_prefix("drop table "));
        for line in dropped {
            let line = line.strip_prefix("if exists ").unwrap_or(line);
            tables.remove(line.trim_end_matches([';', ' ']));
        }
    }
    tables
}

/// Returns each table of the data map with its cell of encrypted columns.
fn mapped_tables(security: &str) -> BTreeMap<String, String> {
    let mut mapped = BTreeMap::new();
    for row in rows(security, "### Postgres") {
        let [tables, holds, sealed, kept] = &row[..] else { panic!("{row:?}: not four cells") };
        assert!(!holds.is_empty() && !kept.is_empty(), "{row:?}: an empty cell");
        for table in names(tables) {
            let before = mapped.insert(table.to_owned(), sealed.clone());
            assert!(before.is_none(), "{table} is mapped twice");
        }
    }
    mapped
}

/// The data map has each table of the migrations and no other.
#[test]
fn maps_every_table() {
    let mapped = mapped_tables(&read(&root().join(".github/SECURITY.md")));
    let migrated = migrated_tables();
    assert!(migrated.len() > 30 && migrated.contains("deliveries"), "{migrated:?}");
    assert_eq!(mapped.keys().cloned().collect::<BTreeSet<_>>(), migrated);
}

/// The data map has each encrypted column and no other.
#[test]
fn maps_every_encrypted_column() {
    let mapped = mapped_tables(&read(&root().join(".github/SECURITY.md")));
    let mut columns = BTreeSet::new();
    for (table, sealed) in &mapped {
        columns.extend(names(sealed).into_iter().map(|column| format!("{table}.{column}")));
    }
    let sealed: BTreeSet<String> =
        SEALED_COLUMNS.iter().map(|column| column.name.to_owned()).collect();
    assert_eq!(columns, sealed);
}

/// The data map has each stream and bucket of NATS, each of which is created in one place of the
/// code.
#[test]
fn maps_every_stream_and_bucket() {
    let security = read(&root().join(".github/SECURITY.md"));
    let mut mapped = BTreeSet::new();
    for row in rows(&security, "### NATS") {
        let [streams, _, _, kept, readers] = &row[..] else { panic!("{row:?}: not five cells") };
        assert!(!kept.is_empty() && !readers.is_empty(), "{row:?}: an empty cell");
        mapped.extend(names(streams).into_iter().map(str::to_owned));
    }
    assert_eq!(
        mapped,
        BTreeSet::from([STREAM, DIRECTORY_BUCKET, INGESTS_BUCKET].map(str::to_owned))
    );
    // The code creates streams and buckets of these names in one place each.
    let mut files = Vec::new();
    for folder in ["shared/src", "ingest/src", "worker/src", "deploy/cli/src", "deploy/control/src"]
    {
        files.extend(sources(&root().join(folder)));
    }
    let mut created = Vec::new();
    for file in files {
        let text = read(&file);
        let calls = ["create_stream(", "create_or_update_stream(", "get_or_create_stream("]
            .into_iter()
            .chain(["create_key_value(", "create_or_update_key_value(", "create_object_store("]);
        for call in calls {
            let count = text.matches(&format!(".{call}")).count();
            created.extend(std::iter::repeat_n((file.clone(), call), count));
        }
    }
    assert_eq!(created.len(), mapped.len(), "{created:?}");
}

/// Returns the anchor of a heading.
fn anchor(heading: &str) -> String {
    let kept = heading.trim().to_lowercase().replace(' ', "-");
    kept.chars().filter(|c| c.is_alphanumeric() || *c == '-' || *c == '_').collect()
}

/// Links of the documents lead to existing files and headings.
#[test]
fn resolves_every_link() {
    let mut links = 0;
    for document in DOCUMENTS {
        let path = root().join(document);
        let text = read(&path);
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let (file, heading) = target.split_once('#').unwrap_or((target, ""));
            if file.contains("://") {
                continue;
            }
            let beside = path.parent().expect("a folder").join(file);
            let there = read(if file.is_empty() { &path } else { &beside });
            let mut headings = there.lines().filter(|line| line.starts_with('#'));
            let found = headings.any(|line| anchor(line.trim_start_matches('#')) == heading);
            assert!(heading.is_empty() || found, "{document}: {target}");
            links += 1;
        }
    }
    assert!(links >= 20, "{links}");
}

/// The README has at most [`WORDS_MAX`] words and [`LINES_MAX`] lines.
#[test]
fn bounds_readme_length() {
    let readme = read(&root().join("README.md"));
    let (words, lines) = (readme.split_whitespace().count(), readme.lines().count());
    assert!(words <= WORDS_MAX, "{words} words in README.md; at most {WORDS_MAX}");
    assert!(lines <= LINES_MAX, "{lines} lines in README.md; at most {LINES_MAX}");
}

/// The last step of the workflow is `.ci/run`, the script that people run.
#[test]
fn runs_script_in_ci() {
    let workflow = read(&root().join(".github/workflows/ci.yml"));
    let steps: Vec<&str> =
        workflow.lines().filter_map(|line| line.trim().strip_prefix("run: ")).collect();
    assert_eq!(steps.last(), Some(&"bash .ci/run"), "{steps:?}");
}

/// Returns the version of Rust that `rust-version` in Cargo.toml pins.
fn pinned_toolchain() -> String {
    let manifest = read(&root().join("Cargo.toml"));
    let pinned = manifest.lines().find_map(|line| line.strip_prefix("rust-version = "));
    pinned.expect("a rust-version").trim_matches('"').to_owned()
}

/// The manifest, the image of the build and the image of CI name one version, with its patch
/// number.
#[test]
fn pins_one_toolchain() {
    let pinned = pinned_toolchain();
    assert_eq!(pinned.split('.').count(), 3, "{pinned}: a version without a patch number moves");
    for (file, image) in [
        ("deploy/Dockerfile", "ARG BUILDER=rust:"),
        (".github/workflows/ci.yml", "container: rust:"),
    ] {
        let text = read(&root().join(file));
        let tags: Vec<&str> =
            text.lines().filter_map(|line| line.trim().strip_prefix(image)).collect();
        let [tag] = tags[..] else { panic!("{file}: not one {image}") };
        assert_eq!(tag.split('-').next(), Some(pinned.as_str()), "{file}");
    }
    assert!(!root().join("rust-toolchain.toml").exists(), "the toolchain is pinned in two places");
}

/// Runs `.ci/run toolchain` with a `rustc` that prints the version in `RUSTUP_TOOLCHAIN`, or else
/// an old one. No other program is in the path except those that the script needs.
fn check_toolchain(run: &RunDir, rustup: Option<&str>) -> Output {
    let programs = run.path().join(if rustup.is_some() { "with-rustup" } else { "without-rustup" });
    std::fs::create_dir(&programs).expect("a folder");
    for program in ["bash", "sed", "dirname"] {
        let path = std::env::var_os("PATH").expect("a path");
        let mut files = std::env::split_paths(&path).map(|folder| folder.join(program));
        let found = files.find(|file| file.is_file()).expect("a program of every system");
        symlink(found, programs.join(program)).expect("a link");
    }
    let rustc = "echo \"rustc ${RUSTUP_TOOLCHAIN:-1.0.0} (0123456 2015-05-15)\"";
    for (name, script) in [("rustc", Some(rustc)), ("rustup", rustup)] {
        let Some(script) = script else { continue };
        let file = programs.join(name);
        let bash = programs.join("bash");
        std::fs::write(&file, format!("#!{}\n{script}\n", bash.display())).expect("a script");
        std::fs::set_permissions(&file, PermissionsExt::from_mode(0o755)).expect("a program");
    }
    Command::new(programs.join("bash"))
        .args([".ci/run", "toolchain"])
        .current_dir(root())
        .env_clear()
        .env("PATH", &programs)
        .output()
        .expect("it runs")
}

/// `.ci/run` rejects another version of Rust, or installs the pinned one if there is rustup.
#[test]
fn rejects_or_replaces_toolchain() {
    let (run, pinned) = (RunDir::new("toolchain").expect("a folder"), pinned_toolchain());
    let refused = check_toolchain(&run, None);
    let error = String::from_utf8(refused.stderr).expect("text");
    assert!(!refused.status.success(), "{error}");
    assert!(error.contains(&format!("pins Rust {pinned}; found: rustc 1.0.0 ")), "{error}");

    let replaced = check_toolchain(&run, Some("echo \"rustup $*\""));
    let printed = String::from_utf8(replaced.stdout).expect("text");
    assert!(replaced.status.success(), "{printed}");
    assert!(printed.contains(&format!("rustup toolchain install {pinned} ")), "{printed}");
}
