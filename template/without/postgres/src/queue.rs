//! Where jobs wait: in memory, so that what the stop can't finish is lost, and counted.

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
const WATCH: Duration = Duration::from_secs(1);

/// The right to add one job.
pub type Place = OwnedSemaphorePermit;

#[derive(Debug)]
pub struct Queue {
    /// As many as there may be jobs, taken by those who are to add one.
    places: Arc<Semaphore>,
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// With the moment from which each may run.
    waiting: VecDeque<(Instant, Job)>,
    /// Taken and not settled.
    running: Vec<Kind>,
}

impl Queue {
    /// Whether what is left at the stop is run later.
    pub const OUTLIVES_PROCESS: bool = false;

    pub fn new(_store: &Store, capacity: usize, _longest_run: Duration) -> Self {
        let places = Arc::new(Semaphore::new(capacity));
        gauge!("jobs_queue_depth").set(0.0);
        Self { places, state: Mutex::default(), changed: Notify::new() }
    }

    /// Makes sure that there is room, before anything is written: as much as `jobs.queue_capacity` allows.
    pub fn reserve(&self) -> Option<Place> {
        let state = self.state.lock();
        let place = self.places.clone().try_acquire_owned().ok()?;
        (state.waiting.len() <= self.places.available_permits()).then_some(place)
    }

    pub fn push(&self, place: Place, job: Job) {
        let state = self.state.lock();
        drop(place);
        self.add(state, Instant::now(), job);
    }

    /// Waits for the next job that is due. Once `stop` drains all are due, and `None` says that none is left.
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

    /// Records what became of a job that was taken.
    #[expect(clippy::unused_async, reason = "where jobs are durable this writes to a server")]
    pub async fn settle(&self, job: Job, settlement: Settlement) {
        let mut state = self.state.lock();
        if let Some(index) = state.running.iter().position(|kind| *kind == job.kind) {
            state.running.swap_remove(index);
        }
        if let Settlement::Retry { after } = settlement {
            // It is added even to a full queue: it was taken once and must not be refused.
            self.add(state, Instant::now() + after, job);
        }
    }

    /// Measures how long jobs wait, for ever.
    pub async fn watch(self: Arc<Self>) {
        loop {
            let oldest = self.state.lock().waiting.iter().map(|(due, _)| *due).min();
            // Zero where none is due yet.
            let waited = oldest.map(|due| Instant::now().saturating_duration_since(due)).unwrap_or_default();
            gauge!("jobs_queue_oldest_seconds").set(waited.as_secs_f64());
            tokio::time::sleep(WATCH).await;
        }
    }

    /// Gives up what is left, and tells what is lost by that.
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
