//! Reference `deploy/SETTINGS.md`, generated from the programs: every setting, its default and its
//! meaning.

use clap::CommandFactory;
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

const HEAD: &str = "# Settings\n\nMade from the programs by a test; \
    `TIDEGATE_WRITE_REFERENCE=1 cargo it reference::` writes it again. Each setting is also a flag:\n\
    `TIDEGATE_HTTP_LISTEN` is `--http-listen`. Keys of `tidegate.toml` are in \
    [tidegate.example.toml](tidegate.example.toml).\n\n\
    | Setting | Of | Default | Meaning |\n|---|---|---|---|\n";

/// Setting of one or more programs.
#[derive(Default)]
struct Setting {
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
    let mut settings: BTreeMap<String, Setting> = BTreeMap::new();
    for command in &commands {
        for argument in command.get_arguments() {
            let Some(name) = argument.get_env() else { continue };
            let setting = settings.entry(name.to_string_lossy().into_owned()).or_default();
            setting.programs.push(command.get_name().to_owned());
            let values = argument.get_default_values().iter();
            let values: Vec<_> = values.map(|value| value.to_string_lossy()).collect();
            setting.default = match values.join(",") {
                text if text.is_empty() => String::new(),
                text => format!("`{text}`"),
            };
            let help = argument.get_help().map(ToString::to_string).unwrap_or_default();
            let help = help.trim_end_matches('.').replace('|', "\\|");
            setting.meaning = help.replace('<', "\\<");
        }
    }
    let rows = settings.iter().map(|(name, setting)| {
        let (programs, Setting { default, meaning, .. }) = (setting.programs.join(", "), setting);
        format!("| `{name}` | {programs} | {default} | {meaning} |\n")
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
        "deploy/SETTINGS.md is not what the programs have; write it with \
         TIDEGATE_WRITE_REFERENCE=1 cargo it reference::"
    );
}
