//! Many clients that stay connected: how much memory each takes.

use anyhow::{Result, ensure};

use crate::http::Connection;
use crate::machine::raise_descriptor_limit;

use super::Site;

/// Clients that connect first, so that one-time allocations don't count.
const FIRST: u32 = 100;
const CLIENTS: u32 = 1000;
/// In KiB. Two of hyper's buffers take 8 each, and pages that were never touched are not resident.
const EACH: f64 = 16.0;

pub fn memory(site: &Site<'_>) -> Result<String> {
    raise_descriptor_limit(u64::from(FIRST + CLIENTS) + 500)?;
    let service = site.start(site.unlimited())?;
    let come = |count| {
        (0..count)
            .map(|_| {
                let mut client = Connection::open(service.public)?;
                let answer = client.request("GET", "/health", "", "")?;
                ensure!(answer.status == 200, "answered {}: {}", answer.status, answer.body);
                Ok(client)
            })
            .collect::<Result<Vec<_>>>()
    };
    let first = come(FIRST)?;
    let before = service.resident()?;
    let clients = come(CLIENTS)?;
    let each = (service.resident()? - before) * 1024.0 / f64::from(CLIENTS);
    drop((first, clients));
    site.stop(service)?;
    site.fact("connection_kib", each);
    ensure!(each < EACH, "{each:.1} KiB a connection");
    Ok(format!("{each:.1} KiB a connection"))
}
