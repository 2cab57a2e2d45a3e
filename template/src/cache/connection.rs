//! The connection to Redis: no script waits longer than `redis.timeout`, and few are sent while Redis keeps failing.

use std::mem::take;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use futures_util::TryFutureExt;
use garde::Validate;
use metrics::histogram;
use parking_lot::Mutex;
use redis::aio::{ConnectionManager, ConnectionManagerConfig, PubSub};
use redis::{
    AsyncCommands, Client, ErrorKind, FromRedisValue, RedisResult, ScriptInvocation, ServerErrorKind,
};
use scopeguard::defer;
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use tokio::time::timeout;
//@ if otlp
use tracing::info_span;
//@ end
use tracing::warn;

use crate::config::value::{check, millis, optional};
use crate::health::Check;

/// The circuit breaker: how many failures in a row open it, and for how long.
const BREAKER_FAILURES: u32 = 3;
const COOLDOWN: Duration = Duration::from_secs(1);

#[derive(Debug, Deserialize, Validate)]
#[garde(allow_unvalidated)]
pub struct Config {
    #[serde(deserialize_with = "optional")]
    #[garde(custom(is_redis))]
    pub url: Option<SecretString>,
    #[serde(deserialize_with = "millis::<1, 60_000, _>")]
    pub timeout: Duration,
    #[serde(deserialize_with = "millis::<1, 86_400_000, _>")]
    pub ttl: Duration,
    pub namespace: String,
}

fn is_redis(url: &Option<SecretString>, (): &()) -> garde::Result {
    let fits = url.as_ref().is_some_and(|url| Client::open(url.expose_secret()).is_ok());
    check(fits, "expected redis://:password@host:port/0 or rediss://, here or in REDIS_URL")
}

/// Clones share the connection and its state.
#[derive(Clone, Debug)]
pub struct Redis {
    client: Client,
    state: Arc<Mutex<State>>,
    timeout: Duration,
    namespace: Arc<str>,
}

#[derive(Debug)]
struct State {
    connection: ConnectionManager,
    /// In a row.
    failures: u32,
    /// After too many failures: until when Redis is left alone. Then one caller tries it again.
    paused_until: Instant,
}

impl Redis {
    /// Connects on first use, so that the service can start before its Redis.
    pub fn open(config: &Config) -> anyhow::Result<Self> {
        let client = Client::open(config.url.as_ref().map_or("", |url| url.expose_secret()))?;
        let connection = lazy(&client, config.timeout)?;
        let state = Arc::new(Mutex::new(State { connection, failures: 0, paused_until: Instant::now() }));
        let namespace = if config.namespace.is_empty() { env!("CARGO_PKG_NAME") } else { &*config.namespace };
        Ok(Self { client, state, timeout: config.timeout, namespace: namespace.into() })
    }

    /// Pings Redis even during a pause, and ends the pause if it answers.
    pub(super) fn check(&self) -> Check {
        let redis = self.clone();
        Check::new("redis", false, move || redis.clone().ping())
    }

    async fn ping(self) -> Result<(), String> {
        let mut connection = self.state.lock().connection.clone();
        let pong = connection.ping().await;
        if pong.is_err() || self.state.lock().failures < BREAKER_FAILURES {
            self.record_outcome("ping", &pong);
        } else {
            // A server that refuses writes still answers pings, so the next caller has to find out whether it works.
            self.state.lock().paused_until = Instant::now();
        }
        pong.map_err(|error| error.to_string())
    }

    /// A name that other users of the same Redis don't touch.
    pub fn key(&self, name: &str) -> String {
        [&*self.namespace, name].join(":")
    }

    /// The result of a script. `None` if it was too late, failed, or was not sent because others failed before.
    pub async fn run<T: FromRedisValue>(&self, name: &'static str, call: ScriptInvocation<'_>) -> Option<T> {
        let mut connection = self.connection()?;
        let started = Instant::now();
        defer! {
            let took = started.elapsed().as_secs_f64();
            histogram!("redis_command_duration_seconds", "command" => name).record(took);
        }
        let too_late = |_| Err((ErrorKind::Io, "timed out").into());
        let command = timeout(self.timeout, call.invoke_async(&mut connection)).unwrap_or_else(too_late);
        //@ if otlp
        let span = info_span!("cache", otel.name = name, otel.kind = "client", db.system.name = "redis");
        let command = crate::telemetry::otlp::within(span, command);
        //@ end
        let result = command.await;
        self.record_outcome(name, &result);
        result.ok()
    }

