//! The release before this one, built from the project's own history.
//!
//! In: a commit. Out: its programs. What both releases depend on is compiled once: intermediate results are shared, only
//! the programs lie apart. Without the history there is nothing to build, and whoever asks is told so.

use crate::binaries::{Binaries, cargo, programs, target_and_profile};
use anyhow::{Context, ensure};
use std::{fs, path::Path, process::Command, sync::OnceLock};

/// The release before this one.
pub const PREVIOUS: &str = "96b6ec7";

/// Builds them. Blocks; later calls give the first answer.
///
/// # Errors
/// When there is no history, or what cargo said.
pub fn binaries() -> anyhow::Result<&'static Binaries> {
    static ONCE: OnceLock<Result<Binaries, String>> = OnceLock::new();
    ONCE.get_or_init(|| build().map_err(|error| format!("{error:#}")))
        .as_ref()
        .map_err(|error| anyhow::anyhow!("{error}"))
}

fn build() -> anyhow::Result<Binaries> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let (target, profile) = target_and_profile()?;
    let ours = target.join("previous");
    let source = ours.join("source");
    fs::create_dir_all(&source)?;
    let archive = ours.join("source.tar");
    let git = Command::new("git")
        .current_dir(&root)
        .args(["archive", "--format=tar", "-o"])
        .arg(&archive)
        .arg(PREVIOUS)
        .output()
        .context("cannot run git")?;
    ensure!(
        git.status.success(),
        "the history has no {PREVIOUS}: {}",
        String::from_utf8_lossy(&git.stderr).trim()
    );
    let tar = Command::new("tar").arg("-xf").arg(&archive).arg("-C").arg(&source).status()?;
    ensure!(tar.success(), "tar failed");
    let mut command = cargo();
    command.args(["build", "--quiet", "--locked", "--workspace", "--profile", &profile]);
    command
        .args(["--bin", "worker", "--bin", "ingest", "--bin", "tidegate", "--target-dir"])
        .arg(&ours);
    command.env("CARGO_BUILD_BUILD_DIR", &target).current_dir(&source);
    let output = command.output().context("cannot run cargo")?;
    ensure!(
        output.status.success(),
        "the release before does not build:\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Binaries::in_dir(programs(&ours, &profile))
}
