//! Probes. They read what a background prober last saw and never call a dependency themselves, so a probe is cheap,
//! and a slow dependency can't make the orchestrator kill the process.

use std::future::ready;
use std::net::{Ipv4Addr, SocketAddr};
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use anyhow::Context as _;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, join_all};
use garde::Validate;
use metrics::gauge;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::config::value::{between, millis};
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
    #[garde(custom(between(1, 100)))]
    pub failure_threshold: u32,
    #[garde(custom(between(1, 100)))]
    pub success_threshold: u32,
}

/// Why the last use of a dependency failed; None if it did not. Clones share it.
pub type LastFailure = watch::Sender<Option<String>>;

/// How to check one dependency.
#[expect(missing_debug_implementations, reason = "what it calls has none")]
pub struct Check {
    name: &'static str,
    /// Whether the service can't work without it.
    required: bool,
    probe: Box<dyn Fn() -> BoxFuture<'static, Result<(), String>> + Send + Sync>,
}

impl Check {
    pub fn new<F>(name: &'static str, required: bool, probe: impl Fn() -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<(), String>> + Send + 'static,
    {
        Self { name, required, probe: Box::new(move || Box::pin(probe())) }
    }

    /// A check of an optional dependency that goes by its last use: no calls are made just to check its health.
    pub fn passive(name: &'static str, last: LastFailure) -> Self {
        Self::new(name, false, move || ready(last.borrow().clone().map_or(Ok(()), Err)))
    }
}

/// What the prober last saw of one dependency.
#[derive(Debug, Serialize)]
struct Dependency {
    name: &'static str,
    required: bool,
    status: Status,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    /// Consecutive results that contradict `status`.
    #[serde(skip)]
    streak: u32,
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
    seen: watch::Sender<Snapshot>,
}

#[derive(Debug)]
struct Snapshot {
    at: Instant,
    dependencies: Vec<Dependency>,
}

impl Health {
    pub fn new(config: Config, lifecycle: Lifecycle, checks: &[Check]) -> Self {
        let unknown = checks.iter().map(|check| {
            let (name, required) = (check.name, check.required);
            Dependency { name, required, status: Status::Unknown, error: None, streak: 0 }
        });
        let seen = Snapshot { at: Instant::now(), dependencies: unknown.collect() };
        Self { lifecycle, config, seen: watch::Sender::new(seen) }
    }

    /// Checks all dependencies at intervals, forever.
    pub async fn probe(self, checks: Vec<Check>) {
        loop {
            let results = join_all(checks.iter().map(|check| self.run_check(check))).await;
            self.seen.send_modify(|seen| {
                seen.at = Instant::now();
                seen.dependencies.iter_mut().zip(results).for_each(|(one, result)| self.record(one, result));
            });
            let starting = self.lifecycle.state() == State::Starting;
            let pause = if starting { Duration::from_millis(100) } else { self.config.interval };
            tokio::time::sleep(pause.min(self.config.interval)).await;
        }
    }

    /// Waits until all were checked and the required ones are up. At the deadline it fails and lists what is missing.
    pub async fn all_up(&self, deadline: Instant) -> Result<(), String> {
        let is_missing =
            |one: &&Dependency| one.status == Status::Unknown || (one.required && one.status == Status::Down);
        let mut seen = self.seen.subscribe();
        let up = seen.wait_for(|seen| !seen.dependencies.iter().any(|one| is_missing(&one)));
        if tokio::time::timeout_at(deadline, up).await.is_ok() {
            return Ok(());
        }
        let tell = |it: &Dependency| format!("{} ({})", it.name, it.error.as_deref().unwrap_or("unchecked"));
        let missing: Vec<_> = self.seen.borrow().dependencies.iter().filter(is_missing).map(tell).collect();
        Err(missing.join(", "))
    }

    async fn run_check(&self, check: &Check) -> Result<(), String> {
        // A check that panics counts as failed; the other checks go on.
        let asked = AssertUnwindSafe((check.probe)()).catch_unwind();
        match tokio::time::timeout(self.config.timeout, asked).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err("the check panicked".to_owned()),
            Err(_) => Err(format!("no answer within {:?}", self.config.timeout)),
        }
    }

    /// Changes a status after enough consecutive results contradict it. The very first result always sets it.
    fn record(&self, dependency: &mut Dependency, result: Result<(), String>) {
        let (status, threshold) = match result {
            Ok(()) => (Status::Up, self.config.success_threshold),
            Err(_) => (Status::Down, self.config.failure_threshold),
        };
        dependency.error = result.err();
        dependency.streak = if dependency.status == status { 0 } else { dependency.streak + 1 };
        if dependency.status != Status::Unknown && dependency.streak < threshold {
            return;
        }
        (dependency.status, dependency.streak) = (status, 0);
        let (name, required, error) = (dependency.name, dependency.required, dependency.error.as_deref());
        gauge!("dependency_up", "dependency" => name).set(if status == Status::Up { 1.0 } else { 0.0 });
        if status == Status::Up {
            info!(dependency = name, "dependency.up");
        } else {
            warn!(dependency = name, required, error, category = "unavailable", "dependency.down");
        }
    }