    /// A connection of its own that receives what is published on `channel`.
    pub(super) async fn subscribe(&self, channel: &str) -> RedisResult<PubSub> {
        let subscription = async {
            let mut subscription = self.client.get_async_pubsub().await?;
            subscription.subscribe(self.key(channel)).await?;
            Ok(subscription)
        };
        timeout(COOLDOWN, subscription).await.unwrap_or_else(|_| Err((ErrorKind::Io, "timed out").into()))
    }

    /// `None` during a pause.
    fn connection(&self) -> Option<ConnectionManager> {
        let mut state = self.state.lock();
        if state.failures >= BREAKER_FAILURES {
            if Instant::now() < state.paused_until {
                return None;
            }
            state.paused_until = Instant::now() + COOLDOWN;
        }
        Some(state.connection.clone())
    }

    fn record_outcome<T>(&self, command: &str, result: &RedisResult<T>) {
        let mut state = self.state.lock();
        let Err(reason) = result else {
            if take(&mut state.failures) >= BREAKER_FAILURES {
                warn!("cache.breaker_closed");
            }
            return;
        };
        // The server became a replica, and its name may resolve to another by now. The lookups that it still answers
        // would hide that forever. Before Redis 7, a script's error quotes the error of its command.
        let demoted = reason.kind() == ErrorKind::Server(ServerErrorKind::ReadOnly)
            || reason.detail().is_some_and(|detail| detail.contains("-READONLY "));
        state.failures = if demoted { BREAKER_FAILURES.max(state.failures + 1) } else { state.failures + 1 };
        if state.failures == BREAKER_FAILURES {
            warn!(command, %reason, pause = ?COOLDOWN, category = "unavailable", "cache.breaker_open");
        }
        if state.failures >= BREAKER_FAILURES
            && let Ok(anew) = lazy(&self.client, self.timeout)
        {
            state.paused_until = Instant::now() + COOLDOWN;
            // A peer that vanishes does not close the connection: calls waiting on it would hang for minutes.
            state.connection = anew;
        }
    }
}

fn lazy(client: &Client, timeout: Duration) -> anyhow::Result<ConnectionManager> {
    let config = ConnectionManagerConfig::new()
        // The caller decides when to retry; retries here would only hold up requests.
        .set_number_of_retries(0)
        .set_connection_timeout(Some(timeout))
        .set_response_timeout(Some(timeout));
    ConnectionManager::new_lazy_with_config(client.clone(), config).context("redis")
}

#[cfg(test)]
mod tests {
    use redis::RedisError;

    use super::*;

    impl Redis {
        /// One that is never connected to.
        pub(crate) fn nowhere() -> Self {
            let url = Some("redis://127.0.0.1:1".into());
            Self::open(&Config { url, timeout: COOLDOWN, ttl: COOLDOWN, namespace: String::new() })
                .expect("URL")
        }
    }

    /// Otherwise its connection would stay, and each lookup that it answers would close the breaker.
    #[tokio::test]
    async fn server_that_became_a_replica_is_left_at_once() {
        let in_script =
            "Error running script: @user_script:4: -READONLY You can't write against a read only replica.";
        let refusals = [
            (ServerErrorKind::ReadOnly, "You can't write against a read only replica.", true),
            (ServerErrorKind::ResponseError, in_script, true),
            (ServerErrorKind::ResponseError, "Error running script", false),
        ];
        for (kind, detail, left) in refusals {
            let redis = Redis::nowhere();
            let refused = RedisError::from((ErrorKind::Server(kind), "refused", detail.to_owned()));
            redis.record_outcome::<()>("store", &Err(refused));
            assert_eq!(redis.connection().is_none(), left, "{detail}");
        }
    }

    #[tokio::test]
    async fn services_that_share_a_server_share_no_keys() {
        assert_eq!(Redis::nowhere().key("a"), concat!(env!("CARGO_PKG_NAME"), ":a"));
    }
}
