//! What becomes of requests when more come than a core can answer.

use std::time::Duration;

use anyhow::Result;

use crate::variant::Variant;

use super::crowd::LARGEST;
use super::load::{Load, Requests};
use super::server::Server;
use super::site::{Contestant, Site};

/// A page that takes long enough for the load to be able to ask for three times as many.
const TASKS: usize = 100;
const PAGE: &str = "/v1/tasks?limit=100";
/// As it comes.
const IN_FLIGHT: &[(&str, &str)] = &[("APP__HTTP__MAX_IN_FLIGHT", "1000")];
/// How much is asked for, in capacities.
const TIMES: [f64; 4] = [0.5, 1.0, 2.0, 3.0];
/// As many clients for one as there may be for the last, who all wait between two requests: some that wait for an answer
/// must not keep the others from asking.
#[expect(clippy::cast_precision_loss, reason = "a few thousand")]
const CLIENTS: f64 = LARGEST as f64 / TIMES[TIMES.len() - 1];

pub struct Surge {
    /// As many as one core answers in a second.
    pub capacity: f64,
    pub steps: Vec<Step>,
}

pub struct Step {
    pub times: f64,
    /// In a second.
    pub answered: f64,
    pub refused: f64,
    /// Milliseconds, of answers and refusals.
    pub p50: f64,
    pub p99: f64,
    /// The most memory there was, in MiB.
    pub peak: f64,
}

/// Of the base variant, where nothing but its core can be the limit.
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

/// Anew for each: the most memory that there was is to be its own.
fn start(site: &Site<'_>) -> Result<Server> {
    let server = site.start(Contestant::Service(Variant::BASE), IN_FLIGHT)?;
    server.populate(TASKS)?;
    Ok(server)
}

fn load(connections: u64, pause: Duration, seconds: u64) -> Load {
    Load { requests: Requests::Get(vec![PAGE.to_owned()]), connections, pause, seconds }
}
