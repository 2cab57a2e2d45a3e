//! Background jobs: run with bounded concurrency, retried with backoff, drained at shutdown.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use garde::Validate;
use metrics::{counter, gauge, histogram};
use serde::{Deserialize, Serialize};
use strum::{IntoStaticStr, VariantArray};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::task::TaskTracker;
//@ if otlp
use tracing::{Instrument, Span, info_span};
//@ end
use tracing::{error, info, warn};
use uuid::Uuid;

use crate::config::value::between;
use crate::lifecycle::Stop;
use crate::queue::Queue;
use crate::telemetry::context::{Context, Trace};

const MAX_DELAY: Duration = Duration::from_mins(5);
/// How long a run may take to stop once it is aborted. Only one that blocks its thread takes longer.
const ABORT_GRACE: Duration = Duration::from_millis(100);
//@ if postgres
/// How many runs, on top of `max_attempts`, may be cut off with their process, as in a deployment.
const MAX_INTERRUPTED_RUNS: u32 = 5;
//@ end

#[derive(Clone, Copy, Debug, Deserialize, Validate)]
pub struct Config {
    #[garde(custom(between(1, 10_000_000)))]
    pub queue_capacity: usize,
    #[garde(custom(between(1, 1_000)))]
    pub concurrency: usize,
    #[garde(custom(between(1, 100)))]
    pub max_attempts: u32,
}

/// Work to be done after the request that caused it has been answered.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Job {
    /// The same for all attempts, so that a receiver can detect duplicates.
    pub id: Uuid,
    pub kind: Kind,
    /// JSON text, kept byte for byte: a signature covers it.
    pub payload: String,
    /// The request that caused the job.
    pub context: Context,
    /// Runs so far.
    pub attempts: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, IntoStaticStr, VariantArray)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase", const_into_str)]
pub enum Kind {
    Webhook,
}

impl Job {
    /// A job that carries the context of the current task.
    pub fn new(kind: Kind, payload: String) -> Self {
        let context = Context::current().unwrap_or_default();
        Self { id: Uuid::now_v7(), kind, payload, context, attempts: 0 }
    }
}

#[derive(Debug)]
pub struct Failure {
    pub reason: String,
    /// Whether another run may succeed.
    pub retry: bool,
}

/// What becomes of a job after a run.
#[derive(Debug)]
pub enum Settlement {
    Done,
    Retry { after: Duration },
    Failed { reason: String },
}

/// Takes jobs from a queue and runs them.
#[derive(Clone, Debug)]
pub struct Runner {
    config: Config,
    queue: Arc<Queue>,
}

impl Runner {
    pub fn new(config: Config, queue: Arc<Queue>) -> Self {
        gauge!("jobs_queue_depth_max").set(config.queue_capacity as f64);
        // Start each series at zero: an alert on an increase would miss the increment that creates the series.
        for kind in Kind::VARIANTS {
            for outcome in ["failed", "abandoned"] {
                counter!("jobs_total", "job" => kind.into_str(), "outcome" => outcome).increment(0);
            }
        }
        Self { config, queue }
    }

    /// Runs `work` for each job until `stop` asks for a drain and the queue has nothing left for this process.
    pub async fn run<F>(self, work: impl Fn(Job) -> F, stop: Stop)
    where
        F: Future<Output = Result<(), Failure>> + Send + 'static,
    {
        let _ended = stop.ended.clone().drop_guard();
        let running = TaskTracker::new();
        let slots = Arc::new(Semaphore::new(self.config.concurrency));
        let taking = async {
            loop {
                let slot = slots.clone().acquire_owned().await.expect("the semaphore is never closed");
                let Some(mut job) = self.queue.next(&stop).await else { break };
                job.attempts += 1;
                let (runner, run, stop) = (self.clone(), work(job.clone()), stop.clone());
                running.spawn(async move {
                    let _slot = slot;
                    let _ = stop.abort.run_until_cancelled(runner.attempt(job, run, &stop)).await;
                });
            }
        };
        let _ = stop.abort.run_until_cancelled(Box::pin(taking)).await;
        running.close();
        let _ = stop.abort.run_until_cancelled(running.wait()).await;
        // A run that is just finishing must not be counted as lost as well.
        let _ = timeout(ABORT_GRACE, running.wait()).await;
    }

