//! Nothing in the README is false: its commands, paths and test names exist.

use std::{path::Path, process::Command};

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

fn readme() -> String {
    std::fs::read_to_string(root().join("README.md")).expect("README.md")
}

/// What stands between backticks.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.lines()
        .filter(|line| !line.starts_with("    "))
        .flat_map(|line| line.split('`').skip(1).step_by(2))
}

#[test]
fn every_test_it_names_exists() {
    let listed = Command::new(std::env::current_exe().expect("ourselves"))
        .arg("--list")
        .output()
        .expect("a list");
    let listed = String::from_utf8(listed.stdout).expect("text");
    let readme = readme();
    let named: Vec<&str> =
        quoted(&readme).filter(|word| word.contains("::") && !word.contains(' ')).collect();
    assert!(named.len() >= 10, "the promises name their tests: {named:?}");
    for name in named {
        assert!(
            listed.lines().any(|line| line == format!("{name}: test")),
            "there is no test {name}"
        );
    }
}

#[test]
fn every_path_it_names_exists() {
    let readme = readme();
    let is_path = |word: &&str| {
        word.contains('/') && !word.contains([' ', '<', '{']) && !word.starts_with('/')
    };
    let paths: Vec<&str> = quoted(&readme).filter(is_path).collect();
    assert!(paths.len() >= 8, "{paths:?}");
    for path in paths {
        assert!(root().join(path).exists(), "there is no {path}");
    }
}

#[test]
fn every_command_it_shows_is_one() {
    let readme = readme();
    let commands: Vec<&str> = readme.lines().filter_map(|line| line.strip_prefix("$ ")).collect();
    assert!(
        commands.contains(&"cargo demo") && commands.contains(&"cargo test --workspace"),
        "{commands:?}"
    );
    let aliases =
        std::fs::read_to_string(root().join(".cargo/config.toml")).expect("cargo's settings");
    for command in commands {
        let mut words = command.split_whitespace();
        match (words.next(), words.next()) {
            (Some("cargo"), Some("test" | "nextest" | "build" | "bench")) => {}
            (Some("cargo"), Some(alias)) => {
                assert!(aliases.contains(&format!("{alias} = ")), "{command}")
            }
            (Some("bash"), Some(script)) => assert!(root().join(script).exists(), "{command}"),
            _ => panic!("{command} is checked by nobody"),
        }
    }
}

/// The steps that the README shows are those of the demo, in its words.
#[test]
fn the_output_it_shows_is_the_demos() {
    let demo = std::fs::read_to_string(root().join("tests/bin/demo.rs")).expect("the demo");
    let readme = readme();
    let shown: Vec<&str> = readme
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
