//! Connections to Postgres, each leased to one caller at a time. sqlx's own pool pings the server after each use of a
//! connection: one more round trip per query, during which nobody else can use that connection.

use std::fmt::{self, Debug, Formatter};
use std::io::ErrorKind;
use std::time::Duration;

use deadpool::managed::{self, Metrics, Object, PoolError, QueueMode, RecycleError, RecycleResult};
use parking_lot::Mutex;
use sqlx::postgres::PgConnectOptions;
use sqlx::{Connection, PgConnection};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout, timeout_at};

/// How long after it was last leased a connection is trusted. After that it is pinged before the next lease.
const FRESH: Duration = Duration::from_millis(10);
/// The age at which a connection is replaced: its host name may resolve to another server by then.
const LIFETIME: Duration = Duration::from_mins(30);
/// How long a connection may be idle before it is closed.
const IDLE: Duration = Duration::from_mins(10);
/// Between two attempts to connect, or two checks that all connections are closed.
const RETRY_PAUSE: Duration = Duration::from_millis(50);

/// Clones share the connections.
#[derive(Clone, Debug)]
pub(super) struct Pool(managed::Pool<Connector>);

impl Pool {
    /// Connects on first use, so that the service can start before its database. A connection that is refused is
    /// retried for as long as `retry`.
    pub(super) fn open(options: PgConnectOptions, max: u32, wait: Duration, retry: Duration) -> Self {
        let silent = Mutex::new(Instant::now());
        let connector = Connector { options, acquire_timeout: wait, retry, freed: Notify::new(), silent };
        let connections = managed::Pool::builder(connector)
            .max_size(max as usize)
            // The last one used is the freshest, and surplus ones stay idle until they are closed.
            .queue_mode(QueueMode::Lifo)
            .build()
            .expect("only pool timeouts would need a runtime");
        Self(connections)
    }

    pub(super) fn connector(&self) -> &Connector {
        self.0.manager()
    }

    pub(super) async fn acquire(&self) -> sqlx::Result<Leased> {
        let Connector { acquire_timeout, retry, .. } = *self.connector();
        let (began, mut refused) = (Instant::now(), None);
        loop {
            let wait = if refused.is_some() { retry } else { acquire_timeout };
            match timeout_at(began + wait, self.0.get()).await {
                Ok(Ok(connection)) => {
                    return Ok(Leased { connection: Some(connection), pool: self.0.clone() });
                }
                Ok(Err(PoolError::Backend(error))) if passes(&error) && began.elapsed() < retry => {
                    refused = Some(error);
                }
                Ok(Err(PoolError::Backend(error))) => return Err(error),
                _ => return Err(refused.unwrap_or(sqlx::Error::PoolTimedOut)),
            }
        }
    }

    /// How many connections there may be, are open, and are idle, after closing those idle for too long.
    pub(super) fn count(&self) -> [usize; 3] {
        self.0.retain(|_, about| about.last_used() < IDLE);
        let status = self.0.status();
        [status.max_size, status.size, status.available]
    }

    pub(super) async fn close(&self) {
        while self.0.status().size > 0 {
            for connection in self.0.retain(|_, _| false).removed {
                // If this fails, the server still sees the socket close.
                let _ = connection.close().await;
            }
            sleep(RETRY_PAUSE).await;
        }
    }
}

pub(super) struct Connector {
    pub(super) options: PgConnectOptions,
    /// How long a caller waits for a connection, and the pool for the ping of a dropped one.
    pub(super) acquire_timeout: Duration,
    /// How long connecting is retried while the server refuses.
    retry: Duration,
    /// Told when a connection is given back or closed.
    freed: Notify,
    /// When the last unanswered ping of an idle connection was sent.
    silent: Mutex<Instant>,
}

/// Without the options, which contain the password.
impl Debug for Connector {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        formatter.write_str("Connector")
    }
}

/// Whether the server is starting or has no free slot.
fn passes(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(error) => error.kind() == ErrorKind::ConnectionRefused,
        sqlx::Error::Database(it) => matches!(it.code().as_deref(), Some("53300" | "57P03")),
        _ => false,
    }
}

impl managed::Manager for Connector {
    type Type = PgConnection;
    type Error = sqlx::Error;

    /// Tries once: another connection may become idle before the server accepts one more. A refusal is passed on when
    /// that happens, or after a pause, so that the server is not asked again and again.
    async fn create(&self) -> sqlx::Result<PgConnection> {
        // Boxed: it takes 14 KB, which no future that awaits a connection should carry.
        let result = Box::pin(PgConnection::connect_with(&self.options)).await;
        if result.as_ref().err().is_some_and(passes) {
            let _ = timeout(RETRY_PAUSE.min(self.retry / 4), self.freed.notified()).await;
        }
        result
    }

    async fn recycle(&self, connection: &mut PgConnection, about: &Metrics) -> RecycleResult<sqlx::Error> {
        if about.age() >= LIFETIME {
            return Err(RecycleError::message("old"));
        }
        if about.last_used() >= FRESH {
            // Last used before an unanswered ping, so probably dead too: pinging each would leave no time to reconnect.
            if about.last_used() >= self.silent.lock().elapsed() {
                return Err(RecycleError::message("silent, most likely"));
            }
            let asked = Instant::now();
            let Ok(answered) = timeout(self.acquire_timeout / 4, connection.ping()).await else {
                let mut silent = self.silent.lock();
                *silent = asked.max(*silent);
                return Err(RecycleError::message("silent"));
            };
            answered?;
        }
        Ok(())
    }
}

/// A connection of the pool. If it is dropped, it is pinged before it goes back, which also reads what is left of a
/// cancelled query and rolls back an open transaction.
pub(super) struct Leased {
    /// `None` once it has been given back or closed.
    connection: Option<Object<Connector>>,
    pool: managed::Pool<Connector>,
}

impl Leased {
    pub(super) fn connection(&mut self) -> &mut PgConnection {
        self.connection.as_mut().expect("it was not given back")
    }

    /// Gives it back without a ping: for a connection whose query succeeded.
    pub(super) fn release(mut self) {
        self.connection = None;
    }

    /// Closes it instead of giving it back.
    pub(super) fn discard(mut self) {
        self.connection.take().map(Object::take);
    }
}

impl Drop for Leased {
    fn drop(&mut self) {
        let Some(mut connection) = self.connection.take() else {
            return self.pool.manager().freed.notify_one();
        };
        let pool = self.pool.clone();
        tokio::spawn(async move {
            // Bounded: with a silent server, each connection that was in use would otherwise keep its slot in the pool.
            match timeout(pool.manager().acquire_timeout, connection.ping()).await {
                Ok(Ok(())) => drop(connection),
                _ => drop(Object::take(connection)),
            }
            pool.manager().freed.notify_one();
        });
    }
}
