//! Architecture: dependencies between crates, layout of the repository, and names of tests.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    process::Command,
};

pub fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// Returns `module::name` of all tests of this program, without their folder.
pub fn listed_tests() -> BTreeSet<String> {
    let program = std::env::current_exe().expect("the path of this program");
    let listed = Command::new(program).arg("--list").output().expect("a list");
    let listed = String::from_utf8(listed.stdout).expect("text");
    let tests = listed.lines().filter_map(|line| line.strip_suffix(": test"));
    let tests: Vec<&str> =
        tests.map(|path| path.split_once("::").map_or(path, |(_, name)| name)).collect();
    let names: BTreeSet<String> = tests.iter().map(|name| (*name).to_owned()).collect();
    assert_eq!(names.len(), tests.len(), "two folders have a test of the same name");
    names
}

/// `ingest` does not depend on sqlx.
#[test]
fn keeps_sqlx_out_of_ingest() {
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

/// The root of the repository has no visible entries but these.
#[test]
fn allows_known_root_entries_only() {
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

/// Returns whether a line of code in a file contains a word.
fn contains_word(file: &Path, word: &str) -> bool {
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

/// Routing, signature checks and classification name neither NATS nor SQL.
#[test]
fn keeps_routing_free_of_io() {
    let mut files = sources(&root().join("worker/src/routing"));
    files.push(root().join("ingest/src/webhook/signature.rs"));
    files.push(root().join("ingest/src/webhook/classify.rs"));
    files.push(root().join("ingest/src/directory/signing_key.rs"));
    assert!(files.len() > 5);
    for file in files {
        for word in ["async_nats", "sqlx", "jetstream"] {
            assert!(!contains_word(&file, word), "{} names {word}", file.display());
        }
    }
}

/// Only the store uses sqlx.
#[test]
fn keeps_sql_in_store() {
    for dir in ["shared/src", "ingest/src", "worker/src", "deploy/cli/src", "deploy/control/src"] {
        for file in sources(&root().join(dir)) {
            let in_store = file.components().any(|part| part.as_os_str() == "store");
            assert!(in_store || !contains_word(&file, "sqlx"), "{} names sqlx", file.display());
        }
    }
}

/// Files that read the clock of their machine, with the purpose. It decides nothing else: Postgres
/// compares stored times, and times of the stream are compared with each other.
const CLOCK_READERS: [(&str, &str); 9] = [
    ("ingest/src/http/routes.rs", "the age of a signature, by the head"),
    ("ingest/src/webhook/pipeline.rs", "the age of a signature; a time for logs and metrics"),
    ("ingest/src/webhook/sync_response.rs", "a time for recordings"),
    ("shared/src/signature.rs", "the time of a signature"),
    ("worker/src/dispatch/agents/approvals.rs", "a time in a message"),
    ("worker/src/dispatch/attempt.rs", "a metric"),
    ("worker/src/metrics.rs", "a metric"),
    ("deploy/cli/src/commands/connections/import/mod.rs", "the expiry of a token in a file"),
    ("deploy/cli/src/commands/doctor/clock.rs", "the comparison of clocks"),
];

/// Only [`CLOCK_READERS`] read the clock of their machine.
#[test]
fn reads_clock_in_few_places() {
    let mut found = BTreeSet::new();
    for dir in ["shared/src", "ingest/src", "worker/src", "deploy/cli/src", "deploy/control/src"] {
        for file in sources(&root().join(dir)) {
            if contains_word(&file, "SystemTime::now") || contains_word(&file, "now_utc") {
                let name = file.strip_prefix(root()).expect("below it").display().to_string();
                found.insert(name);
            }
        }
    }
    let known = CLOCK_READERS.map(|(file, _)| file.to_owned());
    assert_eq!(found, BTreeSet::from(known));
}

/// Chapters of the integration tests.
const FOLDERS: [&str; 8] = [
    "conversations",
    "delivery",
    "deployment",
    "failures",
    "ingest",
    "meta",
    "observability",
    "operations",
];

/// The integration tests are in [`FOLDERS`] and `main.rs`.
#[test]
fn groups_tests_in_eight_folders() {
    let (mut folders, mut files) = (BTreeSet::new(), BTreeSet::new());
    for entry in std::fs::read_dir(root().join("tests/integration")).expect("a folder") {
        let entry = entry.expect("an entry");
        let name = entry.file_name().into_string().expect("UTF-8");
        let names = if entry.path().is_dir() { &mut folders } else { &mut files };
        names.insert(name);
    }
    assert_eq!(folders, BTreeSet::from(FOLDERS.map(str::to_owned)));
    assert_eq!(files, BTreeSet::from(["main.rs".to_owned()]));
}

/// Maximum length of the module and the name of a test, as in `link_codes::rejects_wrong_surface`.
const TEST_NAME_MAX: usize = 45;

fn indent(line: &str) -> usize {
    line.len() - line.trim_start().len()
}

/// Returns the name after a keyword at the beginning of a line.
fn name_after<'l>(line: &'l str, keyword: &str) -> Option<&'l str> {
    let rest = line.trim_start().strip_prefix(keyword)?;
    rest.split([' ', '(', '<']).next()
}

/// Returns the macros of a source that define tests, each with its module if it has one.
fn test_macros(text: &str) -> Vec<(&str, Option<&str>)> {
    let (mut found, mut open) = (Vec::new(), None);
    for line in text.lines() {
        if let Some(name) = name_after(line, "macro_rules! ") {
            open = Some((name, indent(line), None));
        }
        let Some((name, start, module)) = &mut open else { continue };
        *module = name_after(line, "mod ").or(*module);
        if line.contains("#[test]") {
            found.push((*name, *module));
        }
        if line.trim() == "}" && indent(line) == *start {
            open = None;
        }
    }
    found
}

/// Returns the name of a test in a row of a macro: `name: …`, `name => …` or `Variant, name => …`.
fn row_name(line: &str) -> Option<&str> {
    let row = match line.trim_start().split_once(", ") {
        Some((first, rest)) if first.starts_with(char::is_uppercase) => rest,
        _ => line.trim_start(),
    };
    let is_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    let (name, rest) = row.split_at(row.find(|c| !is_name(c))?);
    let is_row = (rest.starts_with(':') && !rest.starts_with("::")) || rest.starts_with(" =>");
    (is_row && !name.is_empty()).then_some(name)
}

/// Returns the module and the name of each test of a source. The module is the last one of the path
/// except `tests`.
fn test_names<'t>(
    file: &'t Path,
    text: &'t str,
    macros: &BTreeMap<&'t str, Option<&'t str>>,
) -> Vec<(&'t str, &'t str)> {
    let parts = file.iter().rev().filter_map(|part| part.to_str());
    let mut parts = parts.map(|part| part.strip_suffix(".rs").unwrap_or(part));
    let own = parts.find(|part| !["mod", "tests"].contains(part)).expect("a module");
    let (mut names, mut is_test) = (Vec::new(), false);
    // Open modules, and the open macro, with their indentation.
    let (mut modules, mut rows) = (vec![(usize::MAX, own)], None);
    for line in text.lines() {
        let (start, module) = (indent(line), modules.last().map_or(own, |(_, module)| *module));
        if line.trim() == "}" {
            modules.pop_if(|(opened, _)| *opened == start);
            rows.take_if(|(opened, _)| *opened == start);
        } else if let Some((_, within)) = rows {
            names.extend(row_name(line).map(|name| (within, name)));
        } else if let Some(name) = name_after(line, "mod ").filter(|_| line.ends_with('{')) {
            modules.push((start, if name == "tests" { module } else { name }));
        } else if ["#[test]", "#[tokio::test"].iter().any(|it| line.trim().starts_with(it)) {
            is_test = true;
        } else if let Some((_, rest)) = line.split_once("fn ").filter(|_| is_test) {
            is_test = false;
            let name = rest.split(['(', '<']).next().unwrap_or_default();
            names.extend((!name.starts_with('$')).then_some((module, name)));
        } else if let Some((name, _)) = line.trim_start().split_once("! {") {
            rows = macros.get(name).map(|within| (start, within.unwrap_or(module)));
        }
    }
    names
}

