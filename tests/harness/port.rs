//! In: nothing. Out: a loopback port that is free now and likely to be free again after a restart.
//!
//! Asking the kernel for port 0 gives one from the ephemeral range, where any outgoing connection may
//! take it while a killed server is down. So ports come from below that range, at random, probed.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, TcpListener};
use std::sync::{Mutex, PoisonError};

use anyhow::Context as _;

const FIRST: u16 = 20_000;
const COUNT: u16 = 12_000;
const TRIES: usize = 200;

/// Ports given out by this process: a server still starting has not bound its own yet.
static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());

/// A free port of 127.0.0.1, given out once per process.
///
/// # Errors
/// When no free port is found.
pub fn free() -> anyhow::Result<u16> {
    let mut given = GIVEN.lock().unwrap_or_else(PoisonError::into_inner);
    for _ in 0..TRIES {
        let random = getrandom::u32().context("no randomness for a port")?;
        let offset = u16::try_from(random % u32::from(COUNT)).context("an offset below 12000")?;
        let port = FIRST + offset;
        if !given.contains(&port) && TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            given.insert(port);
            return Ok(port);
        }
    }
    anyhow::bail!("no free port on 127.0.0.1 from {FIRST} to {}", FIRST + COUNT - 1)
}
