//! What can be measured before the first request: the program's size, its time until ready, and its idle memory.

use std::fs;
use std::thread;
use std::time::Duration;

use anyhow::Result;

use crate::variant::Variant;

use super::rows::median;
use super::site::{Contestant, Site};

const STARTS: u32 = 5;
/// By then, the memory that a start needs has been allocated or released again.
const SETTLED: Duration = Duration::from_millis(500);

pub struct Start {
    pub label: &'static str,
    /// Milliseconds until it is ready.
    pub ready: f64,
    /// Idle memory, in MiB.
    pub idle: f64,
    /// Size of the program, in MB.
    pub program: f64,
}

pub fn measure(site: &Site<'_>) -> Result<Vec<Start>> {
    let [base, full] = [Variant::BASE, Variant::FULL].map(Contestant::Service);
    [Contestant::Bare("memory"), Contestant::Loco, base, full]
        .into_iter()
        .map(|who| measured(site, who))
        .collect()
}

fn measured(site: &Site<'_>, who: Contestant) -> Result<Start> {
    let (mut ready, mut idle) = (Vec::new(), Vec::new());
    for _ in 0..STARTS {
        let server = site.start(who, &[])?;
        ready.push(server.ready.as_secs_f64() * 1e3);
        thread::sleep(SETTLED);
        idle.push(server.memory("VmRSS")?);
        server.stop();
    }
    #[expect(clippy::cast_precision_loss, reason = "no program is that big")]
    let program = fs::metadata(site.program(who)?)?.len() as f64 / 1e6;
    let start = Start { label: who.label(), ready: median(&mut ready), idle: median(&mut idle), program };
    println!(
        "start {:18} {:.1} ms  {:.1} MiB idle  {:.1} MB program",
        start.label, start.ready, start.idle, start.program
    );
    Ok(start)
}
