//! Two replicas behind a real HAProxy, restarted in turn under load, as in a rollout.

use std::fmt::Write as _;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::Signal;

use crate::children::{self, Child, Scratch};
use crate::http::{Connection, Response, get, request};
use crate::prove::service::Service;
use crate::servers::free_port;

use super::Site;
use super::clients::{Latencies, wait_until};
use super::shutdown::{TASK, clean};

const REPLICAS: usize = 2;
const RESTARTS: usize = 20;
const REQUESTS: usize = 100_000;
const CLIENTS: usize = 24;
/// One request in this many is a write.
const WRITES: usize = 20;
/// Nothing takes this long, even on a busy machine.
const BOUND: Duration = Duration::from_mins(3);
const UP: Duration = Duration::from_secs(10);

/// These settings decide which losses show. With `retries 0` and no `redispatch`, a request that a replica refuses,
/// or accepts and does not answer, becomes a 502 or 503 at the client; otherwise HAProxy would silently try the other
/// replica. There is no `retry-on` for the same reason. The rest are HAProxy's defaults: connections to replicas are
/// kept and shared (`http-reuse safe`), which is what makes a stop hard, since a connection that looks idle to
/// HAProxy may be about to be closed.
const PROXY: &str = "\
global
    nbthread 1
defaults
    mode http
    retries 0
    timeout connect 2s
    timeout client 10s
    timeout server 10s
    timeout check 5s
";
const POOL: &str = "    default-server check inter 200ms fall 1 rise 1
    balance roundrobin
    option httpchk
    http-check send meth GET uri /ready ver HTTP/1.1 hdr host drill
    http-check expect status 200
";

struct Proxy {
    child: Child,
    _home: Scratch,
    public: SocketAddr,
    state: SocketAddr,
}

/// A replica, and how to start it again.
struct Replica {
    command: Command,
    /// `None` between two runs.
    service: Option<Service>,
}

pub fn restarts(site: &Site<'_>) -> Result<String> {
    let ports = [free_port()?, free_port()?];
    let mut commands = [command(site, ports[0])?, command(site, ports[1])?];
    share_database(&mut commands);
    let start = |mut command: Command| -> Result<Replica> {
        let service = Service::launch(&mut command)?;
        service.ready()?;
        Ok(Replica { command, service: Some(service) })
    };
    let mut replicas = commands.into_iter().map(start).collect::<Result<Vec<_>>>()?;
    let proxy = Proxy::start(site, &ports)?;
    proxy.wait_up()?;
    let path = if site.postgres { created(proxy.public)? } else { "/v1/tasks?limit=1".into() };

    let (over, done) = (AtomicBool::new(false), AtomicUsize::new(0));
    let started = Instant::now();
    let (seen, rolled) = thread::scope(|scope| {
        let client = || {
            let end = load(proxy.public, &path, &over, &done);
            // One failure is enough to know, so no client need continue.
            over.fetch_or(end.is_err(), Ordering::SeqCst);
            end
        };
        let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(client)).collect();
        let rolled = roll(site, &mut replicas, &proxy, || {
            over.load(Ordering::SeqCst) || done.load(Ordering::Relaxed) >= REQUESTS
        });
        over.store(true, Ordering::SeqCst);
        let ends = clients.into_iter().map(|client| client.join().expect("a client does not panic"));
        (ends.collect::<Vec<Result<Latencies>>>(), rolled)
    });
    let took = started.elapsed();
    for service in replicas.into_iter().filter_map(|replica| replica.service) {
        site.stop(service)?;
    }
    let failed = seen.iter().filter(|end| end.is_err()).count();
    let mut all = Latencies::default();
    for latencies in seen {
        all.extend(latencies.with_context(|| format!("{failed} of {CLIENTS} clients lost a request"))?);
    }
    rolled?;
    ensure!(all.count() >= REQUESTS, "only {} requests", all.count());
    let p99 = all.percentile(99);
    site.fact("rolling_requests", f64::from(u32::try_from(all.count())?));
    site.fact("rolling_p99_ms", p99.as_secs_f64() * 1000.0);
    Ok(format!(
        "{} requests, {RESTARTS} restarts in {:.0} s, 0 failed, p99 {p99:.1?}, slowest {:.0?}",
        all.count(),
        took.as_secs_f64(),
        all.percentile(100)
    ))
}

/// A replica's command, on a port that stays its own.
fn command(site: &Site<'_>, port: u16) -> Result<Command> {
    let mut command = site.command()?;
    command.envs(site.unlimited().iter().copied()).env("APP__HTTP__PORT", port.to_string());
    // To see that a replica is draining, HAProxy needs one check and what a busy machine adds.
    command.env("APP__SHUTDOWN__GRACE_DELAY", "1s").env("APP__LOG__ACCESS", "false");
    if site.postgres {
        // A database that stalls for a moment must not count as a loss.
        command.env("APP__DATABASE__ACQUIRE_TIMEOUT", "8s");
    }
    Ok(command)
}

