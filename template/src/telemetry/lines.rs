//! Log lines on their way to stdout, written by a thread of its own.
//!
//! Our own, since tracing-appender wakes its thread for each line: where that shares a core with the worker, it delays
//! the very answer that the line tells of.

use std::io::{self, Write, stdout};
use std::mem::{swap, take};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use metrics::counter;

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
    /// Whether the writer waits for a line: to wake it for each would cost more than the line.
    idle: bool,
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
        let mut queue = self.queue();
        (queue.closed, queue.idle) = (true, false);
        self.0.changed.notify_all();
        let _ = self.0.changed.wait_timeout_while(queue, LAST, |queue| !queue.ended);
    }

    /// Queues a line. It never waits for the reader: beyond the queue, lines are lost and counted.
    pub(super) fn push(&self, line: &[u8]) {
        let mut queue = self.queue();
        if queue.bytes.len() + line.len() > QUEUED {
            drop(queue);
            return counter!("log_lines_dropped_total").increment(1);
        }
        queue.bytes.extend_from_slice(line);
        if take(&mut queue.idle) {
            drop(queue);
            self.0.changed.notify_all();
        }
    }

    /// Writes what is queued, until it is closed.
    fn write(&self) {
        let mut batch = Vec::new();
        loop {
            let mut queue = self.queue();
            queue.idle = queue.bytes.is_empty() && !queue.closed;
            let queue = self.0.changed.wait_while(queue, |queue| queue.idle);
            let mut queue = queue.unwrap_or_else(PoisonError::into_inner);
            swap(&mut queue.bytes, &mut batch);
            let closed = queue.closed;
            drop(queue);
            if stdout().write_all(&batch).is_err() {
                let lost = String::from_utf8_lossy(&batch).lines().count();
                counter!("log_lines_dropped_total").increment(lost as u64);
            }
            batch.clear();
            batch.shrink_to(KEPT);
            let mut queue = self.queue();
            if closed {
                queue.ended = true;
                self.0.changed.notify_all();
                return;
            }
            drop(self.0.changed.wait_timeout_while(queue, PACE, |queue| !queue.closed));
        }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        // No change here can panic half-way, so a poisoned lock still guards whole data.
        self.0.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One line a call, as `tracing` writes them.
impl Write for Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.push(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use metrics::with_local_recorder;
    use metrics_exporter_prometheus::PrometheusBuilder;

    use super::*;

    impl Lines {
        pub(in crate::telemetry) fn queued(&self) -> String {
            String::from_utf8(self.queue().bytes.clone()).expect("lines are text")
        }
    }

    #[test]
    fn beyond_the_queue_lines_are_lost_whole_and_counted() {
        let (lines, line) = (Lines::default(), vec![b'x'; 1000]);
        let recorder = PrometheusBuilder::new().build_recorder();
        with_local_recorder(&recorder, || (0..5000).for_each(|_| lines.push(&line)));
        let kept = lines.queue().bytes.len();
        assert!(kept <= QUEUED && kept.is_multiple_of(line.len()), "{kept}");
        let lost = format!("log_lines_dropped_total {}\n", 5000 - kept / line.len());
        assert!(recorder.handle().render().contains(&lost), "{lost}");
    }
}
