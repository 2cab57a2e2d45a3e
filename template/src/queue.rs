//! The job queue, kept in Postgres so that jobs survive the process.

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

/// How often an idle worker polls for jobs that other replicas have added or whose retry is due.
const POLL_INTERVAL: Duration = Duration::from_millis(500);
/// How often the queue is measured. Until the first measurement a full queue looks empty.
const MEASURE_INTERVAL: Duration = Duration::from_secs(1);

/// The right to add one job.
pub type Permit = OwnedSemaphorePermit;

#[derive(Debug)]
pub struct Queue {
    store: Store,
    /// How long a job may stay claimed but unsettled. Then its worker counts as dead and the job is claimed again.
    lease: Duration,
    /// Jobs in the queue, of all replicas, as of the last measurement.
    depth: AtomicUsize,
    /// One permit per job that the queue may hold, taken while a job is being written.
    permits: Arc<Semaphore>,
    added: Notify,
}

fn causes(error: Error) -> String {
    format!("{:#}", anyhow::Error::from(error))
}

impl Queue {
    /// Whether jobs that are left at shutdown run later, in this replica or another.
    pub const OUTLIVES_PROCESS: bool = true;

    /// `longest_run` is an upper bound on one run of a job.
    pub fn new(store: &Store, capacity: usize, longest_run: Duration) -> Self {
        let lease = longest_run * 2 + Duration::from_secs(10);
        let permits = Arc::new(Semaphore::new(capacity));
        // Start the series at zero, as for jobs that can be read; the queue counts as empty until it is first measured.
        gauge!("jobs_queue_depth").set(0.0);
        counter!("jobs_total", "job" => "unreadable", "outcome" => "failed").increment(0);
        Self { store: store.clone(), lease, depth: AtomicUsize::new(0), permits, added: Notify::new() }
    }

    /// Reserves a place within `jobs.queue_capacity`, before anything is written. None if the queue is full.
    pub fn reserve(&self) -> Option<Permit> {
        let permit = self.permits.clone().try_acquire_owned().ok()?;
        (self.depth.load(Ordering::Relaxed) <= self.permits.available_permits()).then_some(permit)
    }

    /// Wakes a worker for a job that the store has written.
    pub fn push(&self, permit: Permit, _job: Job) {
        self.set_depth(|depth| depth + 1);
        drop(permit);
        self.added.notify_one();
    }

    /// Waits for the next job. Once `stop` asks for a drain, `None` means that no job is due, or that it is too late
    /// to start one: what is left waits for another process.
    pub async fn next(&self, stop: &Stop) -> Option<Job> {
        loop {
            let draining = stop.drain.is_cancelled();
            let job = stop.stop_claiming.run_until_cancelled(self.store.claim_job(self.lease)).await?;
            match job {
                Ok(Some(job)) => return Some(job),
                Err(error) => warn!(error = causes(error), category = "unavailable", "job.claim_failed"),
                Ok(None) => {}
            }
            if draining {
                return None;
            }
            let _ = stop.drain.run_until_cancelled(timeout(POLL_INTERVAL, self.added.notified())).await;
        }
    }

    /// Records the outcome of a claimed job.
    pub async fn settle(&self, job: Job, settlement: Settlement) {
        if let Err(error) = self.store.settle_job(job.id, &settlement).await {
            // The lease expires and the job runs again: a durable queue promises at-least-once delivery.
            warn!(error = causes(error), id = %job.id, category = "unavailable", "job.settle_failed");
        }
        if !matches!(settlement, Settlement::Retry { .. }) {
            self.set_depth(|depth| depth.saturating_sub(1));
        }
    }

    /// Measures the queue at intervals, forever.
    pub async fn measure(self: Arc<Self>) {
        loop {
            if let Ok((count, waited)) = self.store.count_jobs().await {
                self.set_depth(|_| count);
                gauge!("jobs_queue_oldest_seconds").set(waited.as_secs_f64());
            }
            // This also closes connections idle for too long, so it must happen even if nobody scrapes the metrics.
            self.store.observe();
            tokio::time::sleep(MEASURE_INTERVAL).await;
        }
    }

    /// The jobs that are lost with this process: none, since all are in the database.
    pub fn abandon(&self) -> Vec<Kind> {
        Vec::new()
    }

    fn set_depth(&self, change: impl Fn(usize) -> usize) {
        let before = self.depth.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |old| Some(change(old)));
        gauge!("jobs_queue_depth").set(before.map_or(0, change) as f64);
    }
}
