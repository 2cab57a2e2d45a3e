//! Where jobs wait: in Postgres, so that they survive the process.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use metrics::{counter, gauge};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tracing::warn;

use crate::jobs::{Job, Kind, Settlement};
use crate::lifecycle::Stop;
use crate::store::{Error, Store};

/// How often an idle worker looks for jobs that other replicas or a retry made due.
const POLL: Duration = Duration::from_millis(500);
/// How often the queue is measured: until it is, a full one looks empty.
const WATCH: Duration = Duration::from_secs(1);

/// The right to add one job.
pub type Place = OwnedSemaphorePermit;

#[derive(Debug)]
pub struct Queue {
    store: Store,
    /// After which a taken job that was never settled is taken again: its worker has died.
    lease: Duration,
    /// As of the last look, of all replicas.
    depth: AtomicUsize,
    /// As many as there may be jobs, taken by those who are to write one.
    places: Arc<Semaphore>,
    added: Notify,
}

fn causes(error: Error) -> String {
    format!("{:#}", anyhow::Error::from(error))
}

impl Queue {
    /// Whether what is left at the stop is run later, by this replica or another.
    pub const OUTLIVES_PROCESS: bool = true;

    /// `longest_run` is a bound on one run of a job.
    pub fn new(store: &Store, capacity: usize, longest_run: Duration) -> Self {
        let lease = longest_run * 2 + Duration::from_secs(10);
        let places = Arc::new(Semaphore::new(capacity));
        // There from the start, as those of jobs that can be read.
        counter!("jobs_total", "job" => "unreadable", "outcome" => "failed").increment(0);
        Self { store: store.clone(), lease, depth: AtomicUsize::new(0), places, added: Notify::new() }
    }

    /// Makes sure that there is room, before anything is written: as much as `jobs.queue_capacity` allows.
    pub fn reserve(&self) -> Option<Place> {
        let place = self.places.clone().try_acquire_owned().ok()?;
        (self.depth.load(Ordering::Relaxed) <= self.places.available_permits()).then_some(place)
    }

    /// Wakes a worker for a job that the store has written.
    pub fn push(&self, place: Place, _job: Job) {
        self.set_depth(|depth| depth + 1);
        drop(place);
        self.added.notify_one();
    }

    /// Waits for the next job. Once `stop` drains, `None` says that none is due, or that another would come too late:
    /// what is left waits for another process.
    pub async fn next(&self, stop: &Stop) -> Option<Job> {
        loop {
            let draining = stop.drain.is_cancelled();
            let job = stop.last_call.run_until_cancelled(self.store.claim_job(self.lease)).await?;
            match job {
                Ok(Some(job)) => return Some(job),
                Err(error) => warn!(error = causes(error), category = "unavailable", "job.claim_failed"),
                Ok(None) => {}
            }
            if draining {
                return None;
            }
            let _ = stop.drain.run_until_cancelled(timeout(POLL, self.added.notified())).await;
        }
    }

    /// Records what became of a job that was taken.
    pub async fn settle(&self, job: Job, settlement: Settlement) {
        if let Err(error) = self.store.settle_job(job.id, &settlement).await {
            // Its lease ends and it runs again: at least once is what a durable queue promises.
            warn!(error = causes(error), id = %job.id, category = "unavailable", "job.settle_failed");
        }
        if !matches!(settlement, Settlement::Retry { .. }) {
            self.set_depth(|depth| depth.saturating_sub(1));
        }
    }

    /// Counts what waits, for ever.
    pub async fn watch(self: Arc<Self>) {
        loop {
            if let Ok((count, waited)) = self.store.count_jobs().await {
                self.set_depth(|_| count);
                gauge!("jobs_queue_oldest_seconds").set(waited.as_secs_f64());
            }
            // Which closes connections that nobody needs, also where nobody scrapes.
            self.store.observe();
            tokio::time::sleep(WATCH).await;
        }
    }

    /// Gives up what is left, and tells what is lost by that: nothing.
    pub fn abandon(&self) -> Vec<Kind> {
        Vec::new()
    }

    fn set_depth(&self, change: impl Fn(usize) -> usize) {
        let before = self.depth.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |old| Some(change(old)));
        gauge!("jobs_queue_depth").set(before.map_or(0, change) as f64);
    }
}
