//! Tasks in Postgres. Only this module and its children know SQL.

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
        // Class 08: no connection, as a pooler says; 28 and 3D: none for this user or database; 40: rolled back; 53:
        // out of resources; 55: locked; 57 and 25P03: ended by an operator or a timeout; 25006: read-only; 42P01,
        // 42703: not migrated yet.
        let passing = ["08", "28", "3D", "40", "53", "55", "57", "25P03", "25006", "42P01", "42703"];
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

/// What a server that works may need beyond the statement timeout, which it holds itself.
const SLACK: Duration = Duration::from_secs(1);

/// A pool of connections. Clones share it.
#[derive(Clone, Debug)]
pub struct Store {
    pool: Pool,
    /// After which a server that has not answered is given up, whoever waits for it.
    patience: Duration,
    /// From which a query is told of.
    slow: Duration,
}

/// As `query_as!` reads the column, which is text.
impl From<String> for Status {
    fn from(text: String) -> Self {
        // The schema allows no other.
        text.parse().unwrap_or(Self::Open)
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
            .options([
                ("statement_timeout", &*statement_timeout),
                // A replica that has vanished tells nobody: its locks would outlast it by hours.
                ("idle_in_transaction_session_timeout", &*statement_timeout),
                ("tcp_keepalives_idle", "30"),
                ("tcp_keepalives_interval", "10"),
                ("tcp_keepalives_count", "3"),
            ])
            // Of no use here, and more than pgbouncer lets through.
            .extra_float_digits(None)
            // Queries are measured under their names; their text in the log would say less.
            .disable_statement_logging();
        let patience = config.acquire_timeout;
        // With time to say what it was refused with, while its caller waits.
        let pool = Pool::open(options, config.max_connections, patience, patience.mul_f64(0.9));
        let (patience, slow) = (config.statement_timeout + SLACK, config.slow_query_threshold);
        Ok(Self { pool, patience, slow })
    }

    /// Readiness: the server answers and the schema is at least as new as this binary's. Asked over a connection of its
    /// own: a pool that is used up would take all replicas out at once, when each of them is needed.
    pub fn checks(&self) -> Vec<Check> {
        let connector = self.pool.connector();
        // What it is refused with is told at once: the prober tries again by itself.
        let pool = Pool::open(connector.options.clone(), 1, connector.patience, Duration::ZERO);
        let store = Self { pool, ..self.clone() };
        vec![Check::new("postgres", true, move || store.clone().schema_is_current())]
    }

    /// Sets the gauges of the pool, and closes what of it has been idle for long.
    pub fn observe(&self) {
        let [most, open, idle] = self.pool.count();
        gauge!("db_pool_connections", "state" => "idle").set(idle as f64);
        gauge!("db_pool_connections", "state" => "used").set((open - idle) as f64);
        gauge!("db_pool_connections_max").set(most as f64);
    }

    /// Ends all connections, once their queries have.
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
        // Two statements and not one with an OR, so that each has an index that fits it.
        Ok(if let Some(status) = status {
            let query = sqlx::query_as!(
                Task,
                // By rows, which the primary key has in no order: a plan that read it could pass by half of the table.
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

    /// Changes a task, if it still has `version` where one is given: else [`Error::VersionMismatch`].
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

    /// Completes a task, if it still has `version` where one is given: else [`Error::VersionMismatch`]. The first time,
    /// the job that `job` makes is stored in the same transaction; it is returned as well.
    pub async fn complete(
        &self,
        id: Uuid,
        version: Option<i64>,
        job: impl FnOnce(&Task) -> Option<Job>,
    ) -> Result<(Task, Option<Job>), Error> {
        let mut leased = self.acquire().await?;
        let completed = self.complete_on(leased.connection(), id, version, job).await;
        if let Err(Error::Unavailable(_)) = completed {
            // A transaction may have begun all the same, and nobody would end it.
            leased.give_up();
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

    /// Deletes a task, if it still has `version` where one is given: else [`Error::VersionMismatch`].
    pub async fn delete(&self, id: Uuid, version: Option<i64>) -> Result<(), Error> {
        let query =
            sqlx::query!("DELETE FROM tasks WHERE id = $1 AND version = COALESCE($2, version)", id, version);
        let deleted = self.once("delete_task", async |connection| query.execute(connection).await).await?;
        if deleted.rows_affected() == 0 { Err(self.missed(id).await) } else { Ok(()) }
    }

    /// Why a change touched no row.
    async fn missed(&self, id: Uuid) -> Error {
        self.get(id).await.err().unwrap_or(Error::VersionMismatch)
    }

    /// One query on a connection of its own, which is given back at once when it has ended well.
    async fn once<T>(
        &self,
        name: &'static str,
        query: impl AsyncFnOnce(&mut PgConnection) -> sqlx::Result<T>,
    ) -> sqlx::Result<T> {
        let mut leased = self.acquire().await?;
        let result = self.timed(name, query(leased.connection())).await;
        let refusal = result.as_ref().err().and_then(sqlx::Error::as_database_error);
        if result.is_ok() {
            leased.give_back();
        } else if refusal.is_some_and(|refusal| refusal.code().as_deref() == Some("25006")) {
            // A former primary: after a failover the same name may lead to another server.
            leased.give_up();
        }
        result
    }

    async fn acquire(&self) -> Result<Leased, sqlx::Error> {
        let started = Instant::now();
        // Also where it is given up with its request: else a database that blocks would look idle.
        defer!(histogram!("db_pool_acquire_seconds").record(started.elapsed().as_secs_f64()));
        self.pool.acquire().await
    }

    /// Bounds and measures a query, and tells of one that is slow, under a name of ours: no value can end up in it.
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
        let silent = |_| Err(io::Error::new(io::ErrorKind::TimedOut, "the server has fallen silent").into());
        let query = timeout(self.patience, query).unwrap_or_else(silent);
        //@ if otlp
        let span = info_span!("query", otel.name = name, otel.kind = "client", db.system.name = "postgresql");
        let query = crate::telemetry::otlp::within(span, query);
        //@ end
        query.await
    }
}
