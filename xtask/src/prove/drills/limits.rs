//! A client that sends several times its budget gets just its budget: from one replica, and from three that share it.

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::http::Connection;

use super::{Site, ensure_timing};

const RATE: f64 = 100.0;
const BURST: f64 = 20.0;
const SETTINGS: [(&str, &str); 2] =
    [("APP__RATE_LIMIT__PER_CLIENT_PER_SECOND", "100"), ("APP__RATE_LIMIT__PER_CLIENT_BURST", "20")];
/// Nothing listens there, so each replica has a budget of its own.
const ALONE: (&str, &str) = ("REDIS_URL", "redis://127.0.0.1:1/0");
const CONNECTIONS: usize = 6;
/// Together the connections send several times the rate, and leave the machine time to answer.
const PAUSE: Duration = Duration::from_millis(5);
const LONG: Duration = Duration::from_secs(5);

pub fn accuracy(site: &Site<'_>) -> Result<String> {
    let alone = share(site, 1, &[ALONE], 0.05)?;
    let together = if site.redis { share(site, 3, &[], 0.10)? } else { "no Redis to share it by".into() };
    Ok(format!("alone: {alone}; three replicas: {together}"))
}

/// What a client gets from that many replicas, compared with what it should get.
fn share(site: &Site<'_>, count: usize, extra: &[(&str, &str)], bound: f64) -> Result<String> {
    let settings = [site.unlimited(), &SETTINGS, extra].concat();
    let replicas = (0..count).map(|_| site.start(&settings)).collect::<Result<Vec<_>>>()?;
    let began = Instant::now();
    let (mut answered, mut asked) = (0.0, 0.0);
    thread::scope(|scope| -> Result<()> {
        let addresses = (0..CONNECTIONS).map(|number| replicas[number % count].public);
        let clients: Vec<_> = addresses.map(|address| scope.spawn(move || client(address, began))).collect();
        for client in clients {
            let (yes, all) = client.join().expect("a client does not panic")?;
            (answered, asked) = (answered + f64::from(yes), asked + f64::from(all));
        }
        Ok(())
    })?;
    let due = BURST + RATE * began.elapsed().as_secs_f64();
    for replica in replicas {
        site.stop(replica)?;
    }
    let off = answered / due - 1.0;
    // One replica's clock decides alone: on a slow machine, it can't grant more than is due.
    ensure!(count > 1 || off <= bound, "{answered} of {asked} answered, only {due:.0} were due");
    ensure_timing(asked > 2.0 * due, &format!("{asked} requests don't use up a budget of {due:.0}"))?;
    ensure_timing(off.abs() <= bound, &format!("{answered} of {asked} answered, {due:.0} were due"))?;
    Ok(format!("{answered} of {asked} answered, {:+.1} %", off * 100.0))
}

/// Returns how many of its requests were answered, and how many it sent.
fn client(address: SocketAddr, began: Instant) -> Result<(u32, u32)> {
    let mut connection = Connection::open(address)?;
    let (mut answered, mut asked) = (0, 0);
    while began.elapsed() < LONG {
        let status = connection.request("GET", "/v1/tasks?limit=1", "", "")?.status;
        ensure!(matches!(status, 200 | 429), "answered {status}");
        answered += u32::from(status == 200);
        asked += 1;
        thread::sleep(PAUSE);
    }
    Ok((answered, asked))
}
