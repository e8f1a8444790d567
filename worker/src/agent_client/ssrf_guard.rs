//! Limits agents to public addresses and the networks in TIDEGATE_AGENT_ALLOWED_NETWORKS.
//!
//! An organization chooses the URL of its agent, which must not lead into internal networks or to a
//! cloud's metadata service. Addresses are checked when a name is resolved, and the connection goes
//! to a checked address, so DNS rebinding has no effect. Calls without TLS are allowed only in the
//! named networks.

use ipnet::IpNet;
use reqwest::{
    Url,
    dns::{Addrs, Name, Resolve, Resolving},
};
use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

/// Address, port or URL form that agents may not have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0} is blocked for agents; TIDEGATE_AGENT_ALLOWED_NETWORKS may allow its network")]
pub struct BlockedAddressError(pub String);

/// Networks that are allowed besides public addresses.
#[derive(Debug, Clone, Default)]
pub struct Networks(Arc<[IpNet]>);

impl Networks {
    /// Creates the set of allowed networks. Public addresses are always allowed.
    pub fn new(named: Vec<IpNet>) -> Self {
        Self(named.into())
    }

    fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.0.iter().any(|network| network.contains(&address))
    }

    fn allows(&self, address: IpAddr, named_only: bool) -> bool {
        self.contains(address) || (!named_only && is_public(address))
    }

    /// Checks scheme, user info and port, and the host if it is an address. Returns whether the
    /// call is without TLS.
    pub fn check(&self, url: &Url) -> Result<bool, BlockedAddressError> {
        let is_plain_http = match url.scheme() {
            "https" => false,
            "http" => true,
            other => return Err(BlockedAddressError(format!("{other}:"))),
        };
        if !url.username().is_empty() || url.password().is_some() {
            return Err(BlockedAddressError("a URL with a user or password".into()));
        }
        // Ports below 1024 belong to other services, such as SSH and SMTP.
        if let Some(port @ ..1024) = url.port().filter(|port| ![80, 443].contains(port)) {
            return Err(BlockedAddressError(format!("port {port}")));
        }
        let host = url.host_str().unwrap_or_default();
        match host.trim_matches(['[', ']']).parse() {
            Ok(address) if !self.allows(address, is_plain_http) => {
                Err(BlockedAddressError(address.to_string()))
            }
            _ => Ok(is_plain_http),
        }
    }
}

/// Returns whether an address is public.
fn is_public(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    let special = address.is_private()
        || address.is_loopback()
        || address.is_link_local() // includes the metadata services of clouds
        || address.is_multicast()
        || address.is_documentation()
        || a == 0
        || a >= 240 // reserved, broadcast
        || (a == 100 && (64..128).contains(&b)) // carrier-grade NAT
        || (a == 198 && (b == 18 || b == 19)) // benchmarks
        || (a == 192 && b == 0 && c == 0)
        || (a == 192 && b == 88 && c == 99);
    !special
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    let [a, b, c, d, e, f, g, h] = address.segments();
    if [a, b, c, d, e, f] == [0x64, 0xff9b, 0, 0, 0, 0] {
        let [g, h] = [g.to_be_bytes(), h.to_be_bytes()];
        // NAT64 embeds an IPv4 address.
        return is_public_v4(Ipv4Addr::new(g[0], g[1], h[0], h[1]));
    }
    let special = match a {
        0x2001 => b < 0x200 || b == 0xdb8, // Teredo, ORCHID, benchmarks; documentation
        0x2002 => true,                    // 6to4
        0x3fff => b < 0x1000,              // documentation
        _ => false,
    };
    a & 0xe000 == 0x2000 && !special
}

/// Resolver that returns allowed addresses only.
pub struct GuardedResolver {
    pub lookup: Arc<dyn Resolve>,
    pub networks: Networks,
    /// True for calls without TLS: only the named networks are allowed.
    pub named_only: bool,
}

