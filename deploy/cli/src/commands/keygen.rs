//! `tidegate keygen`: every key that a new installation needs, as files that settings can name.
//!
//! Out: two key rings, a seed for each of NATS's users, and their public keys as an environment
//! for NATS's servers.
//! Nothing that is there is ever overwritten: a key that is lost takes what it sealed with it.

use anyhow::{Context, ensure};
use nkeys::KeyPair;
use shared::{config, secrets::KeyRing};
use std::{
    fs::{self, OpenOptions},
    io::{ErrorKind, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

/// Who connects to NATS.
const USERS: [&str; 3] = ["ingest", "worker", "operator"];
/// The environment that NATS's configuration names them by.
const PUBLIC_KEYS: &str = "nats-users.env";

/// Settings of `tidegate keygen`.
#[derive(Debug, clap::Args)]
pub struct Keygen {
    /// The folder to write them to.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Name of the rings' first key.
    #[arg(long, value_name = "NAME", default_value = "k1", value_parser = config::name)]
    key_id: String,
    /// Leave a folder that has them as it is, and succeed.
    #[arg(long)]
    if_missing: bool,
}

impl Keygen {
    /// Runs it.
    pub fn run(self) -> anyhow::Result<()> {
        let out = &self.out;
        let complete = out.join(PUBLIC_KEYS); // written last
        if self.if_missing && complete.exists() {
            println!("{} has keys", out.display());
            return Ok(());
        }
        fs::create_dir_all(out).with_context(|| format!("{} can't be made", out.display()))?;
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
        println!("{}: two key rings, {} seeds, {PUBLIC_KEYS}", out.display(), USERS.len());
        Ok(())
    }
}

fn write(path: &Path, text: &str, mode: u32) -> anyhow::Result<()> {
    let opened = OpenOptions::new().write(true).create_new(true).mode(mode).open(path);
    let there = opened.as_ref().is_err_and(|error| error.kind() == ErrorKind::AlreadyExists);
    ensure!(
        !there,
        "{} is there already: keys are never overwritten; name another folder",
        path.display()
    );
    let written = opened.and_then(|mut file| file.write_all(text.as_bytes()));
    written.with_context(|| format!("{} can't be written", path.display()))
}
