//! Incidents as seen by a real Prometheus with the service's own rules: each raises its alert, which resolves
//! afterwards. Everything that a dashboard or a rule queries exists, too.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use crate::http::{Connection, get, head, request};
use crate::prove::rules::queries;
use crate::prove::service::Service;

use super::Site;
use super::clients::wait_until;
use super::peers::{FaultProxy, Receiver};
use super::prometheus::{BOUND, Prometheus, sped_up};
use super::shutdown::TASK;
use super::traces::Collector;

const CAP: usize = 4;
/// How long traffic runs before the first incident: no alert may fire, though clients make every kind of request.
const QUIET_PERIOD: Duration = Duration::from_secs(4);
/// How soon a request that finds no free slot is answered.
const REFUSED: Duration = Duration::from_millis(500);
const SETTINGS: [(&str, &str); 8] = [
    ("APP__HTTP__MAX_IN_FLIGHT", "4"),
    ("APP__HTTP__BODY_TIMEOUT", "20s"),
    ("APP__HTTP__REQUEST_TIMEOUT", "20s"),
    ("APP__HEALTH__INTERVAL", "200ms"),
    ("APP__HEALTH__TIMEOUT", "200ms"),
    ("APP__JOBS__MAX_ATTEMPTS", "1"),
    ("APP__WEBHOOK__ALLOW_PRIVATE_ADDRESSES", "true"),
    ("APP__LOG__ACCESS", "false"),
];
const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
const EVERY_SPAN_AT_ONCE: [(&str, &str); 2] =
    [("APP__OTLP__SAMPLE_RATIO", "1.0"), ("OTEL_BSP_SCHEDULE_DELAY", "200")];
/// The events that the incidents log as errors.
const EXPECTED: [&str; 2] = ["request.failed", "job.failed"];

