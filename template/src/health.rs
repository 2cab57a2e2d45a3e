//! Probes. They read what a background prober last saw and never ask a dependency themselves, so that a probe
//! is cheap, and a slow dependency can't make the orchestrator kill the process.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use anyhow::{Context as _, bail};
use axum::Json;
use axum::Router;
use axum::extract::State as Shared;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, join_all};
use garde::Validate;
use metrics::gauge;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::config::value::millis;
use crate::lifecycle::{Lifecycle, State};

#[derive(Clone, Copy, Debug, Deserialize, Validate)]
#[garde(allow_unvalidated)]
pub struct Config {
    #[serde(deserialize_with = "millis::<50, 300_000, _>")]
    pub interval: Duration,
    #[serde(deserialize_with = "millis::<10, 60_000, _>")]
    pub timeout: Duration,
    #[serde(deserialize_with = "millis::<10, 3_600_000, _>")]
    pub startup_timeout: Duration,
    #[garde(range(min = 1, max = 100))]
    pub failure_threshold: u32,
    #[garde(range(min = 1, max = 100))]
    pub success_threshold: u32,
}

type Probe = Box<dyn Fn() -> BoxFuture<'static, Result<(), String>> + Send + Sync>;

/// How one dependency is asked whether it works.
pub struct Check {
    name: &'static str,
    /// Whether the service is of no use without it.
    required: bool,
    probe: Probe,
}

impl fmt::Debug for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Check").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Check {
    pub fn new<F>(name: &'static str, required: bool, probe: impl Fn() -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<(), String>> + Send + 'static,
    {
        Self { name, required, probe: Box::new(move || Box::pin(probe())) }
    }
}

/// What the prober saw last of one dependency.
#[derive(Clone, Debug, Serialize)]
struct Dependency {
    name: &'static str,
    required: bool,
    status: Status,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    /// Results in a row that speak against `status`.
    #[serde(skip)]
    against: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Status {
    Unknown,
    Up,
    Down,
}

/// The health of the process. Clones share it.
#[derive(Clone, Debug)]
pub struct Health {
    lifecycle: Lifecycle,
    config: Config,
    seen: Arc<RwLock<Seen>>,
    rounds: watch::Sender<u64>,
}

#[derive(Debug)]
struct Seen {
    at: Instant,
    dependencies: Vec<Dependency>,
}

/// What a readiness probe answers.
#[derive(Debug, Serialize)]
struct Readiness {
    status: &'static str,
    degraded: bool,
    checks: Vec<Dependency>,
}

impl Health {
    pub fn new(config: Config, lifecycle: Lifecycle) -> Self {
        let seen = Arc::new(RwLock::new(Seen { at: Instant::now(), dependencies: Vec::new() }));
        Self { lifecycle, config, seen, rounds: watch::Sender::new(0) }
    }

    /// Asks all dependencies again and again, for ever.
    pub async fn probe(self, checks: Vec<Check>) {
        loop {
            let results = join_all(checks.iter().map(|check| self.ask(check))).await;
            self.record(&checks, results);
            self.rounds.send_modify(|rounds| *rounds += 1);
            let starting = self.lifecycle.state() == State::Starting;
            let pause = if starting { Duration::from_millis(100) } else { self.config.interval };
            tokio::time::sleep(pause.min(self.config.interval)).await;
        }
    }

    /// Waits until all required dependencies are up.
    ///
    /// # Errors
    /// The names of those that are not, at the deadline.
    pub async fn all_up(&self, deadline: Instant) -> Result<(), String> {
        let mut rounds = self.rounds.subscribe();
        let up = rounds.wait_for(|rounds| *rounds > 0 && self.missing().is_empty());
        match tokio::time::timeout_at(deadline, up).await {
            Ok(_) => Ok(()),
            Err(_) => Err(self.missing().join(", ")),
        }
    }

    fn missing(&self) -> Vec<String> {
        let seen = self.seen.read().unwrap_or_else(PoisonError::into_inner);
        let missing = seen.dependencies.iter().filter(|one| one.required && one.status != Status::Up);
        missing.map(|one| format!("{} ({})", one.name, one.error.as_deref().unwrap_or("not asked"))).collect()
    }

    async fn ask(&self, check: &Check) -> Result<(), String> {
        // A check that panics has found no working dependency; the other checks go on.
        let asked = AssertUnwindSafe((check.probe)()).catch_unwind();
        match tokio::time::timeout(self.config.timeout, asked).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err("the check panicked".to_owned()),
            Err(_) => Err(format!("no answer within {:?}", self.config.timeout)),
        }
    }

