//! TCP links between processes that can be delayed, throttled, held and cut.
//!
//! Held bytes are not lost: they arrive when the link is healed, as after a network partition. A
//! cut resets connections, as a firewall or a crashing host does.

use crate::port;
use anyhow::Context;
use std::time::Duration;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, tcp::ReadHalf, tcp::WriteHalf},
    sync::watch,
    task::JoinSet,
};
use tokio_util::task::AbortOnDropHandle;

/// A link to a port of this machine.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    rules: watch::Sender<Rules>,
    _serving: AbortOnDropHandle<()>,
}

/// Direction of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the client.
    FromClient = 0,
    /// To the client.
    ToClient = 1,
}

#[derive(Debug, Clone, Default)]
struct Rules {
    delay: Duration,
    bytes_per_second: Option<u64>,
    held: [bool; 2],
    refused: bool,
    cuts: u64,
    abandoned: u64,
}

impl Proxy {
    /// Opens a link to a port.
    ///
    /// # Errors
    /// If no port is free.
    pub async fn to(target: u16) -> anyhow::Result<Self> {
        Self::at("127.0.0.1", target).await
    }

    /// Opens a link to a port, at another address of this machine.
    ///
    /// # Errors
    /// If no port is free at that address.
    pub async fn at(address: &str, target: u16) -> anyhow::Result<Self> {
        let port = port::free()?;
        let listener =
            TcpListener::bind((address, port)).await.context("failed to bind a port for a link")?;
        let (rules, watched) = watch::channel(Rules::default());
        let serving = AbortOnDropHandle::new(tokio::spawn(serve(listener, target, watched)));
        Ok(Self { port, rules, _serving: serving })
    }

    /// Returns the port of the link.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Delays all bytes, in both directions.
    pub fn delay(&self, by: Duration) {
        self.rules.send_modify(|rules| rules.delay = by);
    }

    /// Limits the bytes per second, in both directions.
    pub fn throttle(&self, bytes_per_second: u64) {
        self.rules.send_modify(|rules| rules.bytes_per_second = Some(bytes_per_second));
    }

    /// Holds all bytes in a direction. Connections stay half open.
    pub fn hold(&self, way: Direction) {
        self.rules.send_modify(|rules| rules.held[way as usize] = true);
    }

    /// Resets every connection. New connections work.
    pub fn reset(&self) {
        self.rules.send_modify(|rules| rules.cuts += 1);
    }

    /// Resets every connection and every new connection.
    pub fn cut(&self) {
        self.rules.send_modify(|rules| {
            rules.cuts += 1;
            rules.refused = true;
        });
    }

    /// Holds all bytes of existing connections for ever, without closing them. New connections
    /// work, as when another server takes over the address of a failed one.
    pub fn abandon(&self) {
        self.rules.send_modify(|rules| rules.abandoned += 1);
    }

    /// Removes all disturbances.
    pub fn heal(&self) {
        self.rules.send_modify(|rules| {
            let (cuts, abandoned) = (rules.cuts, rules.abandoned);
            *rules = Rules { cuts, abandoned, ..Rules::default() };
        });
    }
}

async fn serve(listener: TcpListener, target: u16, rules: watch::Receiver<Rules>) {
    let mut links = JoinSet::new(); // dropped with this task
    while let Ok((near, _)) = listener.accept().await {
        while links.try_join_next().is_some() {}
        if rules.borrow().refused {
            let _already_closed = near.set_zero_linger();
            continue;
        }
        links.spawn(link(near, target, rules.clone()));
    }
}

async fn link(mut near: TcpStream, target: u16, mut rules: watch::Receiver<Rules>) {
    let Ok(mut far) = TcpStream::connect(("127.0.0.1", target)).await else {
        let _already_closed = near.set_zero_linger();
        return;
    };
    let _best_effort = (near.set_nodelay(true), far.set_nodelay(true));
    let begun = rules.borrow().cuts;
    let (there, back) = (rules.clone(), rules.clone());
    let cut = {
        let (near_in, near_out) = near.split();
        let (far_in, far_out) = far.split();
        let passing = async {
            tokio::join!(
                pass(near_in, far_out, Direction::FromClient, there),
                pass(far_in, near_out, Direction::ToClient, back)
            )
        };
        tokio::select! {
            _ = passing => false,
            _ = rules.wait_for(|rules| rules.cuts != begun) => true,
        }
    };
    if cut {
        let _already_closed = (near.set_zero_linger(), far.set_zero_linger());
    }
}

/// Copies bytes in one direction, under the current rules, until one side closes.
async fn pass(
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    way: Direction,
    mut rules: watch::Receiver<Rules>,
) {
    let mut bytes = [0; 16 * 1024];
    let begun = rules.borrow().abandoned;
    loop {
        let count = match from.read(&mut bytes).await {
            Ok(count) if count > 0 => count,
            _ => break,
        };
        let now = rules.borrow().clone();
        let transfer_time = now
            .bytes_per_second
            .map_or(Duration::ZERO, |rate| Duration::from_secs_f64(count as f64 / rate as f64));
        if now.delay + transfer_time > Duration::ZERO {
            tokio::time::sleep(now.delay + transfer_time).await;
        }
        let passes = |rules: &Rules| !rules.held[way as usize] && rules.abandoned == begun;
        if rules.wait_for(passes).await.is_err() {
            break;
        }
        if to.write_all(&bytes[..count]).await.is_err() {
            break;
        }
    }
    let _already_closed = to.shutdown().await;
}
