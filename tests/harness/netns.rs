//! Network namespaces with a link that can be disconnected, so that packets are lost.
//!
//! Needs root, Linux and `ip`; the error names what is missing. The other end of the link is an
//! address of this machine, on which a [`crate::proxy::Proxy`] may listen. Dropping a [`Namespace`]
//! removes it.

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
    /// Creates a namespace.
    ///
    /// # Errors
    /// The reason why this machine can't create one.
    pub fn new() -> anyhow::Result<Self> {
        ensure!(rustix::process::geteuid().is_root(), "network namespaces need root");
        let paths = ["/usr/sbin/ip", "/sbin/ip", "/usr/bin/ip"].map(PathBuf::from);
        let ip = paths
            .into_iter()
            .find(|path| path.is_file())
            .context("`ip` is not installed; install iproute2")?;
        let (process, number) = (std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let name = format!("tidegate-{process}-{number}");
        let (near, far) = (format!("tg{process}a{number}"), format!("tg{process}b{number}"));
        // 198.18.0.0/15 is reserved for network tests (RFC 2544).
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

    /// Returns the address of this machine, as programs in the namespace reach it.
    pub fn here(&self) -> &str {
        &self.here
    }

    /// Returns the command prefix of a program in the namespace: `ip netns exec <name>`.
    pub fn prefix(&self) -> (PathBuf, Vec<String>) {
        (self.ip.clone(), ["netns", "exec", &self.name].map(str::to_owned).into())
    }

    /// Disconnects the link: packets are dropped in both directions.
    ///
    /// # Errors
    /// The output of `ip`.
    pub fn disconnect(&self) -> anyhow::Result<()> {
        self.ip(&["link", "set", &self.near, "down"])
    }

    /// Drops the packets from the namespace; packets to it arrive.
    ///
    /// # Errors
    /// The output of `ip`.
    pub fn disconnect_outbound(&self) -> anyhow::Result<()> {
        self.ip(&["-n", &self.name, "route", "add", "blackhole", &format!("{}/32", self.here)])
    }

    /// Reconnects the link.
    ///
    /// # Errors
    /// The output of `ip`.
    pub fn heal(&self) -> anyhow::Result<()> {
        let blackhole = format!("{}/32", self.here);
        let _not_set = self.ip(&["-n", &self.name, "route", "del", "blackhole", &blackhole]);
        self.ip(&["link", "set", &self.near, "up"])
    }

    fn ip(&self, args: &[&str]) -> anyhow::Result<()> {
        let done = Command::new(&self.ip).args(args).output().context("failed to run `ip`")?;
        let errors = String::from_utf8_lossy(&done.stderr);
        ensure!(done.status.success(), "ip {} failed: {}", args.join(" "), errors.trim());
        Ok(())
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _already_removed = self.ip(&["netns", "del", &self.name]);
        let _removed_with_namespace = self.ip(&["link", "del", &self.near]);
    }
}
