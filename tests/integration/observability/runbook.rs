//! Runbook and capacity page: commands, files and links exist, and alerts and entries correspond.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    process::Command,
};
use tests::binaries::Binaries;

fn root() -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/..")).to_owned()
}

fn read_page(name: &str) -> String {
    std::fs::read_to_string(root().join("deploy").join(name)).expect("a page")
}

/// Returns every command: lines after a prompt, and quoted commands of known programs.
fn shown_commands(page: &str) -> Vec<String> {
    let shown = page.lines().filter_map(|line| line.trim_start().strip_prefix("$ "));
    let quoted = page
        .lines()
        .filter(|line| !line.trim_start().starts_with("$ "))
        .flat_map(|line| line.split('`').skip(1).step_by(2))
        .filter(|text| ["tidegate ", "k ", "kubectl "].iter().any(|it| text.starts_with(it)))
        .filter(|text| !text.contains('…'));
    shown.chain(quoted).map(str::to_owned).collect()
}

/// Splits a command up to a pipe into words, as a shell does, without quotes.
fn shell_words(command: &str) -> Vec<String> {
    let (mut words, mut word, mut quote) = (Vec::new(), String::new(), None);
    for c in command.chars() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (None, '"' | '\'') => quote = Some(c),
            (None, '|') => break,
            (None, ' ') => words.extend(Some(std::mem::take(&mut word)).filter(|w| !w.is_empty())),
            _ => word.push(c),
        }
    }
    words.extend(Some(word).filter(|word| !word.is_empty()));
    words
}

/// The runbook's commands parse, and its files exist.
#[test]
fn shows_valid_commands() {
    let tidegate = &Binaries::get().expect("binaries").tidegate;
    let (mut ours, mut files) = (0, 0);
    for command in shown_commands(&read_page("RUNBOOK.md")) {
        let mut words = shell_words(&command);
        for word in &words {
            // As in --file deploy/x, and in --set-file name=deploy/x.
            let path = word.rsplit('=').next().unwrap_or(word);
            if path.starts_with("deploy/") {
                assert!(root().join(path).exists(), "{command}: there is no {path}");
                files += 1;
            }
        }
        match words.remove(0).as_str() {
            "tidegate" => {
                let args = words.iter().map(|word| match word.as_str() {
                    "<connection>" => "0123456789abcdef0123456789abcdef",
                    // A secret is read when the arguments are parsed.
                    word if word.starts_with("file:/run/declared/") => "env:PATH",
                    "env:TIDEGATE_OWNER_KEY" => "env:PATH",
                    word => word,
                });
                // Arguments before --help are parsed first, and rejected if they are unknown.
                let ran = Command::new(tidegate).args(args).arg("--help").output();
                let ran = ran.expect("it runs");
                let stderr = String::from_utf8_lossy(&ran.stderr);
                assert!(ran.status.success(), "{command}: {stderr}");
                ours += 1;
            }
            "bash" => assert!(root().join(&words[0]).exists(), "{command}"),
            "cargo" => assert!(words.starts_with(&["run".into()]), "{command}"),
            // deploy/check runs deploy/kubernetes/declare.
            "alias" | "deploy/kubernetes/declare" | "helm" | "k" | "kubectl" | "psql" => {}
            other => panic!("{command}: no test checks {other}"),
        }
    }
    assert!(ours > 20 && files > 10, "{ours} {files}");
}

/// Unknown commands and arguments do not parse.
#[test]
fn detects_invalid_commands() {
    let tidegate = &Binaries::get().expect("binaries").tidegate;
    for wrong in [&["no-such-verb"][..], &["dead", "bury"], &["partitions", "--surprise"]] {
        let ran = Command::new(tidegate).args(wrong).arg("--help").output().expect("it runs");
        assert!(!ran.status.success(), "{wrong:?} passes");
    }
}

/// The runbook has an entry with all parts for each alert and no other, and a test makes each alert
/// fire.
#[test]
fn has_entry_for_every_alert() {
    let alerts = read_page("observability/alerts.yaml");
    let alerts: BTreeSet<&str> =
        alerts.lines().filter_map(|line| line.trim_start().strip_prefix("- alert: ")).collect();
    let runbook = read_page("RUNBOOK.md");
    let (_, chapter) = runbook.split_once("## Alerts\n").expect("a chapter");
    let (chapter, _) = chapter.split_once("\n## ").expect("another after it");
    let entries: Vec<(&str, &str)> =
        chapter.split("\n### ").skip(1).filter_map(|entry| entry.split_once('\n')).collect();
    assert_eq!(entries.iter().map(|(name, _)| *name).collect::<BTreeSet<_>>(), alerts);
    for (name, entry) in entries {
        for part in ["**Means.**", "**Look.**", "**Do.**"] {
            assert!(entry.contains(part), "{name} lacks {part}");
        }
    }
    let tests = read_page("observability/alerts_test.yaml");
    for alert in alerts {
        let fires = format!("alertname: {alert}\n        exp_alerts:");
        assert!(tests.contains(&fires), "no test makes {alert} fire");
    }
}

/// Returns the anchor of a heading.
fn anchor(heading: &str) -> String {
    let kept = heading.to_lowercase().replace(' ', "-");
    kept.chars().filter(|c| c.is_alphanumeric() || *c == '-').collect()
}

/// Links of the runbook and the capacity page lead to existing headings.
#[test]
fn resolves_every_link() {
    let mut links = 0;
    for name in ["RUNBOOK.md", "CAPACITY.md"] {
        let text = read_page(name);
        let targets = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
        for target in targets {
            let (file, heading) = target.split_once('#').unwrap_or((target, ""));
            let there = read_page(if file.is_empty() { name } else { file });
            let headings = there.lines().filter(|line| line.starts_with('#'));
            let mut anchors = headings.map(|line| anchor(line.trim_start_matches('#').trim()));
            assert!(heading.is_empty() || anchors.any(|it| it == heading), "{name}: {target}");
            links += 1;
        }
    }
    assert!(links > 20, "{links}");
}
