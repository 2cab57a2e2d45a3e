//! Thousands of hostile clients: they send half of something, or nothing, or requests without ever reading.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::http::{get, head};
use crate::prove::service::Service;

use super::clients::{Latencies, connect_with_small_buffers, long_tasks, wait_until};
use super::{Site, ensure_timing};
use crate::machine::raise_descriptor_limit;

/// Clients of each kind, all at once.
const EACH: usize = 1000;
/// How long past its deadline a connection may take to be closed, and when it counts as never closed: the first may be
/// the machine's fault, so it is a timing comparison, but the second is not.
const SLACK: Duration = Duration::from_secs(1);
const NEVER: Duration = SLACK.saturating_mul(5);
/// The longest wait between two checks of the connections.
const LOOK: Duration = Duration::from_millis(20);
/// Between one batch of five clients and the next, so that they don't all connect and disconnect at once: the drill
/// measures how long they can stay, not how fast a CPU is.
const PAUSE: Duration = Duration::from_millis(4);
const HEAD: Duration = Duration::from_secs(3);
const BODY: Duration = Duration::from_secs(4);
/// Nearly all normal requests are served within the first. The bound on the slowest allows for a machine with shared
/// cores, where a thread may be kept waiting that long.
const SERVED: Duration = Duration::from_millis(50);
const SLOWEST: Duration = Duration::from_secs(1);
/// A warm-up crowd of each kind: it brings into memory the code, tables and threads that the next one needs, too.
const FIRST: usize = 600;
/// Memory may stay a tenth higher.
const GROWTH: f64 = 1.1;
/// How soon memory must be given back.
const GIVEN_BACK: Duration = Duration::from_secs(5);

const SETTINGS: [(&str, &str); 5] = [
    ("APP__HTTP__HEADER_READ_TIMEOUT", "3s"),
    ("APP__HTTP__BODY_TIMEOUT", "4s"),
    ("APP__HTTP__REQUEST_TIMEOUT", "5s"),
    // Slow bodies count as requests in flight: shedding load is a drill of its own.
    ("APP__HTTP__MAX_IN_FLIGHT", "5000"),
    ("APP__LOG__ACCESS", "false"),
];

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    HalfHead,
    Silent,
    HalfPreface,
    /// Sends one byte of its body per second.
    Drip,
    /// Sends many requests and reads no response.
    NeverReads,
}

const KINDS: [Kind; 5] = [Kind::HalfHead, Kind::Silent, Kind::HalfPreface, Kind::Drip, Kind::NeverReads];

struct Client {
    kind: Kind,
    stream: TcpStream,
    opened: Instant,
    /// How long the service kept it connected.
    kept: Option<Duration>,
}

pub fn storm(site: &Site<'_>) -> Result<String> {
    raise_descriptor_limit((KINDS.len() * EACH) as u64 + 500)?;
    let mut settings = site.unlimited().to_vec();
    settings.extend(SETTINGS);
    let service = site.start(&settings)?;
    let path = long_tasks(service.public, 1)?.remove(0);
    run_storm(&service, &path, FIRST)?;
    thread::sleep(GIVEN_BACK);
    let before = service.resident()?;
    let (longest, mut served) = run_storm(&service, &path, EACH)?;
    let most = service.resident()?;
    let mut after = most;
    let given_back = wait_until("memory given back", GIVEN_BACK, || {
        after = service.resident()?;
        Ok(after < before * GROWTH)
    });
    given_back.with_context(|| format!("{before:.1} MiB before, {most:.1} at the end, {after:.1} later"))?;
    site.stop(service)?;
    let (median, nearly_all, slowest) =
        (served.percentile(50), served.percentile(99), served.percentile(100));
    ensure_timing(
        nearly_all < SERVED && slowest < SLOWEST,
        &format!("served in {median:.1?}, 99 % in {nearly_all:.1?}, at most {slowest:.1?}"),
    )?;
    site.fact("hostile_served_ms", median.as_secs_f64() * 1000.0);
    Ok(format!(
        "{} closed at most {longest:.1?} after they came; meanwhile {} requests served in {median:.1?}, \
         99 % in {nearly_all:.1?}, all in {slowest:.1?}; {before:.1} MiB before, {most:.1} then, {after:.1} afterwards",
        KINDS.len() * EACH,
        served.count(),
    ))
}

/// One storm. Returns how long the longest connection was kept, and the latencies of normal requests meanwhile.
fn run_storm(service: &Service, path: &str, each: usize) -> Result<(Duration, Latencies)> {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let normal = scope.spawn(|| normal(service.public, path, &over));
        let longest = attack(service, each);
        over.store(true, Ordering::SeqCst);
        let served = normal.join().expect("a client does not panic");
        Ok((longest?, served.context("a normal request in the storm")?))
    })
}

/// A well-behaved client, on a new connection each time.
fn normal(address: SocketAddr, path: &str, over: &AtomicBool) -> Result<Latencies> {
    let mut served = Latencies::default();
    while !over.load(Ordering::SeqCst) {
        let asked = Instant::now();
        let answer = get(address, path)?;
        ensure!(answer.status == 200, "answered {}: {}", answer.status, answer.body);
        served.add(asked.elapsed());
        thread::sleep(Duration::from_millis(10));
    }
    Ok(served)
}

