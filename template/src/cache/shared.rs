//! The tier that replicas share, in Redis. It is never waited for longer than `redis.timeout`, and while it
//! fails it is not asked at all.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use futures_util::StreamExt;
use garde::Validate;
use metrics::counter;
use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use redis::{AsyncCommands, Client, FromRedisValue, RedisResult, Script, ScriptInvocation};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use tracing::warn;
//@ if otlp
use tracing::{Instrument, info_span};
//@ end
use uuid::Uuid;

use super::missed::Missed;
use crate::config::value::{millis, optional};
use crate::health::Check;
use crate::task::Task;

/// The version that no later one follows.
pub const DELETED: i64 = i64::MAX;

/// Between two attempts to follow other replicas.
pub const RECONNECT: Duration = Duration::from_millis(500);

/// Failures in a row after which Redis is left alone, and for how long.
const FAILURES: u32 = 3;
const PAUSE: Duration = Duration::from_secs(1);

/// Between two attempts to store what could not be stored.
const CATCH_UP: Duration = Duration::from_millis(200);

/// Rises when a task is stored in another shape, so that two releases never read each other's entries.
const TASK: &str = "task:v1";
const CHANGES: &str = "task:changes";

/// Stores `version:json` unless a newer version was seen: a fill that raced a write must not win.
static STORE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "local seen = redis.call('GET', KEYS[1])
         if seen and tonumber(string.match(seen, '^%d+')) > tonumber(ARGV[1]) then return 0 end
         redis.call('SET', KEYS[1], ARGV[1] .. ':' .. ARGV[2], 'PX', ARGV[3])
         return 1",
    )
});

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
pub struct Shared {
    client: Client,
    connection: ConnectionManager,
    breaker: Arc<Breaker>,
    missed: Arc<Mutex<Missed>>,
    timeout: Duration,
    ttl: Duration,
    namespace: Arc<str>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

impl Shared {
    /// Connects when it is first used, so that the service starts before its Redis.
    pub fn open(config: &Config) -> anyhow::Result<Self> {
        // The client brings no TLS provider of its own, and panics without one. Fails if one is installed: fine.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let client = Client::open(config.url.as_ref().map_or("", |url| url.expose_secret()))?;
        let manager = ConnectionManagerConfig::new()
            // The breaker decides when to try again; retries here would only hold requests up.
            .set_number_of_retries(0)
            .set_connection_timeout(Some(config.timeout))
            .set_response_timeout(Some(config.timeout));
        let connection = ConnectionManager::new_lazy_with_config(client.clone(), manager).context("redis")?;
        let namespace = if config.namespace.is_empty() { env!("CARGO_PKG_NAME") } else { &*config.namespace };
        Ok(Self {
            client,
            connection,
            breaker: Arc::default(),
            missed: Arc::default(),
            timeout: config.timeout,
            ttl: config.ttl,
            namespace: namespace.into(),
        })
    }

    pub(super) fn check(&self) -> Check {
        let connection = self.connection.clone();
        Check::new("redis", false, move || {
            let mut connection = connection.clone();
            async move { connection.ping::<()>().await.map_err(|error| error.to_string()) }
        })
    }

    pub(super) async fn get(&self, id: Uuid) -> Option<Task> {
        // Looked up before Redis is asked: once it is forgotten, Redis has that version or a later one.
        let least = self.missed().least(id)?;
        let (mut connection, key) = (self.connection.clone(), self.task(id));
        let found = self.bounded("get", async move { connection.get::<_, Option<String>>(key).await }).await;
        let outcome = match &found {
            Some(Some(_)) => "hit",
            Some(None) => "miss",
            None => "error",
        };
        counter!("cache_requests_total", "tier" => "redis", "outcome" => outcome).increment(1);
        // A mark without a task, or one of another shape, is as good as none.
        let found = found.flatten()?;
        let (version, json) = found.split_once(':')?;
        let overtaken = version.parse::<i64>().ok()? < least;
        if overtaken { None } else { serde_json::from_str(json).ok() }
    }

    /// Stores what was loaded, unless a write has overtaken it.
    pub(super) async fn fill(&self, task: &Task) {
        let json = serde_json::to_string(task).expect("a task is always JSON");
        if !self.store(task.id, task.version, &json).await {
            self.missed().add(task.id, task.version, self.ttl);
        }
    }

