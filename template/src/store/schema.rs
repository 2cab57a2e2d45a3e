//! The schema's version: brought up to date by any number of replicas at once, and checked by readiness.

use std::time::Duration;

use anyhow::Context as _;
use sqlx::Connection;
use tracing::info;

use super::{Error, Store};

/// Any number, the same in all replicas of this service and no one else's.
const LOCK: i64 = 0x7461_736b;

impl Store {
    /// Applies the migrations that are missing. Replicas that start together take turns.
    pub async fn migrate(&self) -> anyhow::Result<()> {
        // A connection of its own: its statements may take longer than the pool allows.
        let options = self.pool.connect_options();
        let connecting = sqlx::PgConnection::connect_with(&options);
        let mut connection = tokio::time::timeout(self.pool.options().get_acquire_timeout(), connecting)
            .await
            .context("the database does not answer")??;
        sqlx::query!("SET statement_timeout = 0").execute(&mut connection).await?;
        // That the table of migrations exists already is no news.
        sqlx::query!("SET client_min_messages = warning").execute(&mut connection).await?;
        // Polled: a replica that waited inside the server would block an index that is built CONCURRENTLY.
        while !sqlx::query_scalar!(r#"SELECT pg_try_advisory_lock($1) AS "taken!""#, LOCK)
            .fetch_one(&mut connection)
            .await?
        {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let mut migrator = sqlx::migrate!();
        // A binary that is older than the schema starts, so that a deploy can be rolled back.
        migrator.set_ignore_missing(true).set_locking(false);
        let applied = migrator.run(&mut connection).await;
        // Ending the session gives the lock back, whatever came of it.
        connection.close().await?;
        applied?;
        info!(version = newest(), "schema.current");
        Ok(())
    }

    pub(super) async fn schema_is_current(&self) -> Result<(), String> {
        let query = sqlx::query_scalar!(r#"SELECT max(version) FROM _sqlx_migrations WHERE success"#);
        let found = query.fetch_one(&self.pool).await.map_err(|error| describe(error.into()))?.unwrap_or(0);
        if found < newest() {
            return Err(format!("schema is at {found}, this binary needs {}", newest()));
        }
        Ok(())
    }
}

fn newest() -> i64 {
    sqlx::migrate!().iter().map(|migration| migration.version).max().unwrap_or(0)
}

fn describe(error: Error) -> String {
    match error {
        Error::Unavailable(cause) | Error::Conflict(cause) | Error::Refused(cause) => cause.to_string(),
        other => other.to_string(),
    }
}
