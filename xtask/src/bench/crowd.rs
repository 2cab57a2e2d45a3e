//! Many connections at once: the throughput, and the memory that each connection costs.

use std::time::Duration;

use anyhow::Result;

use crate::variant::Variant;

use super::load::{Load, Requests};
use super::site::{Contestant, Site};

pub const LARGEST: u64 = 4096;
const CROWDS: [u64; 3] = [32, 1024, LARGEST];

pub struct Crowd {
    pub label: String,
    pub sizes: Vec<Size>,
}

pub struct Size {
    pub connections: u64,
    pub per_second: f64,
    /// CPU time per request, in microseconds.
    pub cpu: f64,
    /// Peak memory, in MiB.
    pub peak: f64,
}

impl Crowd {
    /// The memory that one more connection takes under full load, in KiB.
    pub fn each(&self) -> f64 {
        let (Some(few), Some(many)) = (self.sizes.first(), self.sizes.last()) else { return 0.0 };
        #[expect(clippy::cast_precision_loss, reason = "a few thousand")]
        let more = (many.connections - few.connections) as f64;
        (many.peak - few.peak) * 1024.0 / more
    }
}

/// Measures each contestant with one worker, then with two.
pub fn measure(site: &Site<'_>) -> Result<Vec<Crowd>> {
    let [base, full] = [Variant::BASE, Variant::FULL].map(Contestant::Service);
    let contestants = [Contestant::Bare("memory"), base, full];
    let turns = [1, 2].into_iter().flat_map(|workers| contestants.map(|who| (who, workers)));
    turns.map(|(who, workers)| measured(site, who, workers)).collect()
}

fn measured(site: &Site<'_>, who: Contestant, workers: usize) -> Result<Crowd> {
    let mut sizes = Vec::new();
    for connections in CROWDS {
        let server = site.start_with(workers, who, &[])?;
        let requests = Requests::Get(server.populate(1)?);
        let load = Load { requests, connections, pause: Duration::ZERO, seconds: 2 };
        let seen = load.on(site.wrk, &server)?;
        let (per_second, cpu) = (seen.per_second(), seen.cpu());
        sizes.push(Size { connections, per_second, cpu, peak: server.memory("VmHWM")? });
        server.stop();
    }
    let label = match workers {
        1 => who.label().to_owned(),
        _ => format!("{}, {workers} workers", who.label()),
    };
    let crowd = Crowd { label, sizes };
    let sizes = crowd.sizes.iter().map(|size| {
        format!("{}: {:.0}/s {:.1} µs {:.1} MiB", size.connections, size.per_second, size.cpu, size.peak)
    });
    println!("connections {:20} {}", crowd.label, sizes.collect::<Vec<_>>().join("  "));
    Ok(crowd)
}
