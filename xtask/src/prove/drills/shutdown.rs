//! Shutdown drills: SIGTERM while clients are active.

use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::http::{Connection, head};
use crate::prove::service::{Exit, Service};

use super::Site;
use super::clients::{long_tasks, wait_until};

pub const TASK: &str = r#"{"title": "Wash the van"}"#;
const EVENTS: [&str; 6] = [
    "service.start",
    "service.ready",
    "shutdown.begin",
    "shutdown.drain_complete",
    "telemetry.flush",
    "service.exit",
];

/// Half of a body has arrived when SIGTERM comes, and the rest follows after the grace delay.
pub fn slow_request(site: &Site<'_>) -> Result<String> {
    let service = site.start(&[("APP__SHUTDOWN__GRACE_DELAY", "100ms")])?;
    let mut connection = Connection::open(service.public)?;
    let (first, rest) = TASK.split_at(TASK.len() / 2);
    connection.send(&head("POST", "/v1/tasks", "", TASK.len()))?;
    connection.send(first)?;
    taken(&service)?;
    service.signal();
    service.event("shutdown.begin")?;
    thread::sleep(Duration::from_millis(300));
    connection.send(rest)?;
    let answer = connection.response()?;
    ensure!(answer.status == 201, "answered {}: {}", answer.status, answer.body);
    let exit = site.end(service, Duration::from_secs(5))?;
    clean(&exit)?;
    Ok(format!("201, exit 0 after {:.0?}", exit.after))
}

/// The shortest drain that a configuration may have is as long as its longest request.
const SHORT_DRAIN: [(&str, &str); 3] = [
    ("APP__SHUTDOWN__DRAIN_TIMEOUT", "1s"),
    ("APP__HTTP__REQUEST_TIMEOUT", "1s"),
    ("APP__WEBHOOK__TIMEOUT", "1s"),
];
/// The drain's second, and what the flush and a busy machine may take.
const SHORT_BOUND: Duration = Duration::from_secs(4);

/// A request whose rest is never sent is ended by its own deadline, so the stop is a clean one.
pub fn half_sent(site: &Site<'_>) -> Result<String> {
    let mut settings = site.with_pool(&SHORT_DRAIN);
    // Long after the request's deadline: a machine that stalls during both must not let the two expire at once.
    settings.push(("APP__SHUTDOWN__DRAIN_TIMEOUT", "20s"));
    let service = site.start(&settings)?;
    let mut connection = Connection::open(service.public)?;
    connection.send(&head("POST", "/v1/tasks", "", TASK.len()))?;
    connection.send(&TASK[..5])?;
    taken(&service)?;
    service.signal();
    let answer = connection.response()?;
    ensure!(answer.status == 504, "answered {}: {}", answer.status, answer.body);
    let exit = site.end(service, SHORT_BOUND)?;
    clean(&exit)?;
    Ok(format!("504, exit 0 after {:.1?}", exit.after))
}

/// Waits until the one request is being handled.
fn taken(service: &Service) -> Result<Duration> {
    wait_until("the request taken", SHORT_BOUND, || {
        Ok(service.metric("http_requests_in_flight")? == Some(1.0))
    })
}

/// For the kernel's buffers to fill up with answers.
const STUCK_BOUND: Duration = Duration::from_millis(7500);

/// A client that keeps sending requests and reads no answer delays the drain up to its deadline and no longer.
pub fn cut_short(site: &Site<'_>) -> Result<String> {
    let mut settings = site.unlimited().to_vec();
    settings.extend(site.with_pool(&SHORT_DRAIN));
    let service = site.start(&settings)?;
    long_tasks(service.public, 100)?;
    let mut connection = Connection::open(service.public)?;
    // Pages of a megabyte each: more than the sockets of both ends can hold.
    for _ in 0..32 {
        connection.send(&head("GET", "/v1/tasks?limit=100", "", 0))?;
    }
    stuck(&service)?;
    service.signal();
    let exit = site.end(service, SHORT_BOUND)?;
    ensure!(exit.code == Some(3), "exit {:?}, not 3", exit.code);
    let cut = exit.event("shutdown.drain_timeout").context("no shutdown.drain_timeout")?;
    ensure!(cut["in_flight"].as_u64() > Some(0), "what was left is not counted: {cut}");
    Ok(format!("{} in flight were cut, exit 3 after {:.1?}", cut["in_flight"], exit.after))
}

/// Waits until the kernel's buffers hold no more of the answers, so that no further request is answered.
fn stuck(service: &Service) -> Result<Duration> {
    let answered = || service.metric(r#"http_requests_total{method="GET",route="/v1/tasks",status="200"}"#);
    wait_until("a client that reads nothing is served no more", STUCK_BOUND, || {
        let before = answered()?;
        // Three looks, each answered by the service: during a single one, the whole machine might only have stalled.
        for _ in 0..3 {
            thread::sleep(Duration::from_millis(100));
            if before.is_none() || before != answered()? {
                return Ok(false);
            }
        }
        Ok(true)
    })
}

/// Checks that it stopped cleanly, with nothing cut.
pub fn clean(exit: &Exit) -> Result<()> {
    ensure!(exit.code == Some(0), "exit {:?}, not 0", exit.code);
    let seen = exit.order_of(&EVENTS);
    ensure!(seen == EVENTS, "the events came as {seen:?}");
    let drained = exit.event("shutdown.drain_complete").context("no shutdown.drain_complete")?;
    ensure!(drained["in_flight"] == 0, "drained with requests in flight: {drained}");
    Ok(())
}
