//! Writer of log lines to standard output, on its own thread.
//!
//! Standard output may stall (a busy disk, a pipe without a reader), and webhooks must not wait for
//! it. Lines that don't fit in the queue are dropped and counted. The thread writes at most a few
//! hundred times a second: waking for every line would cost more than the writing.

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::counter::ConstCounter,
};
use std::{
    fmt,
    io::{self, BufWriter, Stdout, Write},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};
use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};

/// Maximum number of queued lines: about 2 MB, or a few tenths of a second at ingest's maximum
/// load.
const QUEUED_MAX: usize = 8_192;
/// Maximum bytes per write.
const WRITE_BYTES: usize = 64 * 1024;
/// Interval between two writes.
const WRITE_INTERVAL: Duration = Duration::from_millis(3);
/// Maximum duration of the final flush.
const FLUSH_TIMEOUT: Duration = Duration::from_millis(1_500);

/// Starts the thread. Returns the queue, the counter of dropped lines and the guard that flushes.
pub(crate) fn start() -> (NonBlocking, DroppedLines, LogFlushGuard) {
    let lost = Arc::<AtomicU64>::default();
    let out = BufWriter::with_capacity(WRITE_BYTES, io::stdout());
    let (lines, guard) = NonBlockingBuilder::default()
        .buffered_lines_limit(QUEUED_MAX)
        .lossy(true)
        .thread_name("log")
        .finish(PacedWriter { out, lost: Arc::clone(&lost) });
    let dropped = DroppedLines { unqueued: lines.error_counter(), unwritten: lost };
    (lines, dropped, LogFlushGuard(Some(guard)))
}

/// Counter of dropped lines since the start: `tidegate_log_lines_dropped_total`.
#[derive(Debug, Clone)]
pub struct DroppedLines {
    unqueued: ErrorCounter,
    unwritten: Arc<AtomicU64>,
}

impl Collector for DroppedLines {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let unqueued = self.unqueued.dropped_lines() as u64;
        let dropped = ConstCounter::new(unqueued + self.unwritten.load(Ordering::Relaxed));
        let help = "Log lines dropped because standard output stalled.";
        let type_ = dropped.metric_type();
        dropped.encode(encoder.encode_descriptor("log_lines_dropped", help, None, type_)?)
    }
}

/// Writer that limits its write rate. Never returns an error: the library would miss its stop
/// signal.
struct PacedWriter {
    out: BufWriter<Stdout>,
    lost: Arc<AtomicU64>,
}

impl Write for PacedWriter {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.out.write_all(line).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    /// Writes the buffer when the queue is empty. Lines of the following pause are written
    /// together.
    fn flush(&mut self) -> io::Result<()> {
        let _ = self.out.flush(); // failures are counted above
        #[expect(clippy::disallowed_methods, reason = "runs on its own thread")]
        thread::sleep(WRITE_INTERVAL);
        Ok(())
    }
}

/// Guard that flushes queued lines within a time limit. The library's guard would wait forever if
/// the queue is full and nothing reads standard output.
pub(crate) struct LogFlushGuard(Option<WorkerGuard>);

impl Drop for LogFlushGuard {
    fn drop(&mut self) {
        let guard = self.0.take();
        let (done, wait) = mpsc::channel();
        let flush = move || {
            drop(guard);
            let _ = done.send(()); // the receiver may have timed out
        };
        // Nothing is flushed if the thread fails to start.
        let _ = thread::Builder::new().name("log-end".into()).spawn(flush);
        let _ = wait.recv_timeout(FLUSH_TIMEOUT); // after the timeout the process ends anyway
    }
}
