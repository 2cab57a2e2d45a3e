//! What a faulty collector costs: none of the clients' time, bounded memory, and no loss that isn't counted.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use crate::http::Connection;
use crate::prove::service::Service;

use super::Site;
use super::clients::{Latencies, long_tasks, wait_until};
use super::peers::Refuser;
use super::traces::Collector;

/// Per service and round. More than the exporter's queue has room for.
const REQUESTS: usize = 3_000;
/// The bound on the ratio of the medians, faulty to sound, and the rounds that may pass until it holds, each with two
/// new processes: one may happen to be slower by more all its life, but one that waits for its collector always is.
const RATIO: f64 = 1.05;
const ROUNDS: usize = 10;
/// In MiB, beyond a service whose collector accepts everything.
const GROWTH: f64 = 16.0;
const SLOW: Duration = Duration::from_secs(2);
const BOUND: Duration = Duration::from_secs(20);

pub fn faults(site: &Site<'_>) -> Result<String> {
    let collector = Collector::start(site)?;
    let (refusing, slow) = (Refuser::start(Duration::ZERO)?, Refuser::start(SLOW)?);
    // Accepts connections but reads nothing.
    let frozen = TcpListener::bind("127.0.0.1:0")?;
    let faults = [
        ("absent", "http://127.0.0.1:1".to_owned()),
        ("frozen", format!("http://{}", frozen.local_addr()?)),
        ("refusing", refusing.url()),
        ("slow", slow.url()),
    ];
    let mut seen = Vec::new();
    for (fault, endpoint) in faults {
        let ratios = up_to_the_bound(site, &collector.url(), &endpoint).context(fault)?;
        seen.push(format!("{fault} {}", ratios.join(" then ")));
    }
    Ok(format!("of the median with a sound one: {}", seen.join(", ")))
}

/// The ratios of the medians, up to the first that is within the bound.
fn up_to_the_bound(site: &Site<'_>, collector: &str, endpoint: &str) -> Result<Vec<String>> {
    let mut ratios = Vec::new();
    for _ in 0..ROUNDS {
        let ratio = round(site, collector, endpoint)?;
        ratios.push(format!("{ratio:.2}"));
        if ratio <= RATIO {
            return Ok(ratios);
        }
    }
    bail!("{} times the median with a sound collector", ratios.join(", "))
}

fn round(site: &Site<'_>, collector: &str, endpoint: &str) -> Result<f64> {
    let (sound, faulty) = (exporting(site, collector)?, exporting(site, endpoint)?);
    let ratio = ratio_of_medians(&sound, &faulty)?;
    faulty.signal();
    site.end(faulty, BOUND)?;
    wait_until("all spans arrived", BOUND, || Ok(lost(&sound)? == 0.0))?;
    site.stop(sound)?;
    Ok(ratio)
}

/// A service that exports every span to `endpoint`.
fn exporting(site: &Site<'_>, endpoint: &str) -> Result<Service> {
    let mut settings = site.unlimited().to_vec();
    settings.extend([
        ("APP__OTLP__ENDPOINT", endpoint),
        ("APP__OTLP__SAMPLE_RATIO", "1"),
        ("APP__SHUTDOWN__FLUSH_TIMEOUT", "1s"),
        ("APP__LOG__ACCESS", "false"),
        ("OTEL_BSP_SCHEDULE_DELAY", "200"),
    ]);
    site.start(&settings)
}

/// Sends requests to both in turn. Returns the ratio of the medians.
fn ratio_of_medians(sound: &Service, faulty: &Service) -> Result<f64> {
    let paths = [long_tasks(sound.public, 1)?.remove(0), long_tasks(faulty.public, 1)?.remove(0)];
    let mut clients = [Connection::open(sound.public)?, Connection::open(faulty.public)?];
    let mut latencies = [Latencies::default(), Latencies::default()];
    for turn in 0..2 * REQUESTS {
        // A B B A, so that neither gains from always going second.
        let one = turn.div_ceil(2) % 2;
        let asked = Instant::now();
        let answer = clients[one].request("GET", &paths[one], "", "")?;
        latencies[one].add(asked.elapsed());
        ensure!(answer.status == 200, "answered {}", answer.status);
    }
    let (more, lost) = (faulty.resident()? - sound.resident()?, lost(faulty)?);
    ensure!(more < GROWTH, "{more:.0} MiB more than with a sound collector");
    ensure!(lost > 0.0, "nothing is counted as lost");
    let [with, without] = latencies.each_mut().map(|one| one.percentile(50).as_secs_f64());
    Ok(without / with)
}

/// Spans that have ended but have not been exported so far.
fn lost(service: &Service) -> Result<f64> {
    let count = |name: &str| service.metric(name)?.with_context(|| format!("no {name}"));
    Ok(count("spans_ended_total")? - count("spans_exported_total")?)
}
