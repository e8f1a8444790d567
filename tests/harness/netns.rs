//! A network of its own for a process, and a cable to it that can be pulled: real packets, really lost.
//!
//! In: a machine that lets us (root, Linux, `ip`). Out: a namespace with one link to here, or the reason why not. The other side of
//! the link is an address of this machine, on which a [`crate::proxy::Proxy`] may listen. Removed when dropped.

use anyhow::{Context, ensure};
use std::{
    path::PathBuf,
    process::Command,
    sync::atomic::{AtomicU8, Ordering},
};

/// A namespace.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    near: String,
    here: String,
    ip: PathBuf,
}

static NUMBER: AtomicU8 = AtomicU8::new(0);

impl Namespace {
    /// Makes one.
    ///
    /// # Errors
    /// Why this machine has none for us.
    pub fn new() -> anyhow::Result<Self> {
        ensure!(rustix::process::geteuid().is_root(), "network namespaces need root");
        let paths = ["/usr/sbin/ip", "/sbin/ip", "/usr/bin/ip"].map(PathBuf::from);
        let ip = paths.into_iter().find(|path| path.is_file()).context("there is no `ip` here")?;
        let (process, number) = (std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let name = format!("tidegate-{process}-{number}");
        let (near, far) = (format!("tg{process}a{number}"), format!("tg{process}b{number}"));
        // Addresses that are nobody's: 198.18.0.0/15 is for tests of networks.
        let base = (process % 16_000) * 4 + 4 * u32::from(number) % 64_000;
        let net = format!("198.18.{}", base / 256 % 256);
        let (here, there) =
            (format!("{net}.{}", (base % 256) | 1), format!("{net}.{}", (base % 256) | 2));
        let namespace = Self { name: name.clone(), near: near.clone(), here: here.clone(), ip };
        namespace.ip(&["netns", "add", &name])?;
        namespace.ip(&["link", "add", &near, "type", "veth", "peer", "name", &far])?;
        namespace.ip(&["link", "set", &far, "netns", &name])?;
        namespace.ip(&["addr", "add", &format!("{here}/30"), "dev", &near])?;
        namespace.ip(&["link", "set", &near, "up"])?;
        for inside in [
            ["addr", "add", &format!("{there}/30"), "dev", &far].as_slice(),
            &["link", "set", &far, "up"],
            &["link", "set", "lo", "up"],
        ] {
            namespace.ip(&[&["-n", name.as_str()][..], inside].concat())?;
        }
        Ok(namespace)
    }

    /// This machine, as seen from in there.
    pub fn here(&self) -> &str {
        &self.here
    }

    /// What a program is started by, to run in there: `ip netns exec <name>`.
    pub fn prefix(&self) -> (PathBuf, Vec<String>) {
        (self.ip.clone(), ["netns", "exec", &self.name].map(str::to_owned).into())
    }

    /// Pulls the cable: nothing passes, and nobody is told.
    ///
    /// # Errors
    /// What `ip` said.
    pub fn part(&self) -> anyhow::Result<()> {
        self.ip(&["link", "set", &self.near, "down"])
    }

    /// What is sent from in there is lost; what is sent to it arrives.
    ///
    /// # Errors
    /// What `ip` said.
    pub fn part_one_way(&self) -> anyhow::Result<()> {
        self.ip(&["-n", &self.name, "route", "add", "blackhole", &format!("{}/32", self.here)])
    }

    /// A good link again.
    ///
    /// # Errors
    /// What `ip` said.
    pub fn heal(&self) -> anyhow::Result<()> {
        let blackhole = format!("{}/32", self.here);
        let _was_none = self.ip(&["-n", &self.name, "route", "del", "blackhole", &blackhole]);
        self.ip(&["link", "set", &self.near, "up"])
    }

    fn ip(&self, args: &[&str]) -> anyhow::Result<()> {
        let done = Command::new(&self.ip).args(args).output().context("`ip` does not run")?;
        let said = String::from_utf8_lossy(&done.stderr);
        ensure!(done.status.success(), "ip {}: {}", args.join(" "), said.trim());
        Ok(())
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _gone_already = self.ip(&["netns", "del", &self.name]);
        let _gone_with_it = self.ip(&["link", "del", &self.near]);
    }
}
