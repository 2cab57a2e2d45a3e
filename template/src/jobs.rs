//! Work outside the request: a bounded number of jobs at once, retried with backoff, drained at the stop.

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

const LONGEST_DELAY: Duration = Duration::from_mins(5);
/// What a run that is cut off may take to notice: longer only where it blocks its thread.
const LET_GO: Duration = Duration::from_millis(100);
//@ if postgres
/// Runs that may be cut off with their process, as in a deployment, beyond those that may fail.
const CUT_OFF: u32 = 5;
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

/// Something to be done once the request that caused it has been answered.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Job {
    /// Stays the same over all attempts, so that a receiver can tell a repetition.
    pub id: Uuid,
    pub kind: Kind,
    /// JSON text, kept as it was made: a signature covers its bytes.
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
    /// A job caused by what this task is working for.
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
        // There from the start: an alert on an increase can't see the one that makes a series appear.
        for kind in Kind::VARIANTS {
            for outcome in ["failed", "abandoned"] {
                counter!("jobs_total", "job" => kind.into_str(), "outcome" => outcome).increment(0);
            }
        }
        Self { config, queue }
    }

    /// Runs `work` for each job until `stop` says so and the queue has no more for this process.
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
        // A run that is just ending must not count as lost, too.
        let _ = timeout(LET_GO, running.wait()).await;
    }

    /// Gives up what is left, and returns how many jobs are lost by that.
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
        let trace = Some(caused_by.map_or_else(|| Trace::begin(false), Trace::child));
        //@ if otlp
        let (span, trace) = crate::telemetry::otlp::span(
            caused_by,
            trace,
            || info_span!("job", otel.name = name, job.id = %job.id, job.attempt = i64::from(job.attempts)),
        );
        //@ end
        let context = Context { trace, ..job.context.clone() };
        let run = contained(run);
        //@ if postgres
        // Where so many runs did not come to an end, each may have ended its process: another would do so again.
        let endless = job.attempts > self.config.max_attempts.saturating_add(CUT_OFF);
        let failure = || Failure { reason: "no run of it came to an end".to_owned(), retry: false };
        let run = async move { if endless { Err(failure()) } else { run.await } };
        //@ end
        let run = async {
            let (outcome, settlement) = self.after(&job, run.await, stop);
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

    /// What a run comes to, as it is counted, and what becomes of its job.
    fn after(&self, job: &Job, run: Result<(), Failure>, stop: &Stop) -> (&'static str, Settlement) {
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

/// A run whose panic is a failure like others: the hook has logged it.
async fn contained(run: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    let panicked = |_| Err(Failure { reason: "panicked".to_owned(), retry: true });
    AssertUnwindSafe(run).catch_unwind().await.unwrap_or_else(panicked)
}

/// One second, doubling, and up to half of it more or less: jobs that failed together must not come back together.
fn backoff(attempts: u32) -> Duration {
    let doubled = Duration::from_secs(1).saturating_mul(2_u32.saturating_pow(attempts.saturating_sub(1)));
    doubled.min(LONGEST_DELAY).mul_f64(0.5 + fastrand::f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn job_that_panics_is_tried_again() {
        let failure = contained(async { panic!("planted") }).await.expect_err("a failure");
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