impl Resolve for GuardedResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let (networks, named_only) = (self.networks.clone(), self.named_only);
        let host = name.as_str().to_owned();
        let lookup = self.lookup.resolve(name);
        Box::pin(async move {
            let allowed: Vec<_> =
                lookup.await?.filter(|found| networks.allows(found.ip(), named_only)).collect();
            match allowed.is_empty() {
                true => Err(BlockedAddressError(host).into()),
                false => Ok(Box::new(allowed.into_iter()) as Addrs),
            }
        })
    }
}

/// Resolver of the operating system.
pub struct SystemResolver;

impl Resolve for SystemResolver {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            Ok(Box::new(found.collect::<Vec<_>>().into_iter()) as Addrs)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::SocketAddr;

    #[test]
    fn blocks_internal_addresses() {
        let networks = Networks::default();
        for url in [
            "https://127.0.0.1/",
            "https://127.1/",
            "https://2130706433/",
            "https://0x7f.0.0.1/",
            "https://0177.0.0.1/",
            "https://0/",
            "https://10.1.2.3/",
            "https://172.16.0.1/",
            "https://192.168.1.1/",
            "https://169.254.169.254/latest/meta-data/",
            "https://100.100.100.200/",
            "https://198.18.0.1/",
            "https://192.0.0.192/",
            "https://224.0.0.1/",
            "https://255.255.255.255/",
            "https://[::1]/",
            "https://[::]/",
            "https://[::ffff:127.0.0.1]/",
            "https://[::ffff:7f00:1]/",
            "https://[::127.0.0.1]/",
            "https://[64:ff9b::a9fe:a9fe]/",
            "https://[2002:7f00:1::]/",
            "https://[2001:0:7f00:1::]/",
            "https://[fd00:ec2::254]/",
            "https://[fe80::1]/",
            "https://[ff02::1]/",
            "https://user:pass@127.0.0.1:8443/",
            "https://user:pass@example.com/",
            "https://user@example.com/",
            "https://example.com:22/",
            "https://93.184.216.34:25/",
            "http://93.184.216.34/",
            "ftp://93.184.216.34/",
            "file:///etc/passwd",
        ] {
            let url: Url = url.parse().expect("a URL");
            assert!(networks.check(&url).is_err(), "{url}");
        }
        for url in [
            "https://93.184.216.34/",
            "https://[2606:2800:220:1::1]/",
            "https://example.com/",
            "https://example.com:8443/",
        ] {
            assert_eq!(networks.check(&url.parse().expect("a URL")), Ok(false), "{url}");
        }
    }

    #[test]
    fn allows_only_named_networks() {
        let networks = Networks::new(vec!["10.1.0.0/16".parse().expect("a network")]);
        for (url, open) in [
            ("http://10.1.2.3/", true),
            ("https://10.1.2.3/", true),
            ("https://[::ffff:10.1.2.3]/", true),
            ("http://10.2.2.3/", false),
            ("http://127.0.0.1/", false),
        ] {
            assert_eq!(networks.check(&url.parse().expect("a URL")).is_ok(), open, "{url}");
        }
    }

    /// Resolver that returns these addresses, one per call.
    struct Rebinding(std::sync::Mutex<Vec<SocketAddr>>);

    impl Resolve for Rebinding {
        fn resolve(&self, _: Name) -> Resolving {
            let next = self.0.lock().expect("no panic").remove(0);
            Box::pin(async move { Ok(Box::new(std::iter::once(next)) as Addrs) })
        }
    }

    #[tokio::test]
    async fn checks_every_resolution() {
        let answers = ["93.184.216.34:0", "127.0.0.1:0", "[::ffff:169.254.169.254]:0"];
        let answers = answers.map(|address| address.parse().expect("an address"));
        let lookup = Arc::new(Rebinding(std::sync::Mutex::new(answers.into())));
        let guard = GuardedResolver { lookup, networks: Networks::default(), named_only: false };
        let resolve = async || guard.resolve("agent.example".parse().expect("a name")).await;
        assert_eq!(resolve().await.map(Iterator::count).ok(), Some(1));
        for _ in 0..2 {
            let refused = resolve().await.err().expect("refused");
            assert!(refused.downcast_ref::<BlockedAddressError>().is_some(), "{refused}");
        }
    }
}
