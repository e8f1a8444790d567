//! Documents: their tests, paths, commands and settings exist.

use crate::meta::architecture::{listed_tests, root, sources};
use std::{collections::BTreeSet, process::Command};
use tests::{binaries::Binaries, run_dir::RunDir};

/// Documents whose paths and settings are checked.
const DOCUMENTS: [&str; 6] = [
    "README.md",
    "tests/GUARANTEES.md",
    "shared/docs/ARCHITECTURE.md",
    ".github/CONTRIBUTING.md",
    ".github/SECURITY.md",
    "deploy/CHANGELOG.md",
];
/// Chapters of the table of guarantees.
const CHAPTERS: [&str; 7] = [
    "1. Ingest",
    "2. Conversations",
    "3. Delivery",
    "4. Failures",
    "5. Operations",
    "6. Observability",
    "7. Deployment",
];
/// Id of a connection in commands.
const CONNECTION: &str = "0123456789abcdef0123456789abcdef";

fn read(document: &str) -> String {
    let path = root().join(document);
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{document}: {error}"))
}

/// Returns the texts between backticks.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.lines()
        .filter(|line| !line.starts_with("    "))
        .flat_map(|line| line.split('`').skip(1).step_by(2))
}

/// Returns the targets of links to other files, without anchors.
fn linked(text: &str) -> impl Iterator<Item = &str> {
    let targets = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    let files = targets.filter_map(|target| target.split('#').next());
    files.filter(|file| !file.is_empty() && !file.contains("://"))
}

fn is_test_name(word: &str) -> bool {
    word.contains("::") && !word.contains(' ')
}

/// Each test that the documents name exists.
#[test]
fn names_existing_tests() {
    let tests = listed_tests();
    let mut names = 0;
    for document in DOCUMENTS {
        let text = read(document);
        for name in quoted(&text).filter(|word| is_test_name(word)) {
            // A path of the code begins with a crate or a type.
            let is_code = name.starts_with(|c: char| c.is_uppercase())
                || ["config::", "worker::", "shared::", "ingest::"]
                    .iter()
                    .any(|it| name.starts_with(it));
            assert!(is_code || tests.contains(name), "{document}: there is no test {name}");
            names += usize::from(!is_code);
        }
    }
    assert!(names >= 90, "{names}");
}

/// Each row of the table is a sentence and names its tests, each of which is named once.
#[test]
fn names_tests_of_every_guarantee() {
    let guarantees = read("tests/GUARANTEES.md");
    let chapters: Vec<(&str, &str)> =
        guarantees.split("\n## ").skip(1).filter_map(|text| text.split_once('\n')).collect();
    let titles: Vec<&str> = chapters.iter().map(|(title, _)| *title).collect();
    assert_eq!(titles, [&CHAPTERS[..], &["Not guaranteed"]].concat());
    let (mut stated, mut named) = (BTreeSet::new(), BTreeSet::new());
    for (title, chapter) in &chapters[..CHAPTERS.len()] {
        let mut rows = chapter.lines().filter(|line| line.starts_with('|'));
        assert_eq!(rows.next(), Some("| Guarantee | Test |"), "{title}");
        assert_eq!(rows.next(), Some("|---|---|"), "{title}");
        let before = stated.len();
        for row in rows {
            let cells: Vec<&str> = row.trim_matches('|').split(" | ").map(str::trim).collect();
            let [guarantee, tests] = cells[..] else { panic!("{row}: not two cells") };
            assert!(guarantee.ends_with('.'), "{guarantee}: no sentence");
            assert!(stated.insert(guarantee.to_owned()), "{guarantee}: stated twice");
            let names: Vec<&str> = tests.split(", ").collect();
            for name in names {
                let name = name.trim_matches('`');
                assert!(is_test_name(name), "{guarantee}: {name} is no test");
                assert!(named.insert(name.to_owned()), "{guarantee}: {name} is named twice");
            }
        }
        assert!(stated.len() >= before + 5, "{title}: only {} rows", stated.len() - before);
    }
    assert!(stated.len() >= 60 && named.len() >= 90, "{} {}", stated.len(), named.len());
}

/// Each path and link target in the documents exists.
#[test]
fn names_existing_paths() {
    let mut paths = 0;
    for document in DOCUMENTS {
        let (text, path) = (read(document), root().join(document));
        let is_path = |word: &&str| {
            word.contains('/')
                && !word.contains([' ', '<', '{', '*', '$', '…'])
                && !word.starts_with('/')
                && !word.contains("://")
        };
        for path in quoted(&text).filter(is_path) {
            assert!(root().join(path).exists(), "{document}: there is no {path}");
            paths += 1;
        }
        for target in linked(&text) {
            let there = path.parent().map(|folder| folder.join(target));
            assert!(there.is_some_and(|it| it.exists()), "{document}: there is no {target}");
            paths += 1;
        }
    }
    assert!(paths >= 60, "{paths}");
}

/// Returns whether arguments of `tidegate` parse.
fn parses(args: &[&str]) -> bool {
    let tidegate = &Binaries::get().expect("binaries").tidegate;
    // Arguments before --help are parsed first, and rejected if they are unknown.
    let ran = Command::new(tidegate).args(args).arg("--help").output().expect("it runs");
    ran.status.success()
}

