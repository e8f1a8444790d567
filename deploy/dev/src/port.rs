//! Free loopback ports that are likely to stay free while a server restarts.
//!
//! Port 0 would give a port in the ephemeral range, which any outgoing connection may take while a
//! server is down. So ports are chosen at random below that range, and probed.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, TcpListener};
use std::sync::{Mutex, PoisonError};

use anyhow::Context as _;

const FIRST: u16 = 20_000;
const COUNT: u16 = 12_000;
const ATTEMPTS_MAX: usize = 200;

/// Ports that this process has chosen. A server that is starting has not bound its port yet.
static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());

/// Returns a free port of 127.0.0.1, and no port twice.
///
/// # Errors
/// If no free port is found.
pub fn free() -> anyhow::Result<u16> {
    let mut given = GIVEN.lock().unwrap_or_else(PoisonError::into_inner);
    for _ in 0..ATTEMPTS_MAX {
        let random = getrandom::u32().context("failed to choose a random port")?;
        let offset = u16::try_from(random % u32::from(COUNT)).context("an offset below 12000")?;
        let port = FIRST + offset;
        if !given.contains(&port) && TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            given.insert(port);
            return Ok(port);
        }
    }
    anyhow::bail!("no free port on 127.0.0.1 from {FIRST} to {}", FIRST + COUNT - 1)
}
