//! More clients than the process may have file descriptors: it waits until some are free, logs that now and then, and
//! recovers by itself.

use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::children;
use crate::http::{Connection, get};
use crate::prove::service::Service;

use super::Site;
use super::clients::wait_until;

/// Enough for what the service itself needs: its runtime, its listeners, a pool of connections.
const LIMIT: usize = 64;
const CLIENTS: usize = 2 * LIMIT;
/// The default limit on connections.
const DEFAULT: f64 = 10_000.0;
/// And the limit with so few descriptors, of which half are reserved.
const FEW: f64 = 32.0;
/// How long the clients stay.
const HOLD: Duration = Duration::from_secs(1);
/// A listener that can't accept pauses for 10 ms, then twice as long each time, up to a second. There are two, which
/// fail for as long as the clients stay and a busy machine takes to connect and disconnect them.
const LINES: usize = 60;
/// The second that the service may pause between two attempts, and what a busy machine adds.
const BOUND: Duration = Duration::from_secs(5);

/// A service with few descriptors; `limit` holds the options of the shell's `ulimit`.
fn limited(site: &Site<'_>, limit: &str) -> Result<Service> {
    let mut command = children::killed_with_parent(Path::new("sh"));
    // `exec` replaces the shell with the program, so signals reach the program.
    command.arg("-c").arg(format!("ulimit {limit} {LIMIT} && exec \"$0\"")).arg(&site.program);
    site.bare(&mut command)?;
    // The clients must stay connected until they leave by themselves.
    command.envs(site.unlimited().iter().copied()).env("APP__HTTP__HEADER_READ_TIMEOUT", "60s");
    let service = Service::launch(&mut command)?;
    service.ready()?;
    Ok(service)
}

pub fn exhausted(site: &Site<'_>) -> Result<String> {
    let service = limited(site, "-S -n")?;
    let room = service.metric("http_connections_max")?;
    ensure!(room == Some(DEFAULT), "a soft limit leaves room for {room:?} connections");
    site.stop(service)?;

    let service = limited(site, "-n")?;
    service.event("descriptors.few")?;
    let room = service.metric("http_connections_max")?;
    ensure!(room == Some(FEW), "room for {room:?} connections");
    let mut inside = Connection::open(service.public)?;
    ensure!(inside.request("GET", "/health", "", "")?.status == 200, "not alive");

    let started = Instant::now();
    let crowd = crowd_at(service.public)?;
    ensure!(
        get(service.admin, "/health/live")?.status == 200,
        "not alive while clients use up their descriptors"
    );
    // Clients of the public listener can't use up the reserve, those of the admin one can: now no descriptor is left.
    let others = crowd_at(service.admin)?;
    ensure!(service.logged("connection.accept_failed") > 0, "it never ran out of descriptors");
    let known = inside.request("GET", "/health", "", "")?.status;
    ensure!(known == 200, "who was connected before was answered {known}");
    let mut probe = Connection::open(service.admin)?;
    probe.send("GET /health/live HTTP/1.1\r\nhost: drill\r\n\r\n")?;
    drop((crowd, others));

    // A liveness probe sent meanwhile waits only until a descriptor is free.
    ensure!(probe.answers_within(BOUND)?, "no answer to /health/live {BOUND:?} after the clients left");
    ensure!(probe.response()?.status == 200, "/health/live says that it is not");
    let live = wait_until("/health/live", BOUND, || Ok(get(service.admin, "/health/live")?.status == 200))?;
    let served =
        wait_until("a request", BOUND, || Ok(get(service.public, "/v1/tasks?limit=1")?.status == 200))?;
    let lasted = started.elapsed();
    let exit = site.stop(service)?;
    let lines = exit.lines.iter().filter(|line| line.contains("connection.accept_failed")).count();
    ensure!(lines <= LINES, "{lines} times connection.accept_failed in {lasted:.1?}");
    Ok(format!(
        "{CLIENTS} clients of each listener, {LIMIT} descriptors: served {:.0?} after; {lines} failures logged",
        live + served,
    ))
}

/// Clients that connect and stay.
fn crowd_at(address: SocketAddr) -> Result<Vec<TcpStream>> {
    let crowd = (0..CLIENTS).map(|_| TcpStream::connect(address)).collect::<Result<_, _>>()?;
    std::thread::sleep(HOLD);
    Ok(crowd)
}
