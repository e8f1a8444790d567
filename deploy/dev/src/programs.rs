//! Programs on this machine and their versions.

use std::{
    ffi::OsStr,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::Command,
};

/// Returns true if a program can be run and has at least this version.
#[must_use]
pub fn is_new_enough(program: &Path, needed: (u32, u32)) -> bool {
    version(program).is_some_and(|found| found >= needed)
}

/// Returns the major and minor version that `program --version` prints.
#[must_use]
pub fn version(program: &Path) -> Option<(u32, u32)> {
    let output = Command::new(program).arg("--version").output().ok()?;
    let text = String::from_utf8(output.stdout).ok().filter(|_| output.status.success())?;
    let number = &text[text.find(|c: char| c.is_ascii_digit())?..];
    let mut parts = number.split(|c: char| !c.is_ascii_digit());
    let major = parts.next()?.parse().ok()?;
    Some((major, parts.next().and_then(|minor| minor.parse().ok()).unwrap_or(0)))
}

/// Returns the first executable of this name in the folders of `path`.
#[must_use]
pub fn on_path(path: &OsStr, program: &str) -> Option<PathBuf> {
    std::env::split_paths(path).map(|dir| dir.join(program)).find(|candidate| {
        candidate.is_absolute()
            && candidate.metadata().is_ok_and(|found| found.is_file() && found.mode() & 1 != 0)
    })
}
