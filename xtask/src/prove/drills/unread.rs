//! A log that nobody reads: requests go on, each line is kept or counted as lost, and memory is bounded.

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use crate::http::Connection;
use crate::prove::service::Service;

use super::clients::{Latencies, long_tasks, wait_until};
use super::{Site, ensure_timing};

/// Sent once with a reader and once without. More lines than the service's queue and the pipe have room for.
const REQUESTS: usize = 40_000;
const CLIENTS: usize = 4;
/// The ratio of the 99th percentile without the reader to that with it, and what a shared machine may add: a request
/// that waited for the reader would wait forever.
const FACTOR: f64 = 3.0;
const NOISE: Duration = Duration::from_millis(5);
/// In MiB: the queue, full of lines.
const GROWTH: f64 = 16.0;
/// Lines about other things may be lost, too, such as one about a slow query on a busy machine.
const OTHERS: usize = 100;
const LOST: &str = "log_lines_dropped_total";
const BOUND: Duration = Duration::from_secs(10);

pub fn log(site: &Site<'_>) -> Result<String> {
    let service = site.start(site.unlimited())?;
    let path = long_tasks(service.public, 1)?.remove(0);
    let read = asked(service.public, &path)?;
    let before = service.resident()?;
    let stopped = service.stop_reading();
    let unread = asked(service.public, &path)?;
    let (lines_lost, more) = (lost(&service)?, service.resident()? - before);
    drop(stopped);
    ensure!(lines_lost > 0, "no line was lost: the queue never filled");
    ensure!(more < GROWTH, "{more:.1} MiB more while nobody read");
    let said = format!(
        "{lines_lost} lines lost; 99 % answered in {read:.1?} with a reader, in {unread:.1?} without"
    );
    ensure_timing(unread < read.mul_f64(FACTOR) + NOISE, &said)?;
    // One more created the task. A line is kept or lost a moment after its answer.
    let asked = 1 + 2 * REQUESTS;
    let known = || -> Result<usize> { Ok(service.logged("\"message\":\"http.request\"") + lost(&service)?) };
    wait_until("every line read or counted as lost", BOUND, || Ok(known()? >= asked))?;
    let more = known()? - asked;
    ensure!(more <= OTHERS, "{more} lines more are read or counted as lost than requests were made");
    site.stop(service)?;
    Ok(said)
}

fn lost(service: &Service) -> Result<usize> {
    let lost = service.metric(LOST)?.with_context(|| format!("no {LOST}"))?;
    Ok(format!("{lost:.0}").parse()?)
}

/// Requests the task again and again from several clients. Returns the 99th percentile of the latency.
fn asked(address: SocketAddr, path: &str) -> Result<Duration> {
    let client = || -> Result<Latencies> {
        let (mut connection, mut latencies) = (Connection::open(address)?, Latencies::default());
        for _ in 0..REQUESTS / CLIENTS {
            let asked = Instant::now();
            let answer = connection.request("GET", path, "", "")?;
            latencies.add(asked.elapsed());
            ensure!(answer.status == 200, "answered {}: {}", answer.status, answer.body);
        }
        Ok(latencies)
    };
    let mut all = Latencies::default();
    thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(client)).collect();
        clients.into_iter().try_for_each(|client| {
            all.extend(client.join().expect("a client does not panic")?);
            anyhow::Ok(())
        })
    })?;
    Ok(all.percentile(99))
}