    /// Gives up on the jobs that are left, and returns how many are lost.
    pub fn abandon(&self) -> usize {
        let lost = self.queue.abandon();
        for kind in &lost {
            counter!("jobs_total", "job" => kind.into_str(), "outcome" => "abandoned").increment(1);
        }
        if !lost.is_empty() {
            error!(count = lost.len(), category = "internal", "job.abandoned");
        }
        lost.len()
    }

    async fn attempt(&self, job: Job, run: impl Future<Output = Result<(), Failure>>, stop: &Stop) {
        let started = Instant::now();
        let name = job.kind.into_str();
        let caused_by = job.context.trace.as_ref();
        let trace = Some(caused_by.map_or_else(Trace::begin, Trace::child));
        //@ if otlp
        let (span, trace) = crate::telemetry::otlp::span(
            caused_by,
            trace,
            || info_span!("job", otel.name = name, job.id = %job.id, job.attempt = i64::from(job.attempts)),
        );
        //@ end
        let context = Context { trace, ..job.context.clone() };
        let run = catch_panic(run);
        //@ if postgres
        // After so many unfinished runs, the job itself may be what kills the process: another run would do it again.
        let never_finishes = job.attempts > self.config.max_attempts.saturating_add(MAX_INTERRUPTED_RUNS);
        let failure = || Failure { reason: "too many runs never finished".to_owned(), retry: false };
        let run = async move { if never_finishes { Err(failure()) } else { run.await } };
        //@ end
        let run = async {
            let (outcome, settlement) = self.settlement(&job, run.await, stop);
            //@ if otlp
            if outcome != "done" {
                crate::telemetry::otlp::failed(&Span::current());
            }
            //@ end
            counter!("jobs_total", "job" => name, "outcome" => outcome).increment(1);
            histogram!("job_duration_seconds", "job" => name).record(started.elapsed().as_secs_f64());
            self.queue.settle(job, settlement).await;
        };
        //@ if otlp
        let run = run.instrument(span);
        //@ end
        context.scope(run).await;
    }

    /// The outcome of a run as the metrics count it, and what becomes of the job.
    fn settlement(&self, job: &Job, run: Result<(), Failure>, stop: &Stop) -> (&'static str, Settlement) {
        let name = job.kind.into_str();
        let Err(Failure { reason, retry }) = run else {
            info!(job = name, id = %job.id, attempts = job.attempts, "job.done");
            return ("done", Settlement::Done);
        };
        let another = retry && job.attempts < self.config.max_attempts;
        if !another || (stop.drain.is_cancelled() && !Queue::OUTLIVES_PROCESS) {
            error!(job = name, id = %job.id, attempts = job.attempts, reason, category = "internal", "job.failed");
            return ("failed", Settlement::Failed { reason });
        }
        let after = backoff(job.attempts);
        warn!(job = name, id = %job.id, attempts = job.attempts, reason, retry_in = ?after, "job.retry");
        ("retry", Settlement::Retry { after })
    }
}

/// Turns a panic into an ordinary failure; the hook has logged it.
async fn catch_panic(run: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    let panicked = |_| Err(Failure { reason: "panicked".to_owned(), retry: true });
    AssertUnwindSafe(run).catch_unwind().await.unwrap_or_else(panicked)
}

/// One second, doubling, with 50 % jitter either way: jobs that failed together must not be retried together.
fn backoff(attempts: u32) -> Duration {
    let doubled = Duration::from_secs(1).saturating_mul(2_u32.saturating_pow(attempts.saturating_sub(1)));
    doubled.min(MAX_DELAY).mul_f64(0.5 + fastrand::f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn job_that_panics_is_tried_again() {
        let failure = catch_panic(async { panic!("planted") }).await.expect_err("a failure");
        assert_eq!((failure.reason.as_str(), failure.retry), ("panicked", true));
    }

    #[test]
    fn delays_double_and_differ_and_end_at_the_longest() {
        for (attempts, seconds) in [(1, 1.0), (2, 2.0), (5, 16.0), (9, 256.0), (10, 300.0), (100, 300.0)] {
            let delay = backoff(attempts).as_secs_f64();
            assert!((seconds * 0.5..=seconds * 1.5).contains(&delay), "{attempts}: {delay}");
        }
        assert!((0..10).any(|_| backoff(9) != backoff(9)), "they come back together");
    }
}
