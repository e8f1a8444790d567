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
    fs::{self, File, OpenOptions},
    io::Write,
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
    /// Succeed without changes if the folder already has keys, and continue an interrupted run.
    #[arg(long)]
    if_missing: bool,
}

impl Keygen {
    /// Runs the command.
    pub fn run(self) -> anyhow::Result<()> {
        let out = &self.out;
        create_folder(out)?;
        // Two runs at the same time would mix their keys.
        let lock = File::open(out).and_then(|folder| folder.lock().map(|()| folder));
        let _lock = lock.with_context(|| format!("failed to lock folder {}", out.display()))?;
        let complete = out.join(PUBLIC_KEYS); // written last
        if self.if_missing && complete.exists() {
            return Ok(output::print_line(&format!("{} already has keys", out.display()))?);
        }
        for ring in ["signing.keys", "token.keys"] {
            self.write(&out.join(ring), &KeyRing::generate(&self.key_id)?, 0o600)?;
        }
        let mut public = String::new();
        for user in USERS {
            let file = out.join(format!("nats-{user}.seed"));
            self.write(&file, &KeyPair::new_user().seed()?, 0o600)?;
            let key = KeyPair::from_seed(&read(&file)?);
            let key = key.with_context(|| format!("{} is no nkey seed", file.display()))?;
            public += &format!("TIDEGATE_{}_NKEY={}\n", user.to_uppercase(), key.public_key());
        }
        for (role, files) in ROLES.iter().filter(|_| self.by_role) {
            let folder = out.join(role);
            create_folder(&folder)?;
            for file in *files {
                let (text, mode) = match *file {
                    PUBLIC_KEYS => (public.clone(), 0o644),
                    file => (read(&out.join(file))?, 0o600),
                };
                self.write(&folder.join(file), &text, mode)?;
            }
        }
        self.write(&complete, &public, 0o644)?;
        let (out, seeds) = (out.display(), USERS.len());
        let line = format!("{out}: two keyrings, {seeds} seeds, {PUBLIC_KEYS}");
        Ok(output::print_line(&line)?)
    }

    /// Writes a new file, completely or not at all. Keeps an existing file with `--if-missing`,
    /// which continues an interrupted run, and otherwise returns an error.
    fn write(&self, path: &Path, text: &str, mode: u32) -> anyhow::Result<()> {
        if path.exists() {
            ensure!(
                self.if_missing,
                "{} exists, and keys are never overwritten; pass another folder with --out, or \
                 --if-missing to continue an interrupted run",
                path.display()
            );
            return Ok(());
        }
        let new = path.with_added_extension("new");
        let write = || {
            let mut options = OpenOptions::new();
            let mut file = options.write(true).create(true).truncate(true).mode(mode).open(&new)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&new, path)
        };
        write().with_context(|| format!("failed to write {}", path.display()))
    }
}

fn create_folder(path: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(path).with_context(|| format!("failed to create folder {}", path.display()))
}

fn read(path: &Path) -> anyhow::Result<String> {
    fs::read_to_string(path).with_context(|| format!("failed to read {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::env;

    /// A run with `--if-missing` completes one that was killed after any file, and keeps its keys.
    #[test]
    fn continues_interrupted_run() {
        let out = env::temp_dir().join(format!("tidegate-keygen-{}", std::process::id()));
        let run = || {
            let (out, key_id) = (out.clone(), "k1".to_owned());
            Keygen { out, key_id, by_role: true, if_missing: true }.run()
        };
        run().expect("keys");
        let names = |role: &(&str, &[&str])| {
            role.1.iter().map(|file| format!("{}/{file}", role.0)).collect::<Vec<_>>()
        };
        let mut files = ["signing.keys", "token.keys"].map(str::to_owned).to_vec();
        files.extend(USERS.map(|user| format!("nats-{user}.seed")));
        files.extend(ROLES.iter().flat_map(names));
        files.push(PUBLIC_KEYS.to_owned());
        for kept in (0..files.len()).rev() {
            let keys = |file: &String| read(&out.join(file)).expect("a file");
            let before: Vec<_> = files[..kept].iter().map(keys).collect();
            for file in &files[kept..] {
                fs::remove_file(out.join(file)).expect("removed");
            }
            fs::write(out.join(&files[kept]).with_added_extension("new"), "k1:").expect("written");
            run().expect("completed");
            assert_eq!(files[..kept].iter().map(keys).collect::<Vec<_>>(), before);
            for (role, own) in &ROLES {
                for file in *own {
                    assert_eq!(read(&out.join(role).join(file)).ok(), read(&out.join(file)).ok());
                }
            }
        }
        let (out_again, key_id) = (out.clone(), "k1".to_owned());
        let again = Keygen { out: out_again, key_id, by_role: true, if_missing: false }.run();
        assert!(again.expect_err("keys exist").to_string().contains("signing.keys exists, "));
        fs::remove_dir_all(&out).expect("removed");
    }
}
