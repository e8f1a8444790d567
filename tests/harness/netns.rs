//! Network namespaces with a link that can be disconnected, so that packets are lost.
//!
//! Needs root, Linux and `ip`; the error names what is missing. The other end of the link is an
//! address of this machine, on which a [`crate::proxy::Proxy`] may listen. Dropping a [`Namespace`]
//! removes it.

use anyhow::{Context, ensure};
use std::{
    net::Ipv4Addr,
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
        let mut namespace =
            Self { name: name.clone(), near: near.clone(), here: String::new(), ip };
        namespace.ip(&["netns", "add", &name])?;
        namespace.ip(&["link", "add", &near, "type", "veth", "peer", "name", &far])?;
        let index = std::fs::read_to_string(format!("/sys/class/net/{near}/ifindex"))?;
        let [here, there] = addresses(index.trim().parse()?).map(|address| address.to_string());
        namespace.here.clone_from(&here);
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

/// Returns the addresses of both ends of a link, from the index of its interface, which no other
/// interface of this machine has. 198.18.0.0/15 is reserved for network tests (RFC 2544).
fn addresses(index: u32) -> [Ipv4Addr; 2] {
    let network = u32::from(Ipv4Addr::new(198, 18, 0, 0)) + index % (1 << 15) * 4;
    [Ipv4Addr::from(network + 1), Ipv4Addr::from(network + 2)]
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _already_removed = self.ip(&["netns", "del", &self.name]);
        let _removed_with_namespace = self.ip(&["link", "del", &self.near]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn separates_links() {
        let all: BTreeSet<_> = (1..=1 << 15).flat_map(addresses).collect();
        assert_eq!(all.len(), 2 << 15);
        let [first, last] = [1, (1 << 15) - 1].map(|index| addresses(index).map(|a| a.to_string()));
        assert_eq!(first, ["198.18.0.5", "198.18.0.6"]);
        assert_eq!(last, ["198.19.255.253", "198.19.255.254"]);
    }
}