    /// Replaces whatever is stored by a mark that only `version` and later ones overwrite, and tells the
    /// other replicas; later, if it can't be done now.
    pub(super) async fn supersede(&self, id: Uuid, version: i64) {
        if !self.superseded(id, version).await {
            self.missed().add(id, version, self.ttl);
        }
    }

    async fn superseded(&self, id: Uuid, version: i64) -> bool {
        let stored = self.store(id, version, "").await;
        let (mut connection, channel) = (self.connection.clone(), self.key(CHANGES));
        let told = async move { connection.publish::<_, _, ()>(channel, id.to_string()).await };
        self.bounded("publish", told).await.is_some() && stored
    }

    /// Supersedes what could not be superseded when it was written, for ever.
    pub(super) async fn catch_up(&self) {
        loop {
            tokio::time::sleep(CATCH_UP).await;
            let missed = self.missed().all();
            for (id, version) in missed {
                if !self.superseded(id, version).await {
                    break;
                }
                self.missed().done(id, version);
            }
        }
    }

    fn missed(&self) -> MutexGuard<'_, Missed> {
        self.missed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn store(&self, id: Uuid, version: i64, json: &str) -> bool {
        // Entries that were filled together don't expire together.
        let ttl = self.ttl.mul_f64(0.9 + 0.2 * fastrand::f64()).as_millis().to_string();
        let mut store = STORE.key(self.task(id));
        store.arg(version).arg(json).arg(ttl);
        self.run::<()>("store", store).await.is_some()
    }

    /// The result of a script, or none as of any command.
    pub async fn run<T: FromRedisValue>(
        &self,
        name: &'static str,
        script: ScriptInvocation<'_>,
    ) -> Option<T> {
        let mut connection = self.connection.clone();
        self.bounded(name, async move { script.invoke_async(&mut connection).await }).await
    }

    fn task(&self, id: Uuid) -> String {
        self.key(&format!("{TASK}:{id}"))
    }

    /// What others who use the same Redis don't touch.
    pub fn key(&self, name: &str) -> String {
        format!("{}:{name}", self.namespace)
    }

    /// Calls `listening` once and then `changed` for each task that another replica has written, until the
    /// connection breaks.
    pub(super) async fn follow<F: Future<Output = ()>>(
        &self,
        listening: impl Fn(),
        changed: impl Fn(Uuid) -> F,
    ) {
        let subscription = async {
            let mut subscription = self.client.get_async_pubsub().await?;
            subscription.subscribe(self.key(CHANGES)).await?;
            Ok::<_, redis::RedisError>(subscription)
        };
        let Ok(Ok(mut subscription)) = tokio::time::timeout(PAUSE, subscription).await else { return };
        listening();
        let mut messages = subscription.on_message();
        while let Some(message) = messages.next().await {
            if let Some(id) = message.get_payload::<String>().ok().and_then(|text| text.parse().ok()) {
                changed(id).await;
            }
        }
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
        match tokio::time::timeout(self.timeout, command).await {
            Ok(Ok(value)) => {
                self.breaker.succeeded();
                Some(value)
            }
            failed => {
                let reason = failed.map_or_else(
                    |_| "timed out".to_owned(),
                    |result| result.map_or_else(|error| error.to_string(), |_| String::new()),
                );
                self.breaker.failed(name, &reason);
                None
            }
        }
    }
}

/// Stops asking a dependency that keeps failing, and asks again after a pause.
#[derive(Debug, Default)]
struct Breaker {
    failures: AtomicU32,
    open_until: Mutex<Option<Instant>>,
}

impl Breaker {
    fn is_open(&self) -> bool {
        self.failures.load(Ordering::Relaxed) >= FAILURES
            && self.until().is_some_and(|until| Instant::now() < until)
    }

    fn succeeded(&self) {
        if self.failures.swap(0, Ordering::Relaxed) >= FAILURES {
            warn!("cache.breaker_closed");
        }
    }

    fn failed(&self, command: &str, reason: &str) {
        if self.failures.fetch_add(1, Ordering::Relaxed) + 1 >= FAILURES {
            let mut open_until = self.open_until.lock().unwrap_or_else(PoisonError::into_inner);
            if open_until.is_none_or(|until| Instant::now() >= until) {
                warn!(command, reason, pause = ?PAUSE, category = "unavailable", "cache.breaker_open");
            }
            *open_until = Some(Instant::now() + PAUSE);
        }
    }

    fn until(&self) -> Option<Instant> {
        *self.open_until.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