/// Tests in modules and macros are found with their modules, and other rows are not.
#[test]
fn finds_names_of_tests() {
    let text = "macro_rules! cases {\n    ($($n:ident),*) => {$(\n        #[test]\n        fn $n() {}\n    )*};\n}\n\
                mod tests {\n    #[test]\n    fn one() {}\n    mod inner {\n        #[tokio::test]\n        async fn two() {}\n\
                \x20       cases! {\n            three: 3;\n            four => 4;\n            A, five => 5;\n\
                \x20               \"six: 6\" => 6;\n        }\n    }\n    others! {\n        no_test: 7;\n    }\n}\n";
    let macros = test_macros(text).into_iter().collect();
    let found = test_names(Path::new("a/file/tests/mod.rs"), text, &macros);
    let inner = ["two", "three", "four", "five"].map(|name| ("inner", name));
    assert_eq!(found, [&[("file", "one")], &inner[..]].concat());
}

/// Names of tests of all crates have at most [`TEST_NAME_MAX`] characters with their modules.
#[test]
fn bounds_length_of_test_names() {
    let folders = ["shared", "ingest", "worker", "deploy", "tests"];
    let files: Vec<_> = folders.iter().flat_map(|folder| sources(&root().join(folder))).collect();
    let texts: Vec<String> =
        files.iter().map(|file| std::fs::read_to_string(file).expect("a source file")).collect();
    let macros: BTreeMap<_, _> = texts.iter().flat_map(|text| test_macros(text)).collect();
    let mut count = 0;
    for (file, text) in files.iter().zip(&texts) {
        for (module, name) in test_names(file, text, &macros) {
            let full = format!("{module}::{name}");
            assert!(full.len() <= TEST_NAME_MAX, "{}: {full} is too long", file.display());
            count += 1;
        }
    }
    assert!(count >= 500, "only {count} tests are found");
}
