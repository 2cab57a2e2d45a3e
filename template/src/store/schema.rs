//! Migrates the schema, from any number of replicas at once, and checks its version for readiness.

use std::time::Duration;

use anyhow::Context as _;
use futures_util::future::try_join;
use sqlx::{Connection, Executor, PgConnection};
use tracing::{info, warn};

use super::Store;

/// The key of the advisory lock: any number, the same in all replicas of this service and used by nobody else.
const LOCK: i64 = 0x7461_736b;

impl Store {
    /// Applies missing migrations. Replicas that start together take turns.
    pub async fn migrate(&self) -> anyhow::Result<()> {
        // Not from the pool: migrations may outlast its statement timeout. "Already exists" notices are only noise.
        let connector = self.pool.connector();
        let options = [("statement_timeout", "0"), ("client_min_messages", "warning")];
        let options = connector.options.clone().options(options);
        let both = try_join(PgConnection::connect_with(&options), PgConnection::connect_with(&options));
        let both = tokio::time::timeout(connector.acquire_timeout, both).await;
        let (mut holder, mut connection) = both.context("the database does not answer")??;
        // The lock is a transaction's, since a pooler in between would keep a session's forever; and the transaction
        // has a connection of its own, since an index can't be built CONCURRENTLY within one.
        let turn = loop {
            let mut turn = holder.begin().await?;
            // Not as an option, which a pooler would ignore.
            turn.execute("SET LOCAL idle_in_transaction_session_timeout = 0").await?;
            let taken = sqlx::query_scalar!(r#"SELECT pg_try_advisory_xact_lock($1) AS "taken!""#, LOCK);
            if taken.fetch_one(&mut *turn).await? {
                break turn;
            }
            // Polled in short transactions: building an index CONCURRENTLY waits for all that are running a statement.
            turn.rollback().await?;
            tokio::time::sleep(Duration::from_millis(100)).await;
        };
        let mut migrator = sqlx::migrate!();
        // A binary that is older than the schema still starts, so that a rollout can be rolled back.
        migrator.set_ignore_missing(true).set_locking(false);
        migrator.run(&mut connection).await?;
        turn.rollback().await?;
        // Left by a build CONCURRENTLY that was cut off: nothing uses it, but the next attempt takes it for the index.
        let invalid = sqlx::query_scalar!(
            r#"SELECT indexrelid::regclass::text AS "index!" FROM pg_index WHERE NOT indisvalid AND indrelid IN
            (SELECT pg_class.oid FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
            WHERE nspname = current_schema())"#
        );
        for index in invalid.fetch_all(&mut connection).await? {
            warn!(index, category = "internal", "schema.index_invalid");
        }
        info!(version = migrator.iter().map(|migration| migration.version).max(), "schema.current");
        Ok(())
    }

    pub(super) async fn schema_is_current(self) -> Result<(), String> {
        let query = sqlx::query_scalar!("SELECT version FROM _sqlx_migrations WHERE success");
        let found = self.once("schema_version", async |connection| query.fetch_all(connection).await).await;
        let found = found.map_err(|error| error.to_string())?;
        // Not only the newest: one with a lower number may have been added later, by an update or from another branch.
        match sqlx::migrate!().iter().find(|migration| !found.contains(&migration.version)) {
            Some(missing) => Err(format!("schema lacks migration {}", missing.version)),
            None => Ok(()),
        }
    }
}
