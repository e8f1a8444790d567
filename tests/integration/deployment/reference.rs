//! Reference `deploy/SETTINGS.md`, generated from the programs: every setting, its default and its
//! meaning.

use clap::CommandFactory;
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

const HEAD: &str = "# Settings\n\nGenerated from the programs by a test; \
    `TIDEGATE_WRITE_REFERENCE=1 cargo it reference::` regenerates it. Each setting is also a flag:\n\
    `TIDEGATE_HTTP_LISTEN` is `--http-listen`. Keys of `tidegate.toml` are in \
    [tidegate.example.toml](tidegate.example.toml).\n\n\
    | Setting | Programs | Default | Meaning |\n|---|---|---|---|\n";

/// Row of the table: a setting with the programs in which it has this default and meaning.
struct Row {
    programs: Vec<String>,
    default: String,
    meaning: String,
}

fn file() -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/SETTINGS.md")).to_owned()
}

fn reference() -> String {
    let commands =
        [ingest::Config::command(), worker::Config::command(), control::Config::command()];
    let mut settings: BTreeMap<String, Vec<Row>> = BTreeMap::new();
    for command in &commands {
        for argument in command.get_arguments() {
            let Some(name) = argument.get_env() else { continue };
            let values = argument.get_default_values().iter();
            let values: Vec<_> = values.map(|value| value.to_string_lossy()).collect();
            let default = match values.join(",") {
                text if text.is_empty() => String::new(),
                text => format!("`{text}`"),
            };
            let help = argument.get_help().map(ToString::to_string).unwrap_or_default();
            let help = help.trim_end_matches('.').replace('|', "\\|");
            let meaning = help.replace('<', "\\<");
            let program = command.get_name().to_owned();
            let rows = settings.entry(name.to_string_lossy().into_owned()).or_default();
            match rows.iter_mut().find(|row| row.default == default && row.meaning == meaning) {
                Some(row) => row.programs.push(program),
                None => rows.push(Row { programs: vec![program], default, meaning }),
            }
        }
    }
    let rows = settings.iter().flat_map(|(name, rows)| rows.iter().map(move |row| (name, row)));
    let rows = rows.map(|(name, Row { programs, default, meaning })| {
        format!("| `{name}` | {} | {default} | {meaning} |\n", programs.join(", "))
    });
    format!("{HEAD}{}", rows.collect::<String>())
}

/// `deploy/SETTINGS.md` has every setting of the programs with its default and help text.
#[test]
fn lists_every_setting() {
    let expected = reference();
    assert!(expected.lines().count() > 50, "{expected}");
    if std::env::var_os("TIDEGATE_WRITE_REFERENCE").is_some() {
        std::fs::write(file(), &expected).expect("written");
    }
    let found = std::fs::read_to_string(file()).expect("deploy/SETTINGS.md");
    assert!(
        found == expected,
        "deploy/SETTINGS.md is outdated; regenerate it with \
         TIDEGATE_WRITE_REFERENCE=1 cargo it reference::"
    );
}
