//! Jobs that failed for good, which operators can list and run again.

use anyhow::{Result, ensure};
use clap::Subcommand;
use serde::Serialize;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{Error, Store};

#[derive(Clone, Copy, Debug, Subcommand)]
pub enum Command {
    /// List the last thousand, newest first, one line of JSON each
    List,
    /// Run one again, or all, keeping their ids
    Requeue {
        #[arg(required_unless_present = "all", conflicts_with = "all")]
        id: Option<Uuid>,
        #[arg(long)]
        all: bool,
    },
}

#[derive(Debug, Serialize)]
struct DeadLetter {
    id: Uuid,
    job: Option<String>,
    attempts: i32,
    #[serde(with = "time::serde::rfc3339")]
    failed_at: OffsetDateTime,
    reason: Option<String>,
}

impl Command {
    /// Returns the text to print.
    pub async fn run(self, config: crate::config::Config) -> Result<String> {
        let store = Store::open(&config)?;
        let Self::Requeue { id, .. } = self else {
            let lines = store.dead_letters().await?;
            return Ok(lines.iter().map(serde_json::to_string).collect::<Result<Vec<_>, _>>()?.join("\n"));
        };
        let count = store.requeue_jobs(id).await?;
        ensure!(count > 0 || id.is_none(), "no dead letter has this id");
        Ok(format!("{count} requeued"))
    }
}

impl Store {
    async fn dead_letters(&self) -> Result<Vec<DeadLetter>, Error> {
        let query = sqlx::query_as!(
            DeadLetter,
            // Not parsed as JSON: jobs that no version can read are listed, too.
            r#"SELECT id, substring(job FROM '"kind":"([^"]*)"') AS job, attempts, failed_at AS "failed_at!",
               last_error AS reason FROM jobs WHERE failed_at IS NOT NULL ORDER BY failed_at DESC LIMIT 1000"#
        );
        Ok(self.once("dead_letters", async |connection| query.fetch_all(connection).await).await?)
    }

    /// Requeues all jobs that failed for good, or only the one with this id, and returns how many those are.
    async fn requeue_jobs(&self, id: Option<Uuid>) -> Result<u64, Error> {
        let query = sqlx::query!(
            "UPDATE jobs SET failed_at = NULL, attempts = 0, run_at = now()
             WHERE failed_at IS NOT NULL AND id = COALESCE($1, id)",
            id
        );
        let queued = self.once("requeue_jobs", async |connection| query.execute(connection).await).await?;
        Ok(queued.rows_affected())
    }
}
