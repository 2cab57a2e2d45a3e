//! A stop while something that the service talks to is up but doesn't answer.

use std::net::{Ipv4Addr, TcpListener};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use crate::http::{Connection, get, head, request};
use crate::prove::service::{Exit, Service};

use super::Site;
use super::clients::{complete, long_tasks, wait_until};
use super::peers::Receiver;
use super::shutdown::TASK;

const SETTINGS: [(&str, &str); 5] = [
    ("APP__SHUTDOWN__DRAIN_TIMEOUT", "1s"),
    ("APP__SHUTDOWN__FLUSH_TIMEOUT", "1s"),
    ("APP__HTTP__REQUEST_TIMEOUT", "1s"),
    ("APP__WEBHOOK__TIMEOUT", "700ms"),
    ("APP__WEBHOOK__ALLOW_PRIVATE_ADDRESSES", "true"),
];
/// With these, running jobs end long before the drain's deadline, and none starts in the drain: nothing is cut. The gap
/// between the end of these jobs and that of the drain allows for a machine that stalls briefly.
const UNCUT: [(&str, &str); 2] =
    [("APP__SHUTDOWN__DRAIN_TIMEOUT", "2500ms"), ("APP__WEBHOOK__TIMEOUT", "1700ms")];
/// The drain, the flush, and what a busy machine adds: less than the 5 s of any longer wait that a stop might sit out.
const BOUND: Duration = Duration::from_millis(4500);
/// More than run at once, so that some have not started when the stop comes.
const JOBS: usize = 12;

/// Postgres: a request that waits for it is answered, and what can't be finished is cut.
pub fn postgres(site: &Site<'_>) -> Result<String> {
    let service = site.start(&site.with_pool(&SETTINGS))?;
    long_tasks(service.public, 1)?;
    let frozen = site.servers.freeze_postgres()?;
    let mut waiting = Connection::open(service.public)?;
    waiting.send(&(head("POST", "/v1/tasks", "", TASK.len()) + TASK))?;
    thread::sleep(Duration::from_millis(200));
    let signalled = Instant::now();
    service.signal();
    let answer = waiting.response().context("the request that waited for Postgres")?;
    ensure!([503, 504].contains(&answer.status), "answered {}: {}", answer.status, answer.body);
    let (exit, after) = ended(site, service, signalled, &["request.failed"])?;
    drop(frozen);
    let cut = verdict(&exit)?;
    Ok(format!("{} to who waited, {cut} after {after:.1?}", answer.status))
}

/// Redis: bypassed.
pub fn redis(site: &Site<'_>) -> Result<String> {
    let service = site.start(&site.with_pool(&SETTINGS))?;
    let path = long_tasks(service.public, 1)?.remove(0);
    let frozen = site.servers.freeze_redis()?;
    let answer = get(service.public, &path)?;
    ensure!(answer.status == 200, "answered {}: {}", answer.status, answer.body);
    let written = request(service.public, "POST", "/v1/tasks", TASK)?;
    ensure!(written.status == 201, "answered {}: {}", written.status, written.body);
    let signalled = Instant::now();
    service.signal();
    let (exit, after) = ended(site, service, signalled, &[])?;
    drop(frozen);
    let cut = verdict(&exit)?;
    ensure!(exit.code == Some(0), "{cut}: a cache is no reason to cut a drain short");
    Ok(format!("served meanwhile, {cut} after {after:.1?}"))
}

