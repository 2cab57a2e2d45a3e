//! Tasks in Postgres. Only this module and its children know SQL.

use std::io;
use std::time::{Duration, Instant};

use garde::Validate;
use metrics::{gauge, histogram};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{ConnectOptions, Connection, PgConnection, PgPool, Postgres};
use tracing::warn;
//@ if otlp
use tracing::{Instrument, info_span};
//@ end
use uuid::Uuid;

use crate::config::value::{check, millis, optional};
use crate::health::Check;
use crate::jobs::Job;
use crate::task::{NewTask, Status, Task, TaskPatch};
use crate::telemetry::metrics::as_f64;

pub mod dead_letters;
pub mod jobs;
pub mod schema;

#[derive(Debug, Deserialize, Validate)]
#[garde(allow_unvalidated)]
pub struct Config {
    #[serde(deserialize_with = "optional")]
    #[garde(custom(is_postgres))]
    pub url: Option<SecretString>,
    #[garde(range(min = 1, max = 10_000))]
    pub max_connections: u32,
    #[serde(deserialize_with = "millis::<10, 60_000, _>")]
    pub acquire_timeout: Duration,
    #[serde(deserialize_with = "millis::<10, 600_000, _>")]
    pub statement_timeout: Duration,
    #[serde(deserialize_with = "millis::<1, 600_000, _>")]
    pub slow_query_threshold: Duration,
    pub migrate_on_start: bool,
}

fn is_postgres(url: &Option<SecretString>, (): &()) -> garde::Result {
    let url = url.as_ref().map_or("", |url| url.expose_secret());
    // sqlx takes what any scheme leads to.
    let fits = url.starts_with("postgres") && options(url).is_ok();
    check(fits, "expected postgres://user:password@host:port/name, here or in DATABASE_URL")
}

/// In silence: sqlx tells of parameters that it does not know, with their values, which may be secrets.
fn options(url: &str) -> sqlx::Result<PgConnectOptions> {
    tracing::subscriber::with_default(tracing::subscriber::NoSubscriber::default(), || url.parse())
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("no such task")]
    NotFound,
    #[error("the task has another version")]
    VersionMismatch,
    /// The server, or a free connection to it, could not be had in time.
    #[error("the database is unavailable")]
    Unavailable(#[source] sqlx::Error),
    /// A constraint of the schema does not allow the change.
    #[error("the change contradicts other data")]
    Conflict(#[source] sqlx::Error),
    #[error("the database refused")]
    Refused(#[source] sqlx::Error),
}

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        // Class 08: no connection, as a pooler says; 28 and 3D: none for this user or database; 40: rolled back; 53: out
        // of resources; 55: locked; 57: ended by an operator or a timeout; 25006: read-only; 42P01, 42703: not migrated yet.
        let passing = ["08", "28", "3D", "40", "53", "55", "57", "25006", "42P01", "42703"];
        match &error {
            sqlx::Error::Database(refusal) => match refusal.code() {
                Some(code) if passing.iter().any(|class| code.starts_with(class)) => Self::Unavailable(error),
                Some(code) if code.starts_with("23") => Self::Conflict(error),
                _ => Self::Refused(error),
            },
            sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_) | sqlx::Error::ColumnNotFound(_) => {
                Self::Refused(error)
            }
            _ => Self::Unavailable(error),
        }
    }
}

/// For how long a connection that worked when it was given back is trusted. Under load that spares each query a second
/// way to the server and back.
const FRESH: Duration = Duration::from_millis(10);
/// What a server that works may need beyond the statement timeout, which it holds itself.
const SLACK: Duration = Duration::from_secs(1);

/// A pool of connections. Clones share it.
#[derive(Clone, Debug)]
pub struct Store {
    pool: PgPool,
    /// After which a server that has not answered is given up, whoever waits for it.
    patience: Duration,
    /// From which a query is told of.
    slow: Duration,
}

/// As `query_as!` reads the column, which is text.
impl From<String> for Status {
    fn from(text: String) -> Self {
        if text == "completed" { Self::Completed } else { Self::Open }
    }
}

