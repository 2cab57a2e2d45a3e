//! Tasks in Postgres. Only this module and its children contain SQL.

use std::io;
use std::time::{Duration, Instant};

use futures_util::TryFutureExt;
use garde::Validate;
use metrics::{gauge, histogram};
use scopeguard::defer;
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, Connection, PgConnection};
use tokio::time::timeout;
//@ if otlp
use tracing::info_span;
//@ end
use tracing::warn;
use uuid::Uuid;

use crate::config::value::{between, check, millis, optional};
use crate::health::Check;
use crate::jobs::Job;
use crate::task::{NewTask, Status, Task, TaskPatch};
use pool::{Leased, Pool};

pub mod dead_letters;
pub mod jobs;
mod pool;
pub mod schema;

#[derive(Debug, Deserialize, Validate)]
#[garde(allow_unvalidated)]
pub struct Config {
    #[serde(deserialize_with = "optional")]
    #[garde(custom(is_postgres))]
    pub url: Option<SecretString>,
    #[garde(custom(between(1, 10_000)))]
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
    // sqlx accepts any scheme.
    let fits = url.starts_with("postgres") && options(url).is_ok();
    check(fits, "expected postgres://user:password@host:port/name, here or in DATABASE_URL")
}

/// Parses with logging off: sqlx logs parameters that it does not know, with their values, which may be secrets.
fn options(url: &str) -> sqlx::Result<PgConnectOptions> {
    tracing::subscriber::with_default(tracing::subscriber::NoSubscriber::default(), || url.parse())
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("no such task")]
    NotFound,
    #[error("the task has another version")]
    VersionMismatch,
    /// The server, or a free connection to it, was not available in time.
    #[error("the database is unavailable")]
    Unavailable(#[source] sqlx::Error),
    /// A constraint of the schema forbids the change.
    #[error("the change conflicts with other data")]
    Conflict(#[source] sqlx::Error),
    #[error("the database rejected the query")]
    Refused(#[source] sqlx::Error),
}

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        // Class 08: no connection, as reported by a pooler; 28 and 3D: user or database refused; 40: rolled back; 53:
        // out of resources; 55: locked; 57 and 25P03: terminated by an operator or a timeout; 25006: read-only; 42P01
        // and 42703: not migrated yet; 0A000: prepared before a migration.
        let passing = ["08", "28", "3D", "40", "53", "55", "57", "25P03", "25006", "42P01", "42703", "0A000"];
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

/// How long a working server may take to answer beyond the statement timeout, which it enforces itself.
const SLACK: Duration = Duration::from_secs(1);

/// A pool of connections. Clones share it.
#[derive(Clone, Debug)]
pub struct Store {
    pool: Pool,
    /// How long a query may go unanswered before it is given up, whoever waits for it.
    query_timeout: Duration,
    /// Queries that take at least this long are logged.
    slow: Duration,
}

/// `query_as!` reads the column, which is text, through this.
impl From<String> for Status {
    fn from(text: String) -> Self {
        // The schema allows no other text.
        text.parse().unwrap_or(Self::Open)
    }
}

/// Queries name their columns: a cached plan for `*` fails once a later release has added one.
impl Store {
    /// A pool that connects on first use, so that the service can start before its database.
    pub fn open(config: &crate::config::Config) -> anyhow::Result<Self> {
        let config = &config.database;
        let url = config.url.as_ref().map_or("", |url| url.expose_secret());
        let statement_timeout = config.statement_timeout.as_millis().to_string();
        let options = options(url)?
            .application_name(env!("CARGO_PKG_NAME"))
            .options([
                ("statement_timeout", &*statement_timeout),
                // A replica that vanishes does not close its connections: its locks would outlive it by hours.
                ("idle_in_transaction_session_timeout", &*statement_timeout),
                ("tcp_keepalives_idle", "30"),
                ("tcp_keepalives_interval", "10"),
                ("tcp_keepalives_count", "3"),
            ])
            // Of no use here, and refused by pgbouncer.
            .extra_float_digits(None)
            // Queries are measured by name, which says more than their text in the log would.
            .disable_statement_logging();
        let acquire_timeout = config.acquire_timeout;
        // Retries end before the caller stops waiting, so that it gets the server's error and not just a timeout.
        let pool = Pool::open(options, config.max_connections, acquire_timeout, acquire_timeout.mul_f64(0.9));
        let (query_timeout, slow) = (config.statement_timeout + SLACK, config.slow_query_threshold);
        Ok(Self { pool, query_timeout, slow })
    }

    /// Readiness: the server answers and the schema is at least as new as this binary's. Checked over a connection of
    /// its own: an exhausted pool would take all replicas out of rotation at once, when every one of them is needed.
    pub fn checks(&self) -> Vec<Check> {
        let connector = self.pool.connector();
        // A refusal is reported at once and not retried: the prober tries again by itself.
        let pool = Pool::open(connector.options.clone(), 1, connector.acquire_timeout, Duration::ZERO);
        let store = Self { pool, ..self.clone() };
        vec![Check::new("postgres", true, move || store.clone().schema_is_current())]
    }

    /// Sets the pool's gauges, and closes connections that have been idle for too long.
    pub fn observe(&self) {
        let [most, open, idle] = self.pool.count();
        gauge!("db_pool_connections", "state" => "idle").set(idle as f64);
        gauge!("db_pool_connections", "state" => "used").set((open - idle) as f64);
        gauge!("db_pool_connections_max").set(most as f64);
    }

    /// Closes all connections, once their queries have ended.
    pub async fn close(&self) {
        self.pool.close().await;
    }

    pub async fn create(&self, new: NewTask) -> Result<Task, Error> {
        let query = sqlx::query_as!(
            Task,
            "INSERT INTO tasks (id, title, description, status, version, created_at, updated_at)
             VALUES ($1, $2, $3, 'open', 1, now(), now())
             RETURNING id, title, description, status, version, created_at, updated_at, completed_at",
            Uuid::now_v7(),
            new.title,
            new.description
        );
        Ok(self.once("create_task", async |connection| query.fetch_one(connection).await).await?)
    }

    pub async fn get(&self, id: Uuid) -> Result<Task, Error> {
        let found = self.once("get_task", async |connection| Self::read(connection, id).await).await?;
        found.ok_or(Error::NotFound)
    }

    async fn read(connection: &mut PgConnection, id: Uuid) -> sqlx::Result<Option<Task>> {
        let query = sqlx::query_as!(
            Task,
            "SELECT id, title, description, status, version, created_at, updated_at, completed_at FROM tasks
             WHERE id = $1",
            id
        );
        query.fetch_optional(connection).await
    }

    /// At most `limit` tasks after the id `after`, in the order of their ids.
    pub async fn list(&self, status: Option<Status>, after: Uuid, limit: u16) -> Result<Vec<Task>, Error> {
        let limit = i64::from(limit);
        // Two statements instead of one with an OR, so that each has an index that fits it.
        Ok(if let Some(status) = status {
            let query = sqlx::query_as!(
                Task,
                // Compared as rows, an order the primary key lacks: a scan of that key could skip half of the table.
                "SELECT id, title, description, status, version, created_at, updated_at, completed_at FROM tasks
                 WHERE (status, id) > ($1, $2) AND (status, id) <= ($1, 'ffffffff-ffff-ffff-ffff-ffffffffffff')
                 ORDER BY status, id LIMIT $3",
                status.into_str(),
                after,
                limit
            );
            self.once("list_tasks_by_status", async |connection| query.fetch_all(connection).await).await?
        } else {
            let query = sqlx::query_as!(
                Task,
                "SELECT id, title, description, status, version, created_at, updated_at, completed_at FROM tasks
                 WHERE id > $1 ORDER BY id LIMIT $2",
                after,
                limit
            );
            self.once("list_tasks", async |connection| query.fetch_all(connection).await).await?
        })
    }

    /// Changes a task. If `version` is given and the task no longer has it, returns [`Error::VersionMismatch`].
    pub async fn update(&self, id: Uuid, version: Option<i64>, patch: TaskPatch) -> Result<Task, Error> {
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
        let row = self.once("update_task", async |connection| query.fetch_optional(connection).await).await?;
        let Some(task) = row else { return Err(self.missed(id).await) };
        Ok(task)
    }

    /// Completes a task. If `version` is given and the task no longer has it, returns [`Error::VersionMismatch`]. The
    /// first time, the job that `job` makes is stored in the same transaction, and returned as well.
    pub async fn complete(
        &self,
        id: Uuid,
        version: Option<i64>,
        job: impl FnOnce(&Task) -> Option<Job>,
    ) -> Result<(Task, Option<Job>), Error> {
        let mut leased = self.acquire().await?;
        let completed = self.complete_on(leased.connection(), id, version, job).await;
        if let Err(Error::Unavailable(_)) = completed {
            // A transaction may have begun all the same, and nothing would end it.
            leased.discard();
        }
        completed
    }

    async fn complete_on(
        &self,
        connection: &mut PgConnection,
        id: Uuid,
        version: Option<i64>,
        job: impl FnOnce(&Task) -> Option<Job>,
    ) -> Result<(Task, Option<Job>), Error> {
        let mut transaction = self.timed("begin", connection.begin()).await?;
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
            let found = self.timed("get_task", Self::read(&mut transaction, id)).await?;
            let task = found.ok_or(Error::NotFound)?;
            let fits = task.status == Status::Completed && version.is_none_or(|asked| asked == task.version);
            return if fits { Ok((task, None)) } else { Err(Error::VersionMismatch) };
        };
        let job = job(&task);
        if let Some(job) = &job {
            self.insert_job(&mut transaction, job).await?;
        }
        self.timed("commit", transaction.commit()).await?;
        Ok((task, job))
    }

    /// Deletes a task. If `version` is given and the task no longer has it, returns [`Error::VersionMismatch`].
    pub async fn delete(&self, id: Uuid, version: Option<i64>) -> Result<(), Error> {
        let query =
            sqlx::query!("DELETE FROM tasks WHERE id = $1 AND version = COALESCE($2, version)", id, version);
        let deleted = self.once("delete_task", async |connection| query.execute(connection).await).await?;
        if deleted.rows_affected() == 0 { Err(self.missed(id).await) } else { Ok(()) }
    }

    /// Why a change affected no row.
    async fn missed(&self, id: Uuid) -> Error {
        self.get(id).await.err().unwrap_or(Error::VersionMismatch)
    }

    /// Runs one query on a connection of its own, which is given back at once if the query succeeds.
    async fn once<T>(
        &self,
        name: &'static str,
        query: impl AsyncFnOnce(&mut PgConnection) -> sqlx::Result<T>,
    ) -> sqlx::Result<T> {
        let mut leased = self.acquire().await?;
        let result = self.timed(name, query(leased.connection())).await;
        let refusal = result.as_ref().err().and_then(sqlx::Error::as_database_error);
        if result.is_ok() {
            leased.release();
        } else if refusal.is_some_and(|it| matches!(it.code().as_deref(), Some("25006" | "0A000"))) {
            // A former primary, whose name may resolve to another server by now; or a statement prepared before a
            // migration changed the type of what it returns.
            leased.discard();
        }
        result
    }

    async fn acquire(&self) -> Result<Leased, sqlx::Error> {
        let started = Instant::now();
        // Recorded even if the wait is cancelled with its request: else a database that blocks would look idle.
        defer!(histogram!("db_pool_acquire_seconds").record(started.elapsed().as_secs_f64()));
        self.pool.acquire().await
    }

    /// Bounds and measures a query, and logs a slow one, all under a name of ours: no value can end up in it.
    async fn timed<T>(
        &self,
        name: &'static str,
        query: impl Future<Output = sqlx::Result<T>>,
    ) -> sqlx::Result<T> {
        let started = Instant::now();
        defer! {
            let took = started.elapsed();
            let duration_seconds = took.as_secs_f64();
            histogram!("db_query_duration_seconds", "query" => name).record(duration_seconds);
            if took >= self.slow {
                warn!(query = name, duration_seconds, "database.slow_query");
            }
        }
        let silent = |_| Err(io::Error::new(io::ErrorKind::TimedOut, "the server did not answer").into());
        let query = timeout(self.query_timeout, query).unwrap_or_else(silent);
        //@ if otlp
        let span = info_span!("query", otel.name = name, otel.kind = "client", db.system.name = "postgresql");
        let query = crate::telemetry::otlp::within(span, query);
        //@ end
        query.await
    }
}
