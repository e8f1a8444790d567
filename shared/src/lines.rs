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
    sync::mpsc,
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
/// What is left at the end gets so long.
const END: Duration = Duration::from_millis(1_500);

/// Starts the thread. Gives where lines go in, how many were dropped, and what writes the rest when it is dropped.
pub(crate) fn to_stdout() -> (NonBlocking, Dropped, Rest) {
    let (lines, rest) = NonBlockingBuilder::default()
        .buffered_lines_limit(WAITING_MAX)
        .lossy(true)
        .thread_name("log")
        .finish(Paced(BufWriter::with_capacity(WRITE_BYTES, io::stdout())));
    let dropped = Dropped(lines.error_counter());
    (lines, dropped, Rest(Some(rest)))
}

/// How many lines were dropped since the start, as nobody took them: `log_lines_dropped_total`.
#[derive(Debug, Clone)]
pub struct Dropped(ErrorCounter);

impl Collector for Dropped {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let dropped = ConstCounter::new(self.0.dropped_lines() as u64);
        let help = "Lines of the log that were dropped, as nobody took them";
        let type_ = dropped.metric_type();
        dropped.encode(encoder.encode_descriptor("log_lines_dropped", help, None, type_)?)
    }
}

struct Paced(BufWriter<Stdout>);

impl Write for Paced {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.write(line)
    }

    /// Called when no line waits. What comes during the pause goes out together.
    fn flush(&mut self) -> io::Result<()> {
        let written = self.0.flush();
        thread::sleep(PAUSE);
        written
    }
}

/// Writes what is left, but does not wait for ever: with its queue full and nobody reading, the library would.
pub(crate) struct Rest(Option<WorkerGuard>);

impl Drop for Rest {
    fn drop(&mut self) {
        let rest = self.0.take();
        let (written, wait) = mpsc::channel();
        thread::spawn(move || {
            drop(rest);
            let _ = written.send(()); // nobody waits any more
        });
        let _ = wait.recv_timeout(END); // the process ends all the same
    }
}