/// Queries name their columns: a plan that is kept for `*` fails once a later release has added one.
impl Store {
    /// A pool that connects when it is first used, so that the service starts before its database.
    pub fn open(config: &crate::config::Config) -> anyhow::Result<Self> {
        let config = &config.database;
        let url = config.url.as_ref().map_or("", |url| url.expose_secret());
        let statement_timeout = config.statement_timeout.as_millis().to_string();
        let options = options(url)?
            .application_name(env!("CARGO_PKG_NAME"))
            .options([("statement_timeout", statement_timeout)])
            // Of no use here, and more than pgbouncer lets through.
            .extra_float_digits(None)
            // Queries are measured under their names; their text in the log would say less.
            .disable_statement_logging();
        let pool = PgPoolOptions::new()
            .max_connections(config.max_connections)
            .acquire_timeout(config.acquire_timeout)
            .test_before_acquire(false)
            .before_acquire(|connection, about| {
                Box::pin(async move { Ok(about.idle_for < FRESH || connection.ping().await.is_ok()) })
            })
            .connect_lazy_with(options);
        let (patience, slow) = (config.statement_timeout + SLACK, config.slow_query_threshold);
        Ok(Self { pool, patience, slow })
    }

    /// Readiness: the server answers and the schema is at least as new as this binary's. Asked over a connection of its
    /// own: a pool that is used up would take all replicas out at once, when each of them is needed.
    pub fn checks(&self) -> Vec<Check> {
        let options = PgConnectOptions::clone(&self.pool.connect_options());
        let pool = PgPoolOptions::new()
            .max_connections(1)
            .acquire_timeout(self.pool.options().get_acquire_timeout())
            .connect_lazy_with(options);
        let store = Self { pool, ..self.clone() };
        vec![Check::new("postgres", true, move || {
            let store = store.clone();
            async move { store.schema_is_current().await }
        })]
    }

    /// Sets the gauges of the pool.
    pub fn observe(&self) {
        let idle = self.pool.num_idle();
        let open = self.pool.size() as usize;
        gauge!("db_pool_connections", "state" => "idle").set(as_f64(idle));
        gauge!("db_pool_connections", "state" => "used").set(as_f64(open.saturating_sub(idle)));
        gauge!("db_pool_connections_max").set(f64::from(self.pool.options().get_max_connections()));
    }

    /// Ends all connections, once their queries have.
    pub async fn close(&self) {
        self.pool.close().await;
    }

    pub async fn create(&self, new: NewTask) -> Result<Task, Error> {
        let mut leased = self.acquire().await?;
        let query = sqlx::query_as!(
            Task,
            "INSERT INTO tasks (id, title, description, status, version, created_at, updated_at)
             VALUES ($1, $2, $3, 'open', 1, now(), now())
             RETURNING id, title, description, status, version, created_at, updated_at, completed_at",
            Uuid::now_v7(),
            new.title,
            new.description
        );
        Ok(self.timed("create_task", query.fetch_one(&mut *leased.connection)).await?)
    }

    pub async fn get(&self, id: Uuid) -> Result<Task, Error> {
        self.read(&mut self.acquire().await?.connection, id).await
    }

    async fn read(&self, connection: &mut PgConnection, id: Uuid) -> Result<Task, Error> {
        let query = sqlx::query_as!(
            Task,
            "SELECT id, title, description, status, version, created_at, updated_at, completed_at FROM tasks
             WHERE id = $1",
            id
        );
        self.timed("get_task", query.fetch_optional(connection)).await?.ok_or(Error::NotFound)
    }

    /// At most `limit` tasks after the id `after`, in the order of their ids.
    pub async fn list(&self, status: Option<Status>, after: Uuid, limit: u16) -> Result<Vec<Task>, Error> {
        let mut leased = self.acquire().await?;
        let limit = i64::from(limit);
        // Two statements and not one with an OR, so that each has an index that fits it.
        Ok(if let Some(status) = status {
            let query = sqlx::query_as!(
                Task,
                "SELECT id, title, description, status, version, created_at, updated_at, completed_at FROM tasks
                 WHERE status = $1 AND id > $2 ORDER BY id LIMIT $3",
                status.into_str(),
                after,
                limit
            );
            self.timed("list_tasks_by_status", query.fetch_all(&mut *leased.connection)).await?
        } else {
            let query = sqlx::query_as!(
                Task,
                "SELECT id, title, description, status, version, created_at, updated_at, completed_at FROM tasks
                 WHERE id > $1 ORDER BY id LIMIT $2",
                after,
                limit
            );
            self.timed("list_tasks", query.fetch_all(&mut *leased.connection)).await?
        })
    }

    /// Changes a task, if it still has `version` where one is given: else [`Error::VersionMismatch`].
    pub async fn update(&self, id: Uuid, version: Option<i64>, patch: TaskPatch) -> Result<Task, Error> {
        let mut leased = self.acquire().await?;
        let query = sqlx::query_as!(
            Task,
            "UPDATE tasks SET title = COALESCE($3, title),
                 description = CASE WHEN $4 THEN $5 ELSE description END,
                 version = version + 1, updated_at = now()
             WHERE id = $1 AND version = COALESCE($2, version)
             RETURNING id, title, description, status, version, created_at, updated_at, completed_at",
            id,
            version,
            patch.title,
            patch.description.is_some(),
            patch.description.flatten()
        );
        match self.timed("update_task", query.fetch_optional(&mut *leased.connection)).await? {
            Some(task) => Ok(task),
            None => Err(self.missed(&mut leased.connection, id).await),
        }
    }

