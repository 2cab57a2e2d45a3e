//! Jobs in Postgres: stored in the transaction that causes them, taken by one worker at a time.
//!
//! An outbox of our own and not a queue library: `FOR UPDATE SKIP LOCKED` is all that is needed, and the row
//! has to be written by the store's own transaction.

use std::time::Duration;

use metrics::counter;
use sqlx::PgConnection;
use tracing::{error, warn};
use uuid::Uuid;

use super::{Error, Store};
use crate::jobs::{Job, Settlement};

/// At a job that this version can't read, until it counts as failed.
const LOOKS: i32 = 5;

impl Store {
    pub(super) async fn insert_job(&self, connection: &mut PgConnection, job: &Job) -> Result<(), Error> {
        let text = serde_json::to_string(job).expect("a job is always JSON");
        let query = sqlx::query!("INSERT INTO jobs (id, job) VALUES ($1, $2)", job.id, text);
        self.timed("insert_job", query.execute(connection)).await?;
        Ok(())
    }

    /// Takes the job that is due longest, for `lease`: then it is due again, unless it was settled.
    pub async fn claim_job(&self, lease: Duration) -> Result<Option<Job>, Error> {
        loop {
            let query = sqlx::query!(
                "UPDATE jobs SET attempts = attempts + 1, run_at = now() + make_interval(secs => $1)
             WHERE id = (SELECT id FROM jobs WHERE failed_at IS NULL AND run_at <= now()
                         ORDER BY run_at LIMIT 1 FOR UPDATE SKIP LOCKED)
             RETURNING id, job, attempts",
                lease.as_secs_f64()
            );
            let take = async |connection: &mut PgConnection| query.fetch_optional(connection).await;
            let Some(row) = self.once("claim_job", take).await? else { return Ok(None) };
            let (id, text, attempts) = (row.id, row.job, row.attempts);
            let reason = match serde_json::from_str::<Job>(&text) {
                Ok(job) => {
                    return Ok(Some(Job { attempts: u32::try_from(attempts - 1).unwrap_or(0), ..job }));
                }
                Err(error) => format!("not readable by this version: {error}"),
            };
            // A rollout that brings its kind may bring who can.
            if attempts < LOOKS {
                warn!(job = "unreadable", %id, attempts, reason, retry_in = ?lease, "job.retry");
                continue;
            }
            error!(job = "unreadable", %id, attempts, reason, category = "internal", "job.failed");
            counter!("jobs_total", "job" => "unreadable", "outcome" => "failed").increment(1);
            self.settle_job(id, &Settlement::Failed { reason }).await?;
        }
    }

    pub async fn settle_job(&self, id: Uuid, settlement: &Settlement) -> Result<(), Error> {
        let (name, query) = match settlement {
            Settlement::Done => ("finish_job", sqlx::query!("DELETE FROM jobs WHERE id = $1", id)),
            Settlement::Retry { after } => (
                "retry_job",
                sqlx::query!(
                    "UPDATE jobs SET run_at = now() + make_interval(secs => $2) WHERE id = $1",
                    id,
                    after.as_secs_f64()
                ),
            ),
            Settlement::Failed { reason } => (
                "fail_job",
                sqlx::query!("UPDATE jobs SET failed_at = now(), last_error = $2 WHERE id = $1", id, reason),
            ),
        };
        self.once(name, async |connection| query.execute(connection).await).await?;
        Ok(())
    }

    /// Jobs that have not ended, of all replicas, and for how long the one that is due longest has waited.
    pub async fn count_jobs(&self) -> Result<(usize, Duration), Error> {
        let query = sqlx::query!(
            r#"SELECT count(*) AS "count!",
                   COALESCE(extract(epoch FROM now() - min(run_at)), 0)::float8 AS "waited!"
               FROM jobs WHERE failed_at IS NULL"#
        );
        let row = self.once("count_jobs", async |connection| query.fetch_one(connection).await).await?;
        // Negative where none is due yet.
        let waited = Duration::try_from_secs_f64(row.waited).unwrap_or_default();
        Ok((usize::try_from(row.count).unwrap_or(0), waited))
    }
}
