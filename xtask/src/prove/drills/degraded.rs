//! Redis stops answering under load: no request is refused, few wait, and once it answers again it is used again,
//! however much was missed meanwhile.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use crate::http::Connection;

use super::clients::{Latencies, long_tasks, wait_until};
use super::{Site, ensure_timing};

const CLIENTS: usize = 32;
const TASKS: usize = 50;
/// Between two requests of a client: the drill measures waiting, not a CPU that has too much to do.
const PAUSE: Duration = Duration::from_millis(40);
/// For connections to be opened and caches to fill.
const WARM: Duration = Duration::from_secs(1);
const NORMAL: Duration = Duration::from_secs(3);
/// For the calls in flight to fail, after which the breaker is open.
const OPENING: Duration = Duration::from_secs(1);
const SILENT: Duration = Duration::from_secs(6);
/// Reads of tasks that don't exist: more than a replica remembers as missed.
const UNKNOWN_TASKS: usize = 12_000;
/// Longer than it takes to tell Redis, and other replicas, about what was missed.
const LATER: Duration = Duration::from_millis(500);
/// Far less than the TTL of what is in Redis.
const KEPT: Duration = Duration::from_secs(20);
/// The ratio of the 99th percentile without Redis to that with it, apart from what a shared machine may add to either.
const FACTOR: f64 = 1.5;
const NOISE: Duration = Duration::from_millis(2);

pub fn without_redis(site: &Site<'_>) -> Result<String> {
    let mut settings = site.unlimited().to_vec();
    // So short that most reads miss this replica's own tier.
    settings.extend([("APP__CACHE__TTL", "50ms"), ("APP__LOG__ACCESS", "false")]);
    let service = site.start(&settings)?;
    let paths = long_tasks(service.public, TASKS)?;
    let over = AtomicBool::new(false);
    let started_at = Instant::now();
    let (frozen_at, mended_at, asked) = thread::scope(|scope| -> Result<_> {
        let clients: Vec<_> =
            (0..CLIENTS).map(|_| scope.spawn(|| reader(service.public, &paths, &over))).collect();
        thread::sleep(WARM + NORMAL);
        let (frozen_at, frozen) = (Instant::now(), site.servers.freeze_redis());
        thread::sleep(OPENING + SILENT);
        // An error is returned later: the clients must first be told to stop.
        let frozen = frozen.map(drop);
        let mended_at = Instant::now();
        let closed = service.event("cache.breaker_closed");
        thread::sleep(NORMAL);
        over.store(true, Ordering::SeqCst);
        let asked = clients.into_iter().map(|client| client.join().expect("a client does not panic"));
        let asked = asked.collect::<Result<Vec<_>>>()?.concat();
        frozen?;
        closed.context("Redis is not used again")?;
        Ok((frozen_at, mended_at, asked))
    })?;
    site.stop(service)?;
    let p99 = |from: Instant, to: Instant| {
        let mut latencies = Latencies::default();
        asked.iter().filter(|(at, _)| (from..to).contains(at)).for_each(|(_, took)| latencies.add(*took));
        (latencies.percentile(99), latencies.count())
    };
    let (normal, _) = p99(started_at + WARM, frozen_at);
    let (silent, count) = p99(frozen_at + OPENING, mended_at);
    ensure_timing(count > CLIENTS * 100, &format!("no more than {count} requests while Redis was silent"))?;
    let said = format!("{} requests answered; p99 {normal:.1?}, without Redis {silent:.1?}", asked.len());
    ensure_timing(silent < normal.mul_f64(FACTOR) + NOISE, &said)?;
    Ok(said)
}

/// Loads more tasks without Redis than a replica remembers as missed. What is read afterwards must be cached again.
pub fn crowded(site: &Site<'_>) -> Result<String> {
    let service = site.start(&[site.unlimited(), &[("APP__LOG__ACCESS", "false")]].concat())?;
    let path = long_tasks(service.public, 1)?.remove(0);
    let frozen = site.servers.freeze_redis()?;
    let all = thread::scope(|scope| {
        let ask = |client: usize| -> Result<()> {
            let mut connection = Connection::open(service.public)?;
            for number in (client..UNKNOWN_TASKS).step_by(CLIENTS) {
                let path = format!("/v1/tasks/00000000-0000-7000-8000-{number:012x}");
                let answer = connection.request("GET", &path, "", "")?;
                ensure!(answer.status == 404, "answered {}: {}", answer.status, answer.body);
            }
            Ok(())
        };
        let clients: Vec<_> = (0..CLIENTS).map(|client| scope.spawn(move || ask(client))).collect();
        clients.into_iter().try_for_each(|client| client.join().expect("a client does not panic"))
    });
    drop(frozen);
    all?;
    let hits = || {
        let count = service.metric("cache_requests_total{tier=\"memory\",outcome=\"hit\"}")?;
        count.context("hits are not counted")
    };
    let mut connection = Connection::open(service.public)?;
    let mut read = || -> Result<()> {
        let answer = connection.request("GET", &path, "", "")?;
        ensure!(answer.status == 200, "answered {}: {}", answer.status, answer.body);
        Ok(())
    };
    let took = wait_until("a task is kept in memory", KEPT, || {
        read()?;
        let before = hits()?;
        thread::sleep(LATER);
        read()?;
        Ok(hits()? > before)
    })?;
    site.stop(service)?;
    Ok(format!("{UNKNOWN_TASKS} loads without Redis, cached again after {took:.1?}"))
}

/// Reads tasks until the drill is over. Returns when each was requested, and how long it took.
fn reader(address: SocketAddr, paths: &[String], over: &AtomicBool) -> Result<Vec<(Instant, Duration)>> {
    let mut connection = Connection::open(address)?;
    let mut asked = Vec::new();
    while !over.load(Ordering::SeqCst) {
        let path = &paths[fastrand::usize(..paths.len())];
        let at = Instant::now();
        let answer = connection.request("GET", path, "", "")?;
        ensure!(answer.status == 200, "answered {}: {}", answer.status, answer.body);
        asked.push((at, at.elapsed()));
        thread::sleep(PAUSE);
    }
    Ok(asked)
}