    /// Completes a task, if it still has `version` where one is given: else [`Error::VersionMismatch`]. The first time,
    /// the job that `job` makes is stored in the same transaction; it is returned as well.
    pub async fn complete(
        &self,
        id: Uuid,
        version: Option<i64>,
        job: impl FnOnce(&Task) -> Option<Job>,
    ) -> Result<(Task, Option<Job>), Error> {
        let mut leased = self.acquire().await?;
        let begun = self.timed("begin", leased.connection.begin()).await;
        // Not taken back where that failed: it may have begun all the same, and nobody would end it.
        let mut transaction = begun.inspect_err(|_| leased.patience = Duration::ZERO)?;
        let query = sqlx::query_as!(
            Task,
            "UPDATE tasks SET status = 'completed', version = version + 1, updated_at = now(), completed_at = now()
             WHERE id = $1 AND status = 'open' AND version = COALESCE($2, version)
             RETURNING id, title, description, status, version, created_at, updated_at, completed_at",
            id,
            version
        );
        let Some(task) = self.timed("complete_task", query.fetch_optional(&mut *transaction)).await? else {
            // Nothing changed: it is completed already, has another version, or does not exist.
            let task = self.read(&mut transaction, id).await?;
            let fits =
                task.status == Status::Completed && version.is_none_or(|wanted| wanted == task.version);
            return if fits { Ok((task, None)) } else { Err(Error::VersionMismatch) };
        };
        let job = job(&task);
        if let Some(job) = &job {
            self.insert_job(&mut transaction, job).await?;
        }
        self.timed("commit", transaction.commit()).await?;
        Ok((task, job))
    }

    /// Deletes a task, if it still has `version` where one is given: else [`Error::VersionMismatch`].
    pub async fn delete(&self, id: Uuid, version: Option<i64>) -> Result<(), Error> {
        let mut leased = self.acquire().await?;
        let query =
            sqlx::query!("DELETE FROM tasks WHERE id = $1 AND version = COALESCE($2, version)", id, version);
        if self.timed("delete_task", query.execute(&mut *leased.connection)).await?.rows_affected() == 0 {
            return Err(self.missed(&mut leased.connection, id).await);
        }
        Ok(())
    }

    /// Why a change that named a version touched no row.
    async fn missed(&self, connection: &mut PgConnection, id: Uuid) -> Error {
        self.read(connection, id).await.err().unwrap_or(Error::VersionMismatch)
    }

    async fn acquire(&self) -> Result<Leased, sqlx::Error> {
        let started = Instant::now();
        // Boxed, since it has room to connect anew, 14 KB, which no future that awaits it should carry and move.
        let connection = Box::pin(self.pool.acquire()).await;
        histogram!("db_pool_acquire_seconds").record(started.elapsed().as_secs_f64());
        Ok(Leased { connection: connection?, patience: self.pool.options().get_acquire_timeout() })
    }

    /// Bounds and measures a query, and tells of one that is slow, under a name of ours: no value can end up in it.
    async fn timed<T>(
        &self,
        name: &'static str,
        query: impl Future<Output = sqlx::Result<T>>,
    ) -> sqlx::Result<T> {
        let started = Instant::now();
        //@ if otlp
        let span = info_span!("query", otel.name = name, otel.kind = "client", db.system.name = "postgresql");
        let query = query.instrument(span);
        //@ end
        let result = tokio::time::timeout(self.patience, query).await;
        let took = started.elapsed();
        let duration_seconds = took.as_secs_f64();
        histogram!("db_query_duration_seconds", "query" => name).record(duration_seconds);
        if took >= self.slow {
            warn!(query = name, duration_seconds, "database.slow_query");
        }
        let silent = |_| io::Error::new(io::ErrorKind::TimedOut, "the server has fallen silent");
        result.map_err(silent)?
    }
}

/// A connection of the pool.
struct Leased {
    connection: PoolConnection<Postgres>,
    /// How long the pool may take to take it back: it asks whether it still works, and waits for ever, so that a server
    /// that has fallen silent would keep the place of each that was in use.
    patience: Duration,
}

impl Drop for Leased {
    fn drop(&mut self) {
        tokio::spawn(tokio::time::timeout(self.patience, Box::pin(self.connection.return_to_pool())));
    }
}
