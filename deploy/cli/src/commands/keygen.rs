//! `tidegate keygen`: generates the keys of a new installation as files that settings can name.
//!
//! Writes two keyrings, an nkey seed for each NATS user, and their public keys as an environment
//! file for NATS servers. Never overwrites a file: values encrypted with a lost key cannot be
//! decrypted. With `--by-role`, each process has its own folder with only the keys that it needs.

use crate::output;
use anyhow::{Context, ensure};
use nkeys::KeyPair;
use shared::{runtime::config, secrets::KeyRing};
use std::{
    fs::{self, OpenOptions},
    io::{ErrorKind, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

/// NATS users with an nkey.
const USERS: [&str; 4] = ["ingest", "worker", "operator", "control"];
/// Files in the folder of each role, with `--by-role`.
const ROLES: [(&str, &[&str]); 5] = [
    ("ingest", &["signing.keys", "nats-ingest.seed"]),
    ("worker", &["signing.keys", "token.keys", "nats-worker.seed"]),
    ("operator", &["signing.keys", "token.keys", "nats-operator.seed"]),
    ("control", &["signing.keys", "token.keys", "nats-control.seed"]),
    ("nats", &[PUBLIC_KEYS]),
];
/// Environment file with the public keys that the configuration of NATS refers to.
const PUBLIC_KEYS: &str = "nats-users.env";

/// Arguments of `tidegate keygen`.
#[derive(Debug, clap::Args)]
pub struct Keygen {
    /// Folder for the files, created if necessary.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Name of the first key of the keyrings.
    #[arg(long, value_name = "NAME", default_value = "k1", value_parser = config::key_id)]
    key_id: String,
    /// Also copy the keys that each process needs to its own folder: ingest, worker, operator,
    /// control or nats.
    #[arg(long)]
    by_role: bool,
    /// Succeed without changes if the folder already has keys.
    #[arg(long)]
    if_missing: bool,
}

impl Keygen {
    /// Runs the command.
    pub fn run(self) -> anyhow::Result<()> {
        let out = &self.out;
        let complete = out.join(PUBLIC_KEYS); // written after the other keys, before the folders of roles
        if self.if_missing && complete.exists() {
            return Ok(output::print_line(&format!("{} already has keys", out.display()))?);
        }
        fs::create_dir_all(out)
            .with_context(|| format!("failed to create folder {}", out.display()))?;
        for ring in ["signing.keys", "token.keys"] {
            write(&out.join(ring), &KeyRing::generate(&self.key_id)?, 0o600)?;
        }
        let mut public = String::new();
        for user in USERS {
            let pair = KeyPair::new_user();
            write(&out.join(format!("nats-{user}.seed")), &pair.seed()?, 0o600)?;
            public += &format!("TIDEGATE_{}_NKEY={}\n", user.to_uppercase(), pair.public_key());
        }
        write(&complete, &public, 0o644)?;
        for (role, files) in ROLES.iter().filter(|_| self.by_role) {
            let folder = out.join(role);
            fs::create_dir(&folder)
                .with_context(|| format!("failed to create folder {}", folder.display()))?;
            for file in *files {
                fs::copy(out.join(file), folder.join(file))
                    .with_context(|| format!("failed to copy {file} for {role}"))?;
            }
        }
        let (out, seeds) = (out.display(), USERS.len());
        let line = format!("{out}: two keyrings, {seeds} seeds, {PUBLIC_KEYS}");
        Ok(output::print_line(&line)?)
    }
}

/// Writes a new file. Returns an error if it exists.
fn write(path: &Path, text: &str, mode: u32) -> anyhow::Result<()> {
    let opened = OpenOptions::new().write(true).create_new(true).mode(mode).open(path);
    let exists = opened.as_ref().is_err_and(|error| error.kind() == ErrorKind::AlreadyExists);
    ensure!(
        !exists,
        "{} exists, and keys are never overwritten; pass another folder with --out",
        path.display()
    );
    let written = opened.and_then(|mut file| file.write_all(text.as_bytes()));
    written.with_context(|| format!("failed to write {}", path.display()))
}
