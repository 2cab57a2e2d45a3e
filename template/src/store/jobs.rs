//! Jobs in Postgres: stored in the transaction that causes them, each claimed by one worker at a time.
//!
//! An outbox of our own instead of a queue library: `FOR UPDATE SKIP LOCKED` is all that is needed, and the row
//! has to be written by the store's own transaction.

use std::time::Duration;

use metrics::counter;
use sqlx::PgConnection;
use tracing::{error, warn};
use uuid::Uuid;

use super::{Error, Store};
use crate::jobs::{Job, Settlement};

/// How many times a job that this version can't read is claimed before it counts as failed.
const MAX_UNREADABLE_CLAIMS: i32 = 5;

impl Store {
    pub(super) async fn insert_job(&self, connection: &mut PgConnection, job: &Job) -> Result<(), Error> {
        let text = serde_json::to_string(job).expect("a job is always JSON");
        let query = sqlx::query!("INSERT INTO jobs (id, job) VALUES ($1, $2)", job.id, text);
        self.timed("insert_job", query.execute(connection)).await?;
        Ok(())
    }

    /// Claims the job that has been due longest, for `lease`: after that it is due again, unless it was settled.
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
            // A rollout that adds this kind of job may bring replicas that can read it.
            if attempts < MAX_UNREADABLE_CLAIMS {
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

    /// How many jobs of all replicas have not ended, and how long the one that has been due longest has waited.
    pub async fn count_jobs(&self) -> Result<(usize, Duration), Error> {
        let query = sqlx::query!(
            r#"SELECT count(*) AS "count!",
                   COALESCE(extract(epoch FROM now() - min(run_at)), 0)::float8 AS "waited!"
               FROM jobs WHERE failed_at IS NULL"#
        );
        let row = self.once("count_jobs", async |connection| query.fetch_one(connection).await).await?;
        // Negative if none is due yet.
        let waited = Duration::try_from_secs_f64(row.waited).unwrap_or_default();
        Ok((usize::try_from(row.count).unwrap_or(0), waited))
    }
}