    fn record(&self, checks: &[Check], results: Vec<Result<(), String>>) {
        let mut seen = self.seen.write().unwrap_or_else(PoisonError::into_inner);
        if seen.dependencies.is_empty() {
            let unknown = |check: &Check| Dependency {
                name: check.name,
                required: check.required,
                status: Status::Unknown,
                error: None,
                against: 0,
            };
            seen.dependencies = checks.iter().map(unknown).collect();
        }
        for (dependency, result) in seen.dependencies.iter_mut().zip(results) {
            self.weigh(dependency, result);
        }
        seen.at = Instant::now();
    }

    /// Changes a dependency's status once enough results in a row speak against it; the first one always does.
    fn weigh(&self, dependency: &mut Dependency, result: Result<(), String>) {
        let (status, threshold) = match result {
            Ok(()) => (Status::Up, self.config.success_threshold),
            Err(_) => (Status::Down, self.config.failure_threshold),
        };
        dependency.error = result.err();
        if dependency.status == status {
            dependency.against = 0;
            return;
        }
        dependency.against += 1;
        if dependency.status != Status::Unknown && dependency.against < threshold {
            return;
        }
        (dependency.status, dependency.against) = (status, 0);
        let (name, required, error) = (dependency.name, dependency.required, dependency.error.as_deref());
        gauge!("dependency_up", "dependency" => name).set(if status == Status::Up { 1.0 } else { 0.0 });
        if status == Status::Up {
            info!(dependency = name, "dependency.up");
        } else {
            warn!(dependency = name, required, error, category = "unavailable", "dependency.down");
        }
    }

    fn readiness(&self) -> Readiness {
        let seen = self.seen.read().unwrap_or_else(PoisonError::into_inner);
        // A prober that no longer runs must not leave the last good news standing.
        let stale = seen.at.elapsed() > (self.config.interval + self.config.timeout) * 3;
        let down = |one: &Dependency| one.status != Status::Up;
        let unavailable = stale || seen.dependencies.iter().any(|one| one.required && down(one));
        let status = match self.lifecycle.state() {
            State::Starting => "starting",
            State::Draining | State::Stopped => "draining",
            State::Ready if unavailable => "unavailable",
            State::Ready => "ready",
        };
        let degraded = stale || seen.dependencies.iter().any(down);
        Readiness { status, degraded, checks: seen.dependencies.clone() }
    }
}

#[derive(Serialize)]
struct Brief {
    status: &'static str,
}

/// `/health` and `/ready` of the public listener, which name no dependency.
pub fn public_routes(health: Health) -> Router {
    let ready = async |Shared(health): Shared<Health>| {
        let status = health.readiness().status;
        answer(status, &Brief { status })
    };
    Router::new().route("/health", get(live)).route("/ready", get(ready)).with_state(health)
}

/// `/health/live` and `/health/ready` of the admin listener.
pub fn admin_routes(health: Health) -> Router {
    let ready = async |Shared(health): Shared<Health>| {
        let readiness = health.readiness();
        answer(readiness.status, &readiness)
    };
    Router::new().route("/health/live", get(live)).route("/health/ready", get(ready)).with_state(health)
}

/// Whether the process serves at all. No dependency is asked: a restart would not mend one.
async fn live() -> Response {
    answer("ready", &Brief { status: "ok" })
}

fn answer<T: Serialize>(status: &str, body: &T) -> Response {
    let code = if status == "ready" { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let retry_after = (code != StatusCode::OK).then_some([("retry-after", "1")]);
    (code, retry_after.map(axum::response::AppendHeaders), Json(body)).into_response()
}

/// Asks the service that runs with this configuration whether it lives.
pub fn healthcheck(config: &crate::config::Config) -> anyhow::Result<()> {
    let host =
        if config.admin.host.is_unspecified() { Ipv4Addr::LOCALHOST.into() } else { config.admin.host };
    let url = format!("http://{}/health/live", SocketAddr::new(host, config.admin.port));
    let client = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(2)).build()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    // Inside the runtime from the first step on: the request's deadline is one of its timers.
    let answer = runtime.block_on(async { client.get(&url).send().await });
    let answer = answer.context("the service does not answer")?;
    if !answer.status().is_success() {
        bail!("the service answered {}", answer.status());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn check_that_panics_or_hangs_finds_its_dependency_down() {
        let config = Config {
            interval: Duration::from_millis(50),
            timeout: Duration::from_millis(50),
            startup_timeout: Duration::from_secs(1),
            failure_threshold: 1,
            success_threshold: 1,
        };
        let health = Health::new(config, Lifecycle::default());
        let panics = Check::new("a", true, || async { panic!("planted") });
        assert_eq!(health.ask(&panics).await, Err("the check panicked".to_owned()));
        let hangs = Check::new("b", true, std::future::pending);
        assert_eq!(health.ask(&hangs).await, Err("no answer within 50ms".to_owned()));
    }
}
