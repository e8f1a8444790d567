//! Ack latency of ten tenants, alone and beside hostile clients, in turns: unauthenticated clients
//! with slow bodies, clients that never read, and a tenant that sends the largest bodies as fast as
//! it can.
//!
//! The hostile clients share the cores with ingest, so they cause a part of the latency.

use crate::{
    client::number,
    ingest_fixture::IngestFixture,
    interleaved::Series,
    report::{Bound::*, Report},
    tenants::{Tenants, Way},
};
use shared::stream::STREAM;
use std::{net::SocketAddr, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    task::JoinSet,
};

/// Webhooks per second of the measured tenants.
const RATE: f64 = 200.0;
const LINES: usize = 64;
const TENANTS: usize = 10;
const SLICE: Duration = Duration::from_secs(4);
const SETTLING: Duration = Duration::from_secs(1);
const ROUNDS: usize = 4;
/// Largest body that ingest accepts.
const LARGEST: usize = 1 << 20;
/// Pause of an unauthenticated client before it connects again.
const RECONNECT: Duration = Duration::from_millis(250);
/// Memory limit of an ingest's container, in MiB.
const MEMORY_LIMIT: f64 = 512.0;

/// Kind of hostile clients, with their number.
#[derive(Debug, Clone, Copy)]
enum Hostile {
    SlowBodies(usize),
    NeverRead(usize),
    LargestBodies(usize),
}

const ALL: [(&str, Hostile); 3] = [
    ("2,000 slow bodies", Hostile::SlowBodies(2_000)),
    ("1,000 clients that never read", Hostile::NeverRead(1_000)),
    ("a tenant that floods", Hostile::LargestBodies(16)),
];

/// Measures acks alone, and beside each kind of hostile clients.
pub async fn acks(report: &mut Report) -> anyhow::Result<()> {
    report.part("hostile");
    let fixture = IngestFixture::start(1).await?;
    let tenants = Tenants::random(TENANTS + 1)?;
    fixture.provision(&tenants).await?;
    let (measured, flooding) = tenants.split_last();
    let (measured, flooding) = (Arc::new(measured), Arc::new(flooding));
    let (ingest, _) = fixture.ingest_with("ingest", &[]).await?;
    let mut client = ingest.client(&measured, Way::Connection, LINES);
    let mut quiet = Series::default();
    let mut beside = <[Series; ALL.len()]>::default();
    for round in 0..=ROUNDS {
        let mut measure = async |series: &mut Series| {
            let (sent, _) = client.open(RATE, SETTLING, SLICE).await?;
            if round > 0 {
                series.push(sent.latency.value_at_quantile(0.99) as f64 / 1e3);
            }
            anyhow::Ok(())
        };
        measure(&mut quiet).await?;
        for ((_, hostile), series) in ALL.iter().zip(&mut beside) {
            let clients = start(*hostile, ingest.address(), &flooding);
            measure(series).await?;
            drop(clients);
        }
    }
    report.figure("ack p99, quiet", quiet.median(), "ms");
    for ((who, _), series) in ALL.iter().zip(&beside) {
        report.target(format!("ack p99 beside {who}"), series.median(), AtMost(50.0), "ms");
    }
    const MIB: f64 = 1024.0 * 1024.0;
    let peak = ingest.process.peak_resident()? as f64 / MIB;
    report.target("peak memory of ingest", peak, AtMost(MEMORY_LIMIT), "MiB");
    let stored = fixture.js.get_stream(STREAM).await?.cached_info().state.bytes as f64 / MIB;
    report.figure("stored in the stream, of all tenants", stored, "MiB");
    Ok(())
}

/// Starts clients, which end when the set is dropped.
fn start(hostile: Hostile, address: SocketAddr, flooding: &Arc<Tenants>) -> JoinSet<()> {
    let mut clients = JoinSet::new();
    match hostile {
        Hostile::SlowBodies(count) => (0..count).for_each(|n| {
            clients.spawn(async move {
                loop {
                    let _closed = send_slow_body(address, n).await;
                    tokio::time::sleep(RECONNECT).await;
                }
            });
        }),
        Hostile::NeverRead(count) => (0..count).for_each(|_| {
            clients.spawn(async move {
                loop {
                    let _closed = flood(address).await;
                    tokio::time::sleep(RECONNECT).await;
                }
            });
        }),
        Hostile::LargestBodies(count) => (0..count).for_each(|_| {
            let flooding = Arc::clone(flooding);
            clients.spawn(async move {
                loop {
                    if sign(address, &flooding).await.is_err() {
                        tokio::time::sleep(RECONNECT).await;
                    }
                }
            });
        }),
    }
    clients
}

/// Sends the beginning of a body with an invalid signature, and waits until the server closes the
/// connection. Every other body is large.
async fn send_slow_body(address: SocketAddr, n: usize) -> std::io::Result<()> {
    let (length, part) = if n.is_multiple_of(2) { (9, 1) } else { (LARGEST, 64 << 10) };
    let mut stream = TcpStream::connect(address).await?;
    let head = format!(
        "POST /api/v1/webhooks/{:032x} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
         content-length: {length}\r\nx-slack-signature: v0={:064x}\r\nx-slack-request-timestamp: {}\r\n\r\n",
        1,
        1,
        tests::slack::unix_now(),
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(&vec![b'x'; part]).await?;
    let _refusal = stream.read(&mut [0; 1024]).await?;
    Ok(())
}

/// Sends requests without reading responses, until the server closes the connection.
async fn flood(address: SocketAddr) -> std::io::Result<()> {
    let socket = TcpSocket::new_v4()?;
    socket.set_recv_buffer_size(4 * 1024)?;
    let mut stream = socket.connect(address).await?;
    let requests = "GET /nothing HTTP/1.1\r\nhost: a\r\n\r\n".repeat(100);
    loop {
        stream.write_all(requests.as_bytes()).await?;
    }
}

/// Sends a webhook of the largest size, and reads the answer.
async fn sign(address: SocketAddr, tenants: &Tenants) -> std::io::Result<()> {
    let mut request = Vec::new();
    tenants.write_sized(Way::Connection, number(), LARGEST, &mut request);
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(&request).await?;
    let _answer = stream.read(&mut [0; 1024]).await?;
    Ok(())
}
