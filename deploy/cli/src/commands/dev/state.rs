//! Folder of the state of `tidegate dev`: keys, data, logs, and settings for other commands.

use crate::dev_settings::{self, write_private};
use anyhow::{Context, ensure};
use dev::run_dir;
use shared::domain::ConnectionId;
use std::{
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

/// Postgres roles with a password and a URL file.
pub const ROLES: [&str; 4] = ["owner", "worker", "operator", "control"];

/// Locked folder of the state. At most one `tidegate dev` uses a folder.
pub struct State {
    dir: PathBuf,
    _lock: File,
}

impl State {
    /// Opens and locks a folder, and creates it if necessary.
    pub fn open(dir: Option<&Path>) -> anyhow::Result<Self> {
        let dir = dev_settings::state_dir(dir)?;
        run_dir::make_dir(&dir)?;
        for private in ["keys", "logs"] {
            let path = dir.join(private);
            let made = DirBuilder::new().recursive(true).mode(0o700).create(&path);
            made.with_context(|| format!("failed to create folder {}", path.display()))?;
        }
        let path = dir.join("lock");
        let lock = OpenOptions::new().create(true).append(true).open(&path);
        let lock = lock.with_context(|| format!("failed to write {}", path.display()))?;
        let locked = lock.try_lock();
        ensure!(
            !matches!(locked, Err(TryLockError::WouldBlock)),
            "tidegate dev is already running in {}; stop it, or pass another folder with --state",
            dir.display()
        );
        locked.with_context(|| format!("failed to lock {}", path.display()))?;
        Ok(Self { dir, _lock: lock })
    }

    /// Returns the path of a file or folder in the folder of the state.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Returns the path of a log file.
    pub fn log(&self, name: &str) -> PathBuf {
        self.dir.join("logs").join(format!("{name}.log"))
    }

    /// Returns the path of a file in the folder of keys.
    pub fn key(&self, name: &str) -> PathBuf {
        self.dir.join("keys").join(name)
    }

    /// Returns the password of a Postgres role. Creates it if necessary.
    pub fn password(&self, role: &str) -> anyhow::Result<String> {
        let path = self.key(&format!("postgres-{role}.password"));
        if !path.is_file() {
            write_private(&path, &ConnectionId::random()?.to_string())?;
        }
        fs::read_to_string(&path).with_context(|| format!("failed to read {}", path.display()))
    }

    /// Returns the public keys of the NATS users, by the variables that the permissions name.
    pub fn nats_users(&self) -> anyhow::Result<Vec<(String, String)>> {
        let path = self.key("nats-users.env");
        let text = fs::read_to_string(&path)
            .with_context(|| format!("failed to read {}", path.display()))?;
        let pairs = text.lines().filter_map(|line| line.split_once('='));
        Ok(pairs.map(|(name, key)| (name.to_owned(), key.to_owned())).collect())
    }

    /// Returns the settings of a role: URLs of the servers, credentials and keyrings.
    pub fn settings(&self, role: &str, nats_url: &str) -> Vec<(String, String)> {
        let user = if role == "owner" { "operator" } else { role };
        let path = |name: &str| self.key(name).display().to_string();
        let mut settings = vec![
            ("TIDEGATE_NATS_URL", nats_url.to_owned()),
            ("TIDEGATE_NATS_NKEY_FILE", path(&format!("nats-{user}.seed"))),
            ("TIDEGATE_SIGNING_SECRET_KEYRING", format!("file:{}", path("signing.keys"))),
        ];
        if role != "ingest" {
            settings.push(("TIDEGATE_TOKEN_KEYRING", format!("file:{}", path("token.keys"))));
            let url = format!("file:{}", path(&format!("{role}.url")));
            settings.push(("TIDEGATE_POSTGRES_URL", url));
        }
        settings.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }

    /// Writes the operator's settings to a file that shells can source. Returns its path.
    pub fn write_operator_settings(
        &self,
        settings: &[(String, String)],
    ) -> anyhow::Result<PathBuf> {
        dev_settings::write(&self.dir, settings)
    }
}

impl Drop for State {
    fn drop(&mut self) {
        // The servers that the settings name have stopped.
        let _may_be_absent = fs::remove_file(dev_settings::file(&self.dir));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locks_folder_once() {
        let dir = std::env::temp_dir().join(format!("tidegate-state-{}", std::process::id()));
        let state = State::open(Some(&dir)).expect("a folder");
        let error = State::open(Some(&dir)).err().expect("locked").to_string();
        assert!(error.contains("pass another folder with --state"), "{error}");
        let password = state.password("worker").expect("a password");
        assert_eq!(state.password("worker").expect("the same"), password);
        drop(state);
        drop(State::open(Some(&dir)).expect("unlocked"));
        fs::remove_dir_all(&dir).expect("removed");
    }
}
