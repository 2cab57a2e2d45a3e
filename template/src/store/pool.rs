//! Connections to Postgres, lent to one caller at a time. sqlx's own pool asks the server after each use whether the
//! connection still works: for each query one more way there and back, during which nobody else can have it.

use std::fmt::{self, Debug, Formatter};
use std::io::ErrorKind;
use std::time::Duration;

use deadpool::managed::{self, Metrics, Object, PoolError, QueueMode, RecycleError, RecycleResult};
use parking_lot::Mutex;
use sqlx::postgres::PgConnectOptions;
use sqlx::{Connection, PgConnection};
use tokio::time::{Instant, sleep, timeout, timeout_at};

/// For how long after it was lent a connection is trusted. Later it is asked first whether it still works.
const FRESH: Duration = Duration::from_millis(10);
/// After which a connection is made anew: its name may lead elsewhere by then.
const LIFETIME: Duration = Duration::from_mins(30);
/// After which one that nobody needs is closed.
const IDLE: Duration = Duration::from_mins(10);
/// Between two attempts to connect, or looks at whether all has ended.
const PAUSE: Duration = Duration::from_millis(20);

/// Clones share the connections.
#[derive(Clone, Debug)]
pub(super) struct Pool(managed::Pool<Connector>);

impl Pool {
    /// Connects when it is first used, so that the service starts before its database. Where that refuses, it is tried
    /// again for as long as `retry`.
    pub(super) fn open(options: PgConnectOptions, most: u32, patience: Duration, retry: Duration) -> Self {
        let silent = Mutex::new(Instant::now());
        let connections = managed::Pool::builder(Connector { options, patience, retry, silent })
            .max_size(most as usize)
            // The last one used is the freshest, and those that are not needed come of age.
            .queue_mode(QueueMode::Lifo)
            .build()
            .expect("only time-outs of its own could lack a runtime");
        Self(connections)
    }

    pub(super) fn connector(&self) -> &Connector {
        self.0.manager()
    }

    pub(super) async fn acquire(&self) -> sqlx::Result<Leased> {
        let patience = self.connector().patience;
        match timeout(patience, self.0.get()).await {
            Ok(Ok(connection)) => Ok(Leased { connection: Some(connection), patience }),
            Ok(Err(PoolError::Backend(error))) => Err(error),
            _ => Err(sqlx::Error::PoolTimedOut),
        }
    }

    /// How many connections there may be, are, and are idle, without those that were it for too long.
    pub(super) fn count(&self) -> [usize; 3] {
        self.0.retain(|_, about| about.last_used() < IDLE);
        let status = self.0.status();
        [status.max_size, status.size, status.available]
    }

    pub(super) async fn close(&self) {
        while self.0.status().size > 0 {
            for connection in self.0.retain(|_, _| false).removed {
                // A server that does not hear of it sees it end.
                let _ = connection.close().await;
            }
            sleep(PAUSE).await;
        }
    }
}

pub(super) struct Connector {
    pub(super) options: PgConnectOptions,
    /// How long a caller waits for a connection, and one that was given back in doubt for the server.
    pub(super) patience: Duration,
    /// For how long it tries again where the server refuses.
    retry: Duration,
    /// When one was last asked that had fallen silent while it was idle.
    silent: Mutex<Instant>,
}

/// Without the options: they have the password.
impl Debug for Connector {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        formatter.write_str("Connector")
    }
}

impl managed::Manager for Connector {
    type Type = PgConnection;
    type Error = sqlx::Error;

    /// Tries again while the server starts or has no place, and says so while there is someone to hear it.
    async fn create(&self) -> sqlx::Result<PgConnection> {
        let until = Instant::now() + self.retry;
        let mut refused = None;
        loop {
            // Boxed: 14 KB, which no future that awaits a connection should carry.
            let attempt = Box::pin(PgConnection::connect_with(&self.options));
            let result = match refused.take() {
                None => attempt.await,
                Some(before) => timeout_at(until, attempt).await.unwrap_or(Err(before)),
            };
            let passes = match &result {
                Err(sqlx::Error::Io(error)) => error.kind() == ErrorKind::ConnectionRefused,
                Err(sqlx::Error::Database(it)) => matches!(it.code().as_deref(), Some("53300" | "57P03")),
                _ => false,
            };
            if !passes || Instant::now() + PAUSE > until {
                return result;
            }
            refused = result.err();
            sleep(PAUSE).await;
        }
    }

    async fn recycle(&self, connection: &mut PgConnection, about: &Metrics) -> RecycleResult<sqlx::Error> {
        if about.age() >= LIFETIME {
            return Err(RecycleError::message("old"));
        }
        if about.last_used() >= FRESH {
            // So, most likely, are those lent before one that was found silent: to ask each would leave no time for a new one.
            if about.last_used() >= self.silent.lock().elapsed() {
                return Err(RecycleError::message("silent, most likely"));
            }
            let asked = Instant::now();
            let Ok(answered) = timeout(self.patience / 4, connection.ping()).await else {
                let mut silent = self.silent.lock();
                *silent = asked.max(*silent);
                return Err(RecycleError::message("silent"));
            };
            answered?;
        }
        Ok(())
    }
}

/// A connection of the pool. Where it is dropped, the server is asked first whether it still works, which also reads
/// what is left of a query that was given up, and rolls a transaction back.
pub(super) struct Leased {
    /// Until it is given back.
    connection: Option<Object<Connector>>,
    patience: Duration,
}

impl Leased {
    pub(super) fn connection(&mut self) -> &mut PgConnection {
        self.connection.as_mut().expect("it was not given back")
    }

    /// At once: for one whose query has ended well.
    pub(super) fn give_back(mut self) {
        self.connection = None;
    }

    /// Closes it.
    pub(super) fn give_up(mut self) {
        self.connection.take().map(Object::take);
    }
}

impl Drop for Leased {
    fn drop(&mut self) {
        let Some(mut connection) = self.connection.take() else { return };
        let patience = self.patience;
        tokio::spawn(async move {
            // A server that has fallen silent would keep the place of each that was in use.
            if !matches!(timeout(patience, connection.ping()).await, Ok(Ok(()))) {
                drop(Object::take(connection));
            }
        });
    }
}