/// A collector that accepts connections and does nothing more: the flush times out.
pub fn collector(site: &Site<'_>) -> Result<String> {
    let silent = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let endpoint = format!("http://{}", silent.local_addr()?);
    let mut settings = site.with_pool(&SETTINGS);
    settings.extend([("APP__OTLP__ENDPOINT", endpoint.as_str()), ("APP__OTLP__SAMPLE_RATIO", "1")]);
    let service = site.start(&settings)?;
    long_tasks(service.public, 5)?;
    let signalled = Instant::now();
    service.signal();
    let (exit, after) = ended(site, service, signalled, &[])?;
    let cut = verdict(&exit)?;
    ensure!(exit.code == Some(0), "{cut}: telemetry is no reason to cut a drain short");
    let flush = exit.event("telemetry.flush").context("no telemetry.flush")?;
    ensure!(flush["status"] == "timeout", "what was not sent is not told: {flush}");
    Ok(format!("flush: timeout, {cut} after {after:.1?}"))
}

/// A receiver that never answers. A queue in memory is lost with the process, which the log and the exit code report;
/// a queue in Postgres is not, and the next process delivers it.
pub fn receiver(site: &Site<'_>) -> Result<String> {
    let silent = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let url = format!("http://{}/hook", silent.local_addr()?);
    let mut command = site.command()?;
    command.envs(site.with_pool(&SETTINGS)).envs(site.unlimited().iter().copied());
    if site.postgres {
        command.envs(UNCUT);
    }
    let service = Service::launch(command.env("APP__WEBHOOK__URL", &url))?;
    service.ready()?;
    for path in long_tasks(service.public, JOBS)? {
        complete(service.public, &path)?;
    }
    let signalled = Instant::now();
    service.signal();
    let (exit, after) = ended(site, service, signalled, &["job.failed", "job.abandoned"])?;
    let cut = verdict(&exit)?;
    if site.postgres {
        ensure!(exit.code == Some(0), "{cut}: nothing was lost");
        let receiver = Receiver::start()?;
        receiver.answer();
        let next = Service::launch(command.env("APP__WEBHOOK__URL", receiver.url()))?;
        let late = wait_until("all jobs delivered", BOUND * 2, || Ok(receiver.delivered() == JOBS))?;
        site.stop(next)?;
        return Ok(format!("{cut} after {after:.1?}; the next process delivered all {JOBS} in {late:.1?}"));
    }
    let count = |name: &str| exit.lines.iter().filter(|line| line.contains(name)).count() as u64;
    let lost = exit.event("job.abandoned").context("no job.abandoned")?["count"].as_u64().unwrap_or(0);
    let failed = count("\"job.failed\"");
    ensure!(
        lost + failed == JOBS as u64,
        "of {JOBS} jobs, {lost} are reported as abandoned and {failed} as failed"
    );
    let counted = exit.event("shutdown.drain_timeout").map(|event| event["jobs_lost"].clone());
    ensure!(counted == Some(lost.into()), "{cut}: {lost} jobs were lost");
    Ok(format!("{cut} after {after:.1?}, {lost} of {JOBS} jobs abandoned and counted"))
}

/// Waits for the process to exit, which it must do in time.
fn ended(site: &Site<'_>, service: Service, signalled: Instant, due: &[&str]) -> Result<(Exit, Duration)> {
    let exit = site.end_expecting(service, BOUND.saturating_sub(signalled.elapsed()), due)?;
    Ok((exit, signalled.elapsed()))
}

/// Checks that the exit code and the log agree: 0 and nothing left, or 3 and what was cut.
fn verdict(exit: &Exit) -> Result<String> {
    let code = exit.code.context("ended by a signal")?;
    let complete = exit.event("shutdown.drain_complete");
    let cut = exit.event("shutdown.drain_timeout");
    match (code, complete, cut) {
        (0, Some(event), None) => {
            ensure!(event["in_flight"] == 0, "drained with requests in flight: {event}");
            Ok("exit 0".into())
        }
        (3, None, Some(event)) => {
            ensure!(event["in_flight"].is_u64(), "what was left is not counted: {event}");
            Ok(format!("exit 3 (in flight {}, jobs lost {})", event["in_flight"], event["jobs_lost"]))
        }
        (code, complete, cut) => anyhow::bail!("exit {code}, and the log says {complete:?} {cut:?}"),
    }
}
