//! The job queue, kept in memory: jobs that can't be finished at shutdown are lost, and counted.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use metrics::gauge;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};

use crate::jobs::{Job, Kind, Settlement};
use crate::lifecycle::Stop;
use crate::store::Store;

/// How often the queue is measured.
const MEASURE_INTERVAL: Duration = Duration::from_secs(1);

/// The right to add one job.
pub type Permit = OwnedSemaphorePermit;

#[derive(Debug)]
pub struct Queue {
    /// One permit per job that the queue may hold, taken while a job is being added.
    permits: Arc<Semaphore>,
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// Each job with the time from which it may run.
    waiting: VecDeque<(Instant, Job)>,
    /// Kinds of the jobs that were taken but not yet settled.
    running: Vec<Kind>,
}

impl Queue {
    /// Whether jobs that are left at shutdown run later.
    pub const OUTLIVES_PROCESS: bool = false;

    pub fn new(_store: &Store, capacity: usize, _longest_run: Duration) -> Self {
        let permits = Arc::new(Semaphore::new(capacity));
        gauge!("jobs_queue_depth").set(0.0);
        Self { permits, state: Mutex::default(), changed: Notify::new() }
    }

    /// Reserves a place within `jobs.queue_capacity`, before anything is written. None if the queue is full.
    pub fn reserve(&self) -> Option<Permit> {
        let state = self.state.lock();
        let permit = self.permits.clone().try_acquire_owned().ok()?;
        (state.waiting.len() <= self.permits.available_permits()).then_some(permit)
    }

    pub fn push(&self, permit: Permit, job: Job) {
        let state = self.state.lock();
        drop(permit);
        self.add(state, Instant::now(), job);
    }

    /// Waits for the next job that is due. Once `stop` asks for a drain, all are due, and `None` means none is left.
    pub async fn next(&self, stop: &Stop) -> Option<Job> {
        loop {
            let draining = stop.drain.is_cancelled();
            let wake_at = {
                let mut state = self.state.lock();
                let now = Instant::now();
                if let Some(index) = state.waiting.iter().position(|(due, _)| draining || *due <= now) {
                    let taken = state.waiting.remove(index).map(|(_, job)| job);
                    state.running.extend(taken.as_ref().map(|job| job.kind));
                    Self::publish(&state);
                    return taken;
                }
                state.waiting.iter().map(|(due, _)| *due).min()
            };
            if draining {
                return None;
            }
            let wake_at = wake_at.unwrap_or_else(|| Instant::now() + Duration::from_mins(1));
            let _ = stop.drain.run_until_cancelled(timeout_at(wake_at, self.changed.notified())).await;
        }
    }

    /// Records the outcome of a job that was taken.
    #[expect(clippy::unused_async, reason = "where jobs are durable this writes to a server")]
    pub async fn settle(&self, job: Job, settlement: Settlement) {
        let mut state = self.state.lock();
        if let Some(index) = state.running.iter().position(|kind| *kind == job.kind) {
            state.running.swap_remove(index);
        }
        if let Settlement::Retry { after } = settlement {
            // Added even if the queue is full: the job was accepted once and must not be refused now.
            self.add(state, Instant::now() + after, job);
        }
    }

    /// Measures at intervals how long jobs wait, forever.
    pub async fn measure(self: Arc<Self>) {
        loop {
            let oldest = self.state.lock().waiting.iter().map(|(due, _)| *due).min();
            // Zero if none is due yet.
            let waited = oldest.map(|due| Instant::now().saturating_duration_since(due)).unwrap_or_default();
            gauge!("jobs_queue_oldest_seconds").set(waited.as_secs_f64());
            tokio::time::sleep(MEASURE_INTERVAL).await;
        }
    }

    /// Gives up on the jobs that are left, and returns those that are lost.
    pub fn abandon(&self) -> Vec<Kind> {
        let State { waiting, running: mut lost } = std::mem::take(&mut *self.state.lock());
        lost.extend(waiting.iter().map(|(_, job)| job.kind));
        Self::publish(&State::default());
        lost
    }

    fn add(&self, mut state: MutexGuard<State>, due: Instant, job: Job) {
        state.waiting.push_back((due, job));
        Self::publish(&state);
        self.changed.notify_one();
    }

    fn publish(state: &State) {
        gauge!("jobs_queue_depth").set(state.waiting.len() as f64);
    }
}