/// A service whose connections to everything it talks to can be cut.
struct Scene {
    service: Service,
    /// Each with the alert that cutting it raises.
    proxies: Vec<(&'static str, FaultProxy)>,
    _receiver: Receiver,
    _collector: Option<Collector>,
}

impl Scene {
    fn set(site: &Site<'_>) -> Result<Self> {
        let receiver = Receiver::start()?;
        receiver.answer();
        let mut command = site.command()?;
        command.envs(site.with_pool(&SETTINGS)).envs(site.unlimited().iter().copied());
        command.env("APP__WEBHOOK__URL", receiver.url());
        let mut proxies = vec![("JobsFail", FaultProxy::insert(&mut command, "APP__WEBHOOK__URL")?)];
        if site.postgres {
            proxies.push(("PostgresDown", FaultProxy::insert(&mut command, "DATABASE_URL")?));
        }
        if site.redis {
            proxies.push(("RedisDown", FaultProxy::insert(&mut command, "REDIS_URL")?));
        }
        let collector = site.rotel.map(|_| Collector::start(site)).transpose()?;
        if let Some(collector) = &collector {
            command.env(ENDPOINT, collector.url()).envs(EVERY_SPAN_AT_ONCE);
            proxies.push(("SpansLost", FaultProxy::insert(&mut command, ENDPOINT)?));
        }
        let service = Service::launch(&mut command)?;
        service.ready()?;
        Ok(Self { service, proxies, _receiver: receiver, _collector: collector })
    }
}

pub fn raised(site: &Site<'_>) -> Result<String> {
    let Scene { service, proxies, _receiver, _collector } = Scene::set(site)?;
    let prometheus = Prometheus::start(site, service.admin)?;
    let over = AtomicBool::new(false);
    let (raised, time) = thread::scope(|scope| -> Result<_> {
        scope.spawn(|| visit(service.public, &over));
        let incidents = incidents(&prometheus, service.public, &proxies);
        over.store(true, Ordering::SeqCst);
        incidents
    })?;
    let asked = everything_is_there(site, &prometheus)?;
    drop(prometheus);
    service.signal();
    site.end_expecting(service, Duration::from_secs(5), &EXPECTED)?;
    let names = raised.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
    Ok(format!("{names} fired, and none {time:.0?} after the last incident; {asked} queries answered"))
}

/// Overload, then the loss of everything that the service talks to. Returns what fired, and how soon it resolved.
fn incidents(
    prometheus: &Prometheus,
    address: SocketAddr,
    proxies: &[(&'static str, FaultProxy)],
) -> Result<(BTreeSet<String>, Duration)> {
    thread::sleep(QUIET_PERIOD);
    let firing = prometheus.firing()?;
    ensure!(firing.is_empty(), "before any incident {firing:?} fired");

    let held = (0..CAP).map(|_| hold(address)).collect::<Result<Vec<_>>>()?;
    let mut raised = fires(prometheus, &["RequestsSaturated", "AvailabilityBudgetBurns"])?;
    for mut connection in held {
        connection.send(TASK)?;
        ensure!(connection.response()?.status == 201, "an accepted request was not answered");
    }

    let (receiver, dependencies) = proxies.split_first().context("no proxy")?;
    receiver.1.cut();
    raised.extend(fires(prometheus, &[receiver.0])?);
    for (_, proxy) in dependencies {
        proxy.cut();
    }
    let names: Vec<&str> = dependencies.iter().map(|(alert, _)| *alert).collect();
    raised.extend(fires(prometheus, &names)?);
    for (_, proxy) in proxies {
        proxy.mend();
    }
    let time = wait_until("no alert fires", BOUND * 2, || Ok(prometheus.firing()?.is_empty()))?;
    Ok((raised, time))
}

/// Opens a request that occupies a slot until its body is sent. Retries until a slot is free.
fn hold(address: SocketAddr) -> Result<Connection> {
    let deadline = Instant::now() + BOUND;
    loop {
        let mut connection = Connection::open(address)?;
        connection.send(&head("POST", "/v1/tasks", "", TASK.len()))?;
        if !connection.answers_within(REFUSED)? {
            return Ok(connection);
        }
        ensure!(Instant::now() < deadline, "no slot was free within {BOUND:.0?}");
    }
}

/// Waits until all of `alerts` fire.
fn fires(prometheus: &Prometheus, alerts: &[&str]) -> Result<BTreeSet<String>> {
    let wanted: BTreeSet<String> = alerts.iter().map(|alert| (*alert).to_owned()).collect();
    let mut firing = BTreeSet::new();
    let all = || {
        firing = prometheus.firing()?;
        Ok(firing.is_superset(&wanted))
    };
    wait_until(&format!("{alerts:?} fire"), BOUND, all)?;
    Ok(wanted)
}

/// Does some of everything that clients do, whatever the outcome.
fn visit(address: SocketAddr, over: &AtomicBool) {
    while !over.load(Ordering::SeqCst) {
        let started = Instant::now();
        let task = request(address, "POST", "/v1/tasks", TASK).and_then(|answer| answer.json());
        if let Ok(task) = task
            && let Some(id) = task["id"].as_str()
        {
            let path = format!("/v1/tasks/{id}");
            for _ in 0..5 {
                let _ = get(address, &path);
            }
            let _ = request(address, "POST", &format!("{path}/complete"), "");
            let _ = request(address, "DELETE", &path, "");
        }
        let _ = get(address, "/nowhere");
        thread::sleep(Duration::from_millis(50).saturating_sub(started.elapsed()));
    }
}

/// Checks that every rule and every query of a dashboard finds data in what was scraped. Returns how many there are.
fn everything_is_there(site: &Site<'_>, prometheus: &Prometheus) -> Result<usize> {
    let mut asked = 0;
    for rule in prometheus.rules()? {
        ensure!(rule.error.is_none(), "{}: {:?}", rule.name, rule.error);
        ensure!(answered(prometheus, &rule.query)?, "{}: nothing answers {}", rule.name, rule.query);
        asked += 1;
        ensure!(rule.alert || prometheus.series(&rule.name)? > 0, "{} was not recorded", rule.name);
    }
    for query in queries(&site.dir)? {
        let text = query.text.replace("$__rate_interval", "1m");
        let text = ["$instance", "$namespace"].iter().fold(text, |text, name| text.replace(name, ".*"));
        ensure!(answered(prometheus, &sped_up(&text))?, "{}: nothing answers {text}", query.place);
        asked += 1;
    }
    Ok(asked)
}

/// Whether a query has returned a number. A comparison drops the series for which it is false; turned into a number,
/// 0 or 1, it shows that both of its sides exist.
fn answered(prometheus: &Prometheus, query: &str) -> Result<bool> {
    // A fallback for an empty result is not a result.
    let mut query = query.replace(" or vector(0)", "");
    for comparison in [" > ", " < ", " >= ", " <= ", " == ", " != "] {
        query = query.replace(comparison, &format!("{comparison}bool "));
    }
    Ok(prometheus.series(&query)? > 0)
}