    /// The status in a word, and whether the results are stale or any dependency, even an optional one, is missing.
    fn readiness(&self, seen: &Snapshot) -> (&'static str, bool) {
        // If the prober has stopped, its last results no longer count.
        let stale = seen.at.elapsed() > (self.config.interval + self.config.timeout) * 3;
        let down = |one: &Dependency| one.status != Status::Up;
        let unavailable = stale || seen.dependencies.iter().any(|one| one.required && down(one));
        let status = match self.lifecycle.state() {
            State::Starting => "starting",
            State::Draining | State::Stopped => "draining",
            State::Ready if unavailable => "unavailable",
            State::Ready => "ready",
        };
        (status, stale || seen.dependencies.iter().any(down))
    }
}

/// `/health` and `/ready` of the public listener, which don't name any dependencies.
pub fn public_routes(health: Health) -> Router {
    let ready = async move || {
        let (status, _) = health.readiness(&health.seen.borrow());
        answer(status, json!({ "status": status }))
    };
    Router::new().route("/health", get(live)).route("/ready", get(ready))
}

/// `/health/live` and `/health/ready` of the admin listener.
pub fn admin_routes(health: Health) -> Router {
    let ready = async move || {
        let seen = health.seen.borrow();
        let (status, degraded) = health.readiness(&seen);
        answer(status, json!({ "status": status, "degraded": degraded, "checks": seen.dependencies }))
    };
    Router::new().route("/health/live", get(live)).route("/health/ready", get(ready))
}

/// Whether the process serves requests at all. Dependencies don't matter here: a restart would not fix them.
async fn live() -> Json<Value> {
    Json(json!({ "status": "ok" }))
}

fn answer(status: &str, body: Value) -> Response {
    if status == "ready" {
        return Json(body).into_response();
    }
    (StatusCode::SERVICE_UNAVAILABLE, [("retry-after", "1")], Json(body)).into_response()
}

/// Checks the liveness of the service that runs with this configuration.
pub async fn healthcheck(admin: crate::server::AdminConfig) -> anyhow::Result<String> {
    let host = if admin.host.is_unspecified() { Ipv4Addr::LOCALHOST.into() } else { admin.host };
    let url = format!("http://{}/health/live", SocketAddr::new(host, admin.port));
    // Without root certificates: loading them takes time, and fails where there are none.
    let client = reqwest::Client::builder().no_proxy().tls_certs_only([]);
    let client = client.timeout(Duration::from_secs(2)).build()?;
    let answer = client.get(url).send().await.and_then(reqwest::Response::error_for_status);
    answer.map(|_| "ok".to_owned()).context("the service does not respond as expected")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lifecycle::Trigger;

    const CONFIG: Config = Config {
        interval: Duration::from_millis(50),
        timeout: Duration::from_millis(50),
        startup_timeout: Duration::from_secs(1),
        failure_threshold: 2,
        success_threshold: 3,
    };

    #[test]
    fn status_changes_once_enough_results_in_a_row_speak_against_it() {
        let checks = [Check::new("a", true, || ready(Ok(())))];
        let health = Health::new(CONFIG, Lifecycle::default(), &checks);
        let results = [
            (true, Status::Up),
            (false, Status::Up),
            (true, Status::Up),
            (false, Status::Up),
            (false, Status::Down),
            (true, Status::Down),
            (true, Status::Down),
            (true, Status::Up),
        ];
        for (number, (works, expected)) in results.into_iter().enumerate() {
            let result = if works { Ok(()) } else { Err("planted".to_owned()) };
            health.seen.send_modify(|seen| health.record(&mut seen.dependencies[0], result));
            assert_eq!(health.seen.borrow().dependencies[0].status, expected, "after {number}");
        }
    }

    #[tokio::test]
    async fn prober_that_no_longer_runs_is_not_believed() {
        let lifecycle = Lifecycle::default();
        lifecycle.apply(Trigger::DependenciesUp);
        let health = Health::new(CONFIG, lifecycle, &[]);
        let readiness = || health.readiness(&health.seen.borrow());
        assert_eq!(readiness(), ("ready", false));
        tokio::time::sleep((CONFIG.interval + CONFIG.timeout) * 3).await;
        assert_eq!(readiness(), ("unavailable", true));
    }

    #[tokio::test]
    async fn check_that_panics_or_hangs_finds_its_dependency_down() {
        let health = Health::new(CONFIG, Lifecycle::default(), &[]);
        let panics = Check::new("a", true, || async { panic!("planted") });
        assert_eq!(health.run_check(&panics).await, Err("the check panicked".to_owned()));
        let hangs = Check::new("b", true, std::future::pending);
        assert_eq!(health.run_check(&hangs).await, Err("no answer within 50ms".to_owned()));
    }
}