fn attack(service: &Service, each: usize) -> Result<Duration> {
    let mut clients = Vec::new();
    for round in 1..=each {
        for kind in KINDS {
            clients.push(Client::open(kind, service.public)?);
        }
        thread::sleep(PAUSE);
        // Only now and then, because checking thousands of sockets takes time.
        if round % 100 == 0 {
            see_closed(&mut clients, Duration::ZERO)?;
        }
    }
    let last = Instant::now();
    let mut drips = 0;
    while clients.iter().any(Client::is_watched) {
        if last.elapsed() > Duration::from_secs(drips) {
            drips += 1;
            clients.iter_mut().filter(|client| client.kind == Kind::Drip).for_each(Client::drip);
        }
        // Whatever is closed by now is seen by this check at the latest, however long it takes.
        let now = Instant::now();
        see_closed(&mut clients, LOOK)?;
        let never = kinds(clients.iter().filter(|one| one.is_watched() && one.overdue(now) > NEVER));
        ensure!(never.is_empty(), "still open {NEVER:?} after their deadline: {never}");
    }
    // A client that reads nothing does not see its connection end either, so the service's gauge is read: what is
    // left is the connection of that scrape. A normal request's comes and goes.
    let bound = (last + BODY + NEVER).saturating_duration_since(Instant::now());
    wait_until("connections of clients that never read closed", bound, || Ok(open(service)? <= 1.0))?;
    let took = last.elapsed();
    let late = kinds(clients.iter().filter(|one| one.overdue(Instant::now()) > SLACK));
    let said = format!("closed more than {SLACK:?} after their deadline: {late}; all after {took:.1?}");
    ensure_timing(late.is_empty() && took < BODY + SLACK, &said)?;
    Ok(clients.iter().filter_map(|client| client.kept).max().unwrap_or_default().max(took))
}

/// How many of each kind these are, such as `Silent 3, Drip 1`.
fn kinds<'a>(clients: impl Iterator<Item = &'a Client>) -> String {
    let found: Vec<Kind> = clients.map(|client| client.kind).collect();
    let of = |kind: &Kind| (*kind, found.iter().filter(|one| *one == kind).count());
    let there = KINDS.iter().map(of).filter(|(_, count)| *count > 0);
    there.map(|(kind, count)| format!("{kind:?} {count}")).collect::<Vec<_>>().join(", ")
}

fn open(service: &Service) -> Result<f64> {
    service.metric("http_connections")?.context("no http_connections")
}

impl Client {
    fn open(kind: Kind, address: SocketAddr) -> Result<Self> {
        let mut stream = match kind {
            Kind::NeverReads => connect_with_small_buffers(address)?,
            _ => TcpStream::connect(address)?,
        };
        let bytes = match kind {
            Kind::HalfHead => "GET /v1/tasks HTTP/1.1\r\nhost: dri".to_owned(),
            Kind::Silent => String::new(),
            Kind::HalfPreface => "PRI * HTTP/2.0\r\n\r".to_owned(),
            Kind::Drip => head("POST", "/v1/tasks", "", 100),
            // 400 kB of responses, more than the kernel buffers for it, and of the cheapest kind.
            Kind::NeverReads => head("GET", "/openapi.json", "", 0).repeat(30),
        };
        stream.write_all(bytes.as_bytes())?;
        stream.set_nonblocking(true)?;
        Ok(Self { kind, stream, opened: Instant::now(), kept: None })
    }

    /// Whether its socket is still watched for the end of the connection.
    fn is_watched(&self) -> bool {
        self.kept.is_none() && self.kind != Kind::NeverReads
    }

    /// How long after its deadline it was closed or, while it is watched, is still open.
    fn overdue(&self, now: Instant) -> Duration {
        let deadline = if self.kind == Kind::Drip { BODY } else { HEAD };
        let open = if self.is_watched() { now - self.opened } else { self.kept.unwrap_or_default() };
        open.saturating_sub(deadline)
    }

    fn drip(&mut self) {
        // It may be closed by now, which the next check will see.
        let _ = self.stream.write(b"x");
    }

    /// Reads what has arrived, and notes the end of the connection.
    fn look(&mut self) {
        let mut bytes = [0; 1024];
        loop {
            match self.stream.read(&mut bytes) {
                Ok(1..) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                _ => break,
            }
        }
        self.kept = Some(self.opened.elapsed());
    }
}

/// Waits up to `moment` for events, and notes which connections have ended.
fn see_closed(clients: &mut [Client], moment: Duration) -> Result<()> {
    let mut watched: Vec<&mut Client> = clients.iter_mut().filter(|client| client.is_watched()).collect();
    let asked = watched.iter().map(|client| PollFd::new(&client.stream, PollFlags::IN));
    let mut asked: Vec<PollFd<'_>> = asked.collect();
    poll(&mut asked, Some(&Timespec::try_from(moment)?))?;
    let news: Vec<bool> = asked.iter().map(|one| !one.revents().is_empty()).collect();
    drop(asked);
    watched.iter_mut().zip(news).filter(|(_, news)| *news).for_each(|(client, _)| client.look());
    Ok(())
}