/// Gives all replicas the database of the first.
fn share_database(commands: &mut [Command; REPLICAS]) {
    let url = commands[0].get_envs().find(|(name, _)| *name == "DATABASE_URL");
    if let Some(url) = url.and_then(|(_, value)| value).map(ToOwned::to_owned) {
        commands[1].env("DATABASE_URL", url);
    }
}

/// Restarts the replicas in turn, each while the other is in service, then lets the load run until it is all sent.
fn roll(site: &Site<'_>, replicas: &mut [Replica], proxy: &Proxy, sent: impl Fn() -> bool) -> Result<()> {
    for turn in 0..RESTARTS {
        let restarted = replicas[turn % REPLICAS].restart(site);
        restarted.with_context(|| format!("restart {}", turn + 1))?;
        proxy.wait_up()?;
    }
    wait_until("the load sent", BOUND, || Ok(sent()))?;
    Ok(())
}

impl Replica {
    /// Stops the service, which must exit cleanly, and starts the next one.
    fn restart(&mut self, site: &Site<'_>) -> Result<()> {
        let service = self.service.take().context("it is not running")?;
        service.signal();
        clean(&site.end(service, UP)?)?;
        let service = Service::launch(&mut self.command)?;
        service.ready()?;
        self.service = Some(service);
        Ok(())
    }
}

/// Sends requests without a pause on a keep-alive connection. Anything but a 2xx is a failure, including no answer;
/// it reconnects only if an answer has announced that the connection will close.
fn load(address: SocketAddr, path: &str, over: &AtomicBool, done: &AtomicUsize) -> Result<Latencies> {
    let mut seen = Latencies::default();
    let mut connection = Connection::open(address)?;
    while !over.load(Ordering::Relaxed) {
        let asked = Instant::now();
        let answer = if seen.count() % WRITES == 0 {
            connection.request("POST", "/v1/tasks", "", TASK)
        } else {
            connection.request("GET", path, "", "")
        };
        let answer = answer.with_context(|| format!("request {} of a client", seen.count()))?;
        seen.add(asked.elapsed());
        done.fetch_add(1, Ordering::Relaxed);
        ensure!(succeeded(&answer), "answered {}: {}", answer.status, answer.body);
        if answer.closes() {
            connection = Connection::open(address)?;
        }
    }
    Ok(seen)
}

fn succeeded(answer: &Response) -> bool {
    (200..300).contains(&answer.status)
}

fn created(address: SocketAddr) -> Result<String> {
    let answer = request(address, "POST", "/v1/tasks", TASK)?;
    ensure!(answer.status == 201, "answered {}: {}", answer.status, answer.body);
    Ok(format!("/v1/tasks/{}", answer.json()?["id"].as_str().context("no id")?))
}

impl Proxy {
    fn start(site: &Site<'_>, ports: &[u16]) -> Result<Self> {
        let home = Scratch::new()?;
        let (public, state) = (free_port()?, free_port()?);
        let mut text = format!("{PROXY}listen service\n    bind 127.0.0.1:{public}\n{POOL}");
        for (number, port) in ports.iter().enumerate() {
            writeln!(text, "    server replica{number} 127.0.0.1:{port}")?;
        }
        writeln!(text, "frontend state\n    bind 127.0.0.1:{state}\n    stats enable\n    stats uri /")?;
        let file = home.path().join("haproxy.cfg");
        fs::write(&file, text)?;
        let mut command = children::killed_with_parent(site.haproxy);
        command.arg("-db").arg("-f").arg(&file).stdout(Stdio::null()).stderr(site.errors.try_clone()?);
        let child = Child::spawn(&mut command, Signal::TERM)?;
        let at = |port: u16| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let mut proxy = Self { child, _home: home, public: at(public), state: at(state) };
        wait_until("HAProxy answers", UP, || {
            if let Some(status) = proxy.child.poll()? {
                bail!("HAProxy ended: {status}");
            }
            Ok(get(proxy.state, "/;csv").is_ok())
        })?;
        Ok(proxy)
    }

    /// How many replicas are in service. The state of each is `UP`, `DOWN`, or in transition.
    fn up(&self) -> Result<usize> {
        let table = get(self.state, "/;csv")?.body;
        let rows = table.lines().filter(|line| line.starts_with("service,replica"));
        Ok(rows.filter(|line| line.split(',').nth(17) == Some("UP")).count())
    }

    fn wait_up(&self) -> Result<()> {
        wait_until("both replicas in service", UP, || Ok(self.up()? == REPLICAS))?;
        Ok(())
    }
}
