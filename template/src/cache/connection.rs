//! The connection to Redis. It is never waited for longer than `redis.timeout`, and while it fails it is not
//! asked at all.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use garde::Validate;
use redis::aio::{ConnectionManager, ConnectionManagerConfig, PubSub};
use redis::{AsyncCommands, Client, ErrorKind, FromRedisValue, RedisError, RedisResult, ScriptInvocation};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use tracing::warn;
//@ if otlp
use tracing::{Instrument, info_span};
//@ end

use crate::config::value::{millis, optional};
use crate::health::Check;

/// Failures in a row after which Redis is left alone, and for how long.
const FAILURES: u32 = 3;
const PAUSE: Duration = Duration::from_secs(1);

#[derive(Debug, Deserialize, Validate)]
pub struct Config {
    #[serde(deserialize_with = "optional")]
    #[garde(custom(is_redis))]
    pub url: Option<SecretString>,
    #[serde(with = "humantime_serde")]
    #[garde(custom(millis(1, 60_000)))]
    pub timeout: Duration,
    #[serde(with = "humantime_serde")]
    #[garde(custom(millis(1, 86_400_000)))]
    pub ttl: Duration,
    #[garde(skip)]
    pub namespace: String,
}

fn is_redis(url: &Option<SecretString>, (): &()) -> garde::Result {
    match url.as_ref().map(|url| Client::open(url.expose_secret())) {
        Some(Ok(_)) => Ok(()),
        None | Some(Err(_)) => Err(garde::Error::new(
            "expected redis://:password@host:port/0 or rediss://, here or in REDIS_URL",
        )),
    }
}

/// Clones share the connection and the breaker.
#[derive(Clone)]
pub struct Redis {
    client: Arc<Client>,
    connection: Arc<RwLock<ConnectionManager>>,
    breaker: Arc<Breaker>,
    timeout: Duration,
    namespace: Arc<str>,
}

impl std::fmt::Debug for Redis {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Redis").finish_non_exhaustive()
    }
}

impl Redis {
    /// Connects when it is first used, so that the service starts before its Redis.
    pub fn open(config: &Config) -> anyhow::Result<Self> {
        let client = Arc::new(Client::open(config.url.as_ref().map_or("", |url| url.expose_secret()))?);
        let connection = Arc::new(RwLock::new(lazy(&client, config.timeout)?));
        let namespace = if config.namespace.is_empty() { env!("CARGO_PKG_NAME") } else { &*config.namespace };
        let (breaker, timeout) = (Arc::default(), config.timeout);
        Ok(Self { client, connection, breaker, timeout, namespace: namespace.into() })
    }

    /// Asked even while the breaker is open, and closes it.
    pub(super) fn check(&self) -> Check {
        let redis = self.clone();
        Check::new("redis", false, move || {
            let redis = redis.clone();
            async move {
                let pong = redis.connection().ping().await;
                redis.note("ping", &pong);
                pong.map_err(|error| error.to_string())
            }
        })
    }

    /// A name that others who use the same Redis don't touch.
    pub fn key(&self, name: &str) -> String {
        format!("{}:{name}", self.namespace)
    }

    /// The result of a script, or none: too late, failed, or not asked since others failed before.
    pub async fn run<T: FromRedisValue>(
        &self,
        name: &'static str,
        script: ScriptInvocation<'_>,
    ) -> Option<T> {
        let mut connection = self.connection();
        self.bounded(name, async move { script.invoke_async(&mut connection).await }).await
    }

    /// A connection of its own that receives what is published on `channel`.
    pub(super) async fn subscribe(&self, channel: &str) -> Option<PubSub> {
        let subscription = async {
            let mut subscription = self.client.get_async_pubsub().await?;
            subscription.subscribe(self.key(channel)).await?;
            Ok::<_, RedisError>(subscription)
        };
        tokio::time::timeout(PAUSE, subscription).await.ok()?.ok()
    }

    /// The result of a command, or none: too late, failed, or not asked since others failed before.
    async fn bounded<T>(
        &self,
        name: &'static str,
        command: impl Future<Output = RedisResult<T>>,
    ) -> Option<T> {
        if self.breaker.is_open() {
            return None;
        }
        //@ if otlp
        let span = info_span!("cache", otel.name = name, otel.kind = "client", db.system.name = "redis");
        let command = command.instrument(span);
        //@ end
        let too_late = |_| Err((ErrorKind::Io, "timed out").into());
        let result = tokio::time::timeout(self.timeout, command).await.unwrap_or_else(too_late);
        self.note(name, &result);
        result.ok()
    }

    fn note<T>(&self, name: &str, result: &RedisResult<T>) {
        let Err(error) = result else { return self.breaker.succeeded() };
        if self.breaker.failed(name, error)
            && let Ok(anew) = lazy(&self.client, self.timeout)
        {
            // A peer that has vanished tells nobody: what waits on the old connection would do so for minutes.
            *self.connection.write().unwrap_or_else(PoisonError::into_inner) = anew;
        }
    }

    fn connection(&self) -> ConnectionManager {
        self.connection.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn lazy(client: &Client, timeout: Duration) -> anyhow::Result<ConnectionManager> {
    let config = ConnectionManagerConfig::new()
        // The breaker decides when to try again; retries here would only hold requests up.
        .set_number_of_retries(0)
        .set_connection_timeout(Some(timeout))
        .set_response_timeout(Some(timeout));
    ConnectionManager::new_lazy_with_config(client.clone(), config).context("redis")
}

/// Stops asking a dependency that keeps failing. After a pause one caller goes and sees.
#[derive(Debug, Default)]
struct Breaker {
    failures: AtomicU32,
    open_until: Mutex<Option<Instant>>,
    /// Whether that one is on its way.
    trial: AtomicBool,
}

impl Breaker {
    fn is_open(&self) -> bool {
        if self.failures.load(Ordering::Relaxed) < FAILURES {
            return false;
        }
        let mut open_until = self.open_until();
        let open = open_until.is_some_and(|until| Instant::now() < until);
        if !open {
            *open_until = Some(Instant::now() + PAUSE);
            self.trial.store(true, Ordering::Relaxed);
        }
        open
    }

    fn succeeded(&self) {
        if self.failures.swap(0, Ordering::Relaxed) >= FAILURES {
            warn!("cache.breaker_closed");
        }
    }

    /// Returns whether it has just opened, or has been tried in vain.
    fn failed(&self, command: &str, reason: &RedisError) -> bool {
        let failures = self.failures.fetch_add(1, Ordering::Relaxed) + 1;
        if failures >= FAILURES {
            *self.open_until() = Some(Instant::now() + PAUSE);
        }
        if failures == FAILURES {
            warn!(command, %reason, pause = ?PAUSE, category = "unavailable", "cache.breaker_open");
        }
        self.trial.swap(false, Ordering::Relaxed) || failures == FAILURES
    }

    fn open_until(&self) -> MutexGuard<'_, Option<Instant>> {
        self.open_until.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
