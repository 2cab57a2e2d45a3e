//! Log lines are queued and written to stdout by our own thread. That of tracing-appender is woken for each line:
//! if it shares a core with the worker, that delays the very response that the line reports.

use std::io::{self, Write as _, stdout};
use std::mem::swap;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use metrics::counter;
use parking_lot::{Condvar, Mutex};

/// Bytes of lines that may be queued. If the reader stalls, this bounds memory without blocking requests.
const MAX_QUEUED_BYTES: usize = 4 * 1024 * 1024;
/// After each write, how long to collect lines for the next one.
const BATCH_INTERVAL: Duration = Duration::from_millis(2);
/// Bytes of buffer capacity that are kept from one write to the next.
const KEPT_CAPACITY: usize = 128 * 1024;
/// At the end, how long the reader has to take what is queued.
const FINISH_TIMEOUT: Duration = Duration::from_secs(1);

/// The queue of lines for stdout. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Lines(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Queue {
    bytes: Vec<u8>,
    /// Whether the next batch is the last.
    closed: bool,
    /// Whether the last batch was written.
    ended: bool,
}

impl Lines {
    /// Starts the thread that writes the lines.
    pub(super) fn start() -> io::Result<Self> {
        let lines = Self::default();
        let writer = lines.clone();
        thread::Builder::new().name("log".to_owned()).spawn(move || writer.write())?;
        Ok(lines)
    }

    /// Waits until the queued lines are written, but gives up on a reader that has stalled.
    pub fn finish(&self) {
        let mut queue = self.0.queue.lock();
        queue.closed = true;
        self.0.changed.notify_all();
        self.0.changed.wait_while_for(&mut queue, |queue| !queue.ended, FINISH_TIMEOUT);
    }

    /// Queues a line. Never waits for the reader: once the queue is full, lines are dropped and counted.
    pub(super) fn push(&self, line: &[u8]) {
        let mut queue = self.0.queue.lock();
        if queue.bytes.len() + line.len() > MAX_QUEUED_BYTES {
            return counter!("log_lines_dropped_total").increment(1);
        }
        queue.bytes.extend_from_slice(line);
        drop(queue);
        // Costs next to nothing while the writer is busy, as it is not waiting then.
        self.0.changed.notify_all();
    }

    /// Writes queued lines until the queue is closed.
    fn write(&self) {
        let mut batch = Vec::new();
        loop {
            let mut queue = self.0.queue.lock();
            self.0.changed.wait_while(&mut queue, |queue| queue.bytes.is_empty() && !queue.closed);
            swap(&mut queue.bytes, &mut batch);
            let closed = queue.closed;
            drop(queue);
            if stdout().write_all(&batch).is_err() {
                let lost = String::from_utf8_lossy(&batch).lines().count();
                counter!("log_lines_dropped_total").increment(lost as u64);
            }
            batch.clear();
            batch.shrink_to(KEPT_CAPACITY);
            if closed {
                self.0.queue.lock().ended = true;
                self.0.changed.notify_all();
                return;
            }
            thread::park_timeout(BATCH_INTERVAL);
        }
    }
}

#[cfg(test)]
mod tests {
    use metrics::with_local_recorder;
    use metrics_exporter_prometheus::PrometheusBuilder;

    use super::*;

    impl Lines {
        pub(in crate::telemetry) fn queued(&self) -> String {
            String::from_utf8(self.0.queue.lock().bytes.clone()).expect("lines are text")
        }
    }

    #[test]
    fn beyond_the_queue_lines_are_lost_whole_and_counted() {
        let (lines, line) = (Lines::default(), vec![b'x'; 1000]);
        let recorder = PrometheusBuilder::new().build_recorder();
        with_local_recorder(&recorder, || (0..5000).for_each(|_| lines.push(&line)));
        let kept = lines.0.queue.lock().bytes.len();
        assert!(kept <= MAX_QUEUED_BYTES && kept.is_multiple_of(line.len()), "{kept}");
        let lost = format!("log_lines_dropped_total {}\n", 5000 - kept / line.len());
        assert!(recorder.handle().render().contains(&lost), "{lost}");
    }

    #[test]
    fn end_does_not_wait_for_a_reader_that_has_stopped() {
        let (began, nobody_writes) = (std::time::Instant::now(), Lines::default());
        nobody_writes.finish();
        assert!((FINISH_TIMEOUT..FINISH_TIMEOUT * 5).contains(&began.elapsed()), "{:?}", began.elapsed());
        assert!(FINISH_TIMEOUT <= Duration::from_secs(1), "within the second that closing has");
    }
}
