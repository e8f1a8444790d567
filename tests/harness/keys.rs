//! Who may connect to NATS, as keys of one test.
//!
//! In: a directory. Out: a seed file for each user, as processes are given them, and the public keys that a server knows them by.

use crate::guard::make_dir;
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
    /// The operator's command line.
    Operator,
    /// The tests, who may do everything.
    Tests,
}

/// Everybody.
const USERS: [User; 4] = [User::Ingest, User::Worker, User::Operator, User::Tests];

/// A key for everybody.
#[derive(Debug)]
pub struct Keys {
    dir: PathBuf,
    public: Vec<String>,
}

impl User {
    /// As it stands in names of files and inboxes.
    pub fn name(self) -> &'static str {
        match self {
            User::Ingest => "ingest",
            User::Worker => "worker",
            User::Operator => "operator",
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
            fs::write(dir.join(user.name()), pair.seed()?).context("a seed can't be written")?;
            public.push(pair.public_key());
        }
        Ok(Self { dir: dir.to_owned(), public })
    }

    /// The file that proves who somebody is.
    pub fn file(&self, user: User) -> PathBuf {
        self.dir.join(user.name())
    }

    pub(crate) fn public(&self, user: User) -> &str {
        &self.public[user as usize]
    }

    /// To connect as somebody, as the product does: with an inbox of one's own.
    ///
    /// # Errors
    /// When the seed is gone.
    pub fn options(&self, user: User) -> anyhow::Result<ConnectOptions> {
        let seed = fs::read_to_string(self.file(user)).context("a seed can't be read")?;
        let inbox = format!("_INBOX_{}", user.name());
        Ok(ConnectOptions::with_nkey(seed).custom_inbox_prefix(inbox))
    }
}
