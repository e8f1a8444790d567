//! NATS keys of the users of one test.
//!
//! Each user has a seed file for its processes, and a public key in the configuration of the
//! server.

use crate::run_dir::make_dir;
use anyhow::Context;
use async_nats::ConnectOptions;
use nkeys::KeyPair;
use std::{
    fs,
    path::{Path, PathBuf},
};

/// A user of NATS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum User {
    /// An ingest.
    Ingest,
    /// A worker.
    Worker,
    /// The command line of operators.
    Operator,
    /// The control API.
    Control,
    /// The tests, with all permissions.
    Tests,
}

/// All users.
const USERS: [User; 5] = [User::Ingest, User::Worker, User::Operator, User::Control, User::Tests];

/// A key for each user.
#[derive(Debug)]
pub struct Keys {
    dir: PathBuf,
    public: Vec<String>,
}

impl User {
    /// Returns the name for files and inboxes.
    pub fn name(self) -> &'static str {
        match self {
            User::Ingest => "ingest",
            User::Worker => "worker",
            User::Operator => "operator",
            User::Control => "control",
            User::Tests => "tests",
        }
    }
}

impl Keys {
    pub(crate) fn generate(dir: &Path) -> anyhow::Result<Self> {
        make_dir(dir)?;
        let mut public = Vec::new();
        for user in USERS {
            let pair = KeyPair::new_user();
            fs::write(dir.join(user.name()), pair.seed()?)
                .context("failed to write the seed file of a NATS user")?;
            public.push(pair.public_key());
        }
        Ok(Self { dir: dir.to_owned(), public })
    }

    /// Returns the path of the seed file.
    pub fn file(&self, user: User) -> PathBuf {
        self.dir.join(user.name())
    }

    pub(crate) fn public(&self, user: User) -> &str {
        &self.public[user as usize]
    }

    /// Returns the options with which the product connects: the user's key and inbox prefix.
    ///
    /// # Errors
    /// If the seed file is missing.
    pub fn options(&self, user: User) -> anyhow::Result<ConnectOptions> {
        let seed = fs::read_to_string(self.file(user))
            .context("failed to read the seed file of a NATS user")?;
        let inbox = format!("_INBOX_{}", user.name());
        Ok(ConnectOptions::with_nkey(seed).custom_inbox_prefix(inbox))
    }
}
