//! Log lines on their way to stdout, written by a thread. Not tracing-appender's, which is woken for each line: where it
//! shares a core with the worker, that delays the very answer that the line tells of.

use std::io::{self, Write as _, stdout};
use std::mem::swap;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use metrics::counter;
use parking_lot::{Condvar, Mutex};

/// In bytes, of lines that wait. At a stopped reader this bounds the memory, not the requests.
const QUEUED: usize = 4 * 1024 * 1024;
/// After lines were written, for how long further ones are collected.
const PACE: Duration = Duration::from_millis(2);
/// In bytes, of the room for lines that is kept from one time to the next.
const KEPT: usize = 128 * 1024;
/// At the end, for the reader to take what is queued.
const LAST: Duration = Duration::from_secs(1);

/// What goes to stdout. Clones share it.
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
    /// Whether what is queued is the last.
    closed: bool,
    /// Whether that was written.
    ended: bool,
}

impl Lines {
    /// With the thread that writes them.
    pub(super) fn start() -> io::Result<Self> {
        let lines = Self::default();
        let writer = lines.clone();
        thread::Builder::new().name("log".to_owned()).spawn(move || writer.write())?;
        Ok(lines)
    }

    /// Waits until what is queued is written, but not for a reader that has stopped.
    pub fn finish(&self) {
        let mut queue = self.0.queue.lock();
        queue.closed = true;
        self.0.changed.notify_all();
        self.0.changed.wait_while_for(&mut queue, |queue| !queue.ended, LAST);
    }

    /// Queues a line. It never waits for the reader: beyond the queue, lines are lost and counted.
    pub(super) fn push(&self, line: &[u8]) {
        let mut queue = self.0.queue.lock();
        if queue.bytes.len() + line.len() > QUEUED {
            return counter!("log_lines_dropped_total").increment(1);
        }
        queue.bytes.extend_from_slice(line);
        drop(queue);
        // Next to nothing while the writer is at work: it does not wait then.
        self.0.changed.notify_all();
    }

    /// Writes what is queued, until it is closed.
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
            batch.shrink_to(KEPT);
            if closed {
                self.0.queue.lock().ended = true;
                self.0.changed.notify_all();
                return;
            }
            thread::park_timeout(PACE);
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
        assert!(kept <= QUEUED && kept.is_multiple_of(line.len()), "{kept}");
        let lost = format!("log_lines_dropped_total {}\n", 5000 - kept / line.len());
        assert!(recorder.handle().render().contains(&lost), "{lost}");
    }

    #[test]
    fn end_does_not_wait_for_a_reader_that_has_stopped() {
        let (began, nobody_writes) = (std::time::Instant::now(), Lines::default());
        nobody_writes.finish();
        assert!((LAST..LAST * 5).contains(&began.elapsed()), "{:?}", began.elapsed());
        assert!(LAST <= Duration::from_secs(1), "within the second that closing has");
    }
}
