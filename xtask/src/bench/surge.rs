//! What happens to requests when more arrive than a core can answer.

use std::time::Duration;

use anyhow::Result;

use crate::variant::Variant;

use super::crowd::LARGEST;
use super::load::{Load, Requests};
use super::server::Server;
use super::site::{Contestant, Site};

/// A page that takes long enough for the load generator to request three times what the core can answer.
const TASKS: usize = 100;
const PAGE: &str = "/v1/tasks?limit=100";
/// The service's default.
const IN_FLIGHT: &[(&str, &str)] = &[("APP__HTTP__MAX_IN_FLIGHT", "1000")];
/// The offered load, in multiples of the capacity.
const TIMES: [f64; 4] = [0.5, 1.0, 2.0, 3.0];
/// Clients for a load of one capacity, such that the last step has `LARGEST`. There are so many, each pausing between
/// requests, that those that wait for an answer don't keep the others from sending.
#[expect(clippy::cast_precision_loss, reason = "a few thousand")]
const CLIENTS: f64 = LARGEST as f64 / TIMES[TIMES.len() - 1];

pub struct Surge {
    /// Requests per second that one core can answer.
    pub capacity: f64,
    pub steps: Vec<Step>,
}

pub struct Step {
    pub times: f64,
    /// Requests per second.
    pub answered: f64,
    pub refused: f64,
    /// In milliseconds, over answers and refusals.
    pub p50: f64,
    pub p99: f64,
    /// Peak memory, in MiB.
    pub peak: f64,
}

/// Measures the base variant, in which only its core can be the limit.
pub fn measure(site: &Site<'_>) -> Result<Surge> {
    let capacity = capacity(site)?;
    let steps = TIMES.iter().map(|times| step(site, capacity, *times)).collect::<Result<_>>()?;
    Ok(Surge { capacity, steps })
}

fn capacity(site: &Site<'_>) -> Result<f64> {
    let server = start(site)?;
    let most = load(64, Duration::ZERO, 2).on(site.wrk, &server)?.per_second();
    server.stop();
    Ok(most)
}

fn step(site: &Site<'_>, capacity: f64, times: f64) -> Result<Step> {
    let server = start(site)?;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a few thousand")]
    let clients = (CLIENTS * times) as u64;
    let pause = Duration::from_secs_f64(CLIENTS / capacity);
    let seen = load(clients, pause, 4).over(site.wrk, &server)?;
    let step = Step {
        times,
        answered: (seen.requests - seen.refused) / seen.seconds,
        refused: seen.refused / seen.seconds,
        p50: seen.p50,
        p99: seen.p99,
        peak: server.memory("VmHWM")?,
    };
    server.stop();
    println!(
        "{times} of {capacity:.0}/s: {:.0}/s answered, {:.0}/s refused  {:.2} ms  {:.2} ms  {:.1} MiB",
        step.answered, step.refused, step.p50, step.p99, step.peak
    );
    Ok(step)
}

/// A fresh server for each step, so that the peak memory is the step's own.
fn start(site: &Site<'_>) -> Result<Server> {
    let server = site.start(Contestant::Service(Variant::BASE), IN_FLIGHT)?;
    server.populate(TASKS)?;
    Ok(server)
}

fn load(connections: u64, pause: Duration, seconds: u64) -> Load {
    Load { requests: Requests::Get(vec![PAGE.to_owned()]), connections, pause, seconds }
}
