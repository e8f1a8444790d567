//! File with the settings of a running `tidegate dev`, for shells and for other commands.

use anyhow::Context;
use dev::run_dir;
use std::{
    env, fs,
    fs::OpenOptions,
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

/// Returns the folder of the state: `named`, or the default.
///
/// The default for root is outside root's home, because Postgres then runs as another user.
pub fn state_dir(named: Option<&Path>) -> anyhow::Result<PathBuf> {
    if let Some(named) = named {
        return Ok(std::path::absolute(named)?);
    }
    if run_dir::is_root() {
        return Ok(PathBuf::from("/var/lib/tidegate-dev"));
    }
    let set = |name| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let data = set("XDG_DATA_HOME").or_else(|| set("HOME").map(|home| home.join(".local/share")));
    let data = data.context("failed to find a folder for the state; pass --state, or set HOME")?;
    Ok(data.join("tidegate-dev"))
}

/// Returns the path of the settings file, which exists while `tidegate dev` runs.
pub fn file(state_dir: &Path) -> PathBuf {
    state_dir.join("tidegate.env")
}

/// Reads the settings. Returns `None` if `tidegate dev` is not running.
pub fn read(state_dir: &Path) -> Option<Vec<(String, String)>> {
    let text = fs::read_to_string(file(state_dir)).ok()?;
    Some(text.lines().filter_map(parse_line).collect())
}

/// Writes the settings. Returns the path of the file.
pub fn write(state_dir: &Path, settings: &[(String, String)]) -> anyhow::Result<PathBuf> {
    let (path, lines) = (file(state_dir), settings.iter().map(render_line));
    write_private(&path, &lines.collect::<String>())?;
    Ok(path)
}

/// Writes a file that only its owner can read.
pub fn write_private(path: &Path, text: &str) -> anyhow::Result<()> {
    let opened = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path);
    let written = opened.and_then(|mut file| file.write_all(text.as_bytes()));
    written.with_context(|| format!("failed to write {}", path.display()))
}

fn render_line((name, value): &(String, String)) -> String {
    let quoted = value.replace('\'', r"'\''");
    format!("export {name}='{quoted}'\n")
}

fn parse_line(line: &str) -> Option<(String, String)> {
    let (name, quoted) = line.strip_prefix("export ")?.split_once('=')?;
    let quoted = quoted.strip_prefix('\'')?.strip_suffix('\'')?;
    Some((name.to_owned(), quoted.replace(r"'\''", "'")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_settings_for_shells() {
        let setting = ("A".to_owned(), "it's $HOME = 'x'".to_owned());
        let line = render_line(&setting);
        assert_eq!(line, "export A='it'\\''s $HOME = '\\''x'\\'''\n");
        assert_eq!(parse_line(line.trim_end()), Some(setting));
        assert_eq!(parse_line("A=b"), None);
    }
}