/// Commands in the documents' blocks exist and parse.
#[test]
fn shows_valid_commands() {
    let aliases = read(".cargo/config.toml");
    let mut commands = Vec::new();
    for document in DOCUMENTS {
        let text = read(document);
        commands.extend(text.lines().filter_map(|line| line.strip_prefix("$ ")).map(str::to_owned));
    }
    for expected in ["cargo demo", "cargo test --workspace", "bash .ci/run"] {
        assert!(commands.iter().any(|command| command == expected), "{expected} is not shown");
    }
    for command in &commands {
        let words: Vec<&str> = command.split_whitespace().collect();
        match words[..] {
            [
                "cargo",
                "test" | "nextest" | "build" | "bench" | "fmt" | "clippy" | "run" | "deny",
                ..,
            ] => {}
            ["cargo", alias, ..] => assert!(aliases.contains(&format!("{alias} = ")), "{command}"),
            ["bash", script, ..] => assert!(root().join(script).exists(), "{command}"),
            ["docker", "compose", "-f", file, "up", ..] => {
                assert!(root().join(file).exists(), "{command}");
            }
            ["cp", "-r", from, _] => assert!(root().join(from).exists(), "{command}"),
            ["tidegate", ref args @ ..] => {
                let args: Vec<&str> = args
                    .iter()
                    .map(|word| if *word == "<connection>" { CONNECTION } else { *word })
                    .collect();
                assert!(parses(&args), "{command}");
            }
            ["alias" | "time" | "git", ..] => {}
            _ => panic!("{command} is checked by no test"),
        }
    }
    assert!(commands.len() >= 15, "{commands:?}");
}

/// Commands of `tidegate` between backticks parse.
#[test]
fn quotes_valid_commands() {
    let mut commands = 0;
    for document in DOCUMENTS {
        let text = read(document);
        for command in quoted(&text).filter_map(|word| word.strip_prefix("tidegate ")) {
            let words = command.split_whitespace();
            let args: Vec<&str> =
                words.map(|word| if word == "<connection>" { CONNECTION } else { word }).collect();
            assert!(parses(&args), "{document}: tidegate {command}");
            commands += 1;
        }
    }
    assert!(commands >= 10, "{commands}");
}

/// The steps in CONTRIBUTING.md are those of the demo.
#[test]
fn shows_steps_of_demo() {
    let demo = read("tests/bin/demo.rs");
    let contributing = read(".github/CONTRIBUTING.md");
    let (_, shown) = contributing.split_once("\n```text\n").expect("a block of text");
    let (shown, _) = shown.split_once("\n```").expect("its end");
    let shown: Vec<&str> = shown
        .lines()
        .filter_map(|line| line.split_once(". "))
        .filter(|(n, _)| n.len() == 1 && n.bytes().all(|b| b.is_ascii_digit()))
        .map(|(_, title)| title)
        .collect();
    assert_eq!(shown.len(), 7, "{shown:?}");
    for title in shown {
        assert!(demo.contains(&format!("\"{title}\"")), "the demo has no step {title:?}");
    }
}

/// Each setting that the documents name is read by a program.
#[test]
fn names_existing_settings() {
    let mut files = Vec::new();
    for folder in ["ingest/src", "worker/src", "shared/src", "deploy/cli/src", "tests"] {
        files.extend(sources(&root().join(folder)));
    }
    let code: String =
        files.iter().map(|file| std::fs::read_to_string(file).expect("a source file")).collect();
    let mut settings = BTreeSet::new();
    for document in DOCUMENTS {
        let text = read(document);
        for setting in
            text.split(|c: char| !(c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_'))
        {
            if setting.strip_prefix("TIDEGATE_").is_some_and(|rest| !rest.is_empty()) {
                assert!(
                    code.contains(&format!("\"{setting}\"")),
                    "{document}: no program reads {setting}"
                );
                settings.insert(setting.to_owned());
            }
        }
    }
    assert!(settings.len() >= 10, "{settings:?}");
}

/// The declarations that the quick start copies are valid: `apply --dry-run` fails only for want of
/// a server.
#[test]
fn parses_quick_start_file() {
    let run_dir = RunDir::new("declared").expect("a folder");
    let file = run_dir.path().join("tidegate.toml");
    std::fs::write(&file, read("deploy/compose/declared/tidegate.toml")).expect("a file");
    let apply = || {
        let ring = "k1:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
        let ran = Command::new(&Binaries::get().expect("binaries").tidegate)
            .args(["apply", "--dry-run", "--nats-url", "nats://127.0.0.1:1"])
            .args(["--postgres-url", "postgres://127.0.0.1:1/none"])
            .env("TIDEGATE_SIGNING_SECRET_KEYRING", ring)
            .env("TIDEGATE_TOKEN_KEYRING", ring)
            .arg("--file")
            .arg(&file)
            .output()
            .expect("it runs");
        assert!(!ran.status.success(), "there is no Postgres");
        String::from_utf8(ran.stderr).expect("text")
    };
    assert!(apply().contains("agent.secret"), "a missing secret is reported");
    for secret in ["agent.secret", "signing.secret", "bot.token"] {
        std::fs::write(run_dir.path().join(secret), "0123456789abcdef").expect("a file");
    }
    let reported = apply();
    assert!(!reported.contains("nothing was applied") && !reported.is_empty(), "{reported}");
}
