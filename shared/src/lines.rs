//! Log lines on their way to standard output.
//!
//! In: lines, from any thread. Out: the same, by a thread of their own. What is behind standard output may stall (a disk
//! that is busy, a pipe that nobody reads), and no webhook may wait for that: what does not fit in the queue is
//! dropped and counted. That thread writes a few hundred times a second at most: woken for every line, it would cost more
//! than the writing.

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

/// Lines that wait at most: two megabytes, and some tenths of a second of all that an ingest can take.
const WAITING_MAX: usize = 8_192;
/// Bytes that are written at once, at most.
const WRITE_BYTES: usize = 64 * 1024;
/// Between two writes.
const PAUSE: Duration = Duration::from_millis(3);
/// What is left at the end gets so long at most, less if the queue is full and stays so.
const END: Duration = Duration::from_millis(1_500);

/// Starts the thread. Gives where lines go in, how many were dropped, and what writes the rest when it is dropped.
pub(crate) fn to_stdout() -> (NonBlocking, Dropped, Rest) {
    let lost = Arc::<AtomicU64>::default();
    let out = BufWriter::with_capacity(WRITE_BYTES, io::stdout());
    let (lines, rest) = NonBlockingBuilder::default()
        .buffered_lines_limit(WAITING_MAX)
        .lossy(true)
        .thread_name("log")
        .finish(Paced { out, lost: Arc::clone(&lost) });
    let dropped = Dropped { unqueued: lines.error_counter(), unwritten: lost };
    (lines, dropped, Rest(Some(rest)))
}

/// How many lines were dropped since the start, as nobody took them: `tidegate_log_lines_dropped_total`.
#[derive(Debug, Clone)]
pub struct Dropped {
    unqueued: ErrorCounter,
    unwritten: Arc<AtomicU64>,
}

impl Collector for Dropped {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let unqueued = self.unqueued.dropped_lines() as u64;
        let dropped = ConstCounter::new(unqueued + self.unwritten.load(Ordering::Relaxed));
        let help = "Lines of the log that were dropped, as nobody took them.";
        let type_ = dropped.metric_type();
        dropped.encode(encoder.encode_descriptor("log_lines_dropped", help, None, type_)?)
    }
}

/// Never fails: there is nowhere to say so, and the library would forget that it was told to end.
struct Paced {
    out: BufWriter<Stdout>,
    lost: Arc<AtomicU64>,
}

impl Write for Paced {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.out.write_all(line).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    /// Called when no line waits. What comes during the pause goes out together; what can't be written yet is kept.
    fn flush(&mut self) -> io::Result<()> {
        let _ = self.out.flush(); // what no longer fits is counted above
        thread::sleep(PAUSE);
        Ok(())
    }
}

/// Writes what is left, but does not wait for ever: with its queue full and nobody reading, the library would.
pub(crate) struct Rest(Option<WorkerGuard>);

impl Drop for Rest {
    fn drop(&mut self) {
        let rest = self.0.take();
        let (written, wait) = mpsc::channel();
        let ending = move || {
            drop(rest);
            let _ = written.send(()); // nobody waits any more
        };
        let _ = thread::Builder::new().name("log-end".into()).spawn(ending); // without it nothing is waited for
        let _ = wait.recv_timeout(END); // the process ends all the same
    }
}
