//! Replicas with one database and one Redis, which they lose, one at a time or all at once, while clients read and
//! write the same tasks through all of them.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{PoisonError, RwLock};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use crate::http::{Connection, Response};
use crate::prove::service::Service;

use super::history::{Answer, Fault, GONE, Promise, check};
use super::peers::FaultProxy;
use super::{Site, ensure_timing};

const REPLICAS: usize = 3;
const CLIENTS: usize = 24;
const TASKS: usize = 50;
const OPERATIONS: usize = 100_000;
/// Of a thousand operations, this many are changes; those from there to the next number are deletions, but only of
/// every other task. Tasks that live long show what is cached for too long, deleted ones whether they stay deleted.
const CHANGES: usize = 180;
const CHANGES_AND_DELETIONS: usize = CHANGES + 60;

const TTL: Duration = Duration::from_secs(2);
/// For how long a version may be read after it was superseded while Redis is healthy. Nearly all reads of one are held
/// to this.
const HEALTHY: Duration = Duration::from_millis(250);
/// What a busy machine may add to either promise for some.
const SLACK: Duration = Duration::from_millis(750);
const PROMISE: Promise =
    Promise { healthy: HEALTHY.saturating_add(SLACK), always: TTL.saturating_add(SLACK) };
/// Recovery from a fault: the breaker's pause, the subscriber's reconnection, and whatever was cached before then.
const RECOVERY: Duration = Duration::from_secs(3);
const BOUND: Duration = Duration::from_mins(30);

pub fn storm(site: &Site<'_>) -> Result<String> {
    ensure!(site.postgres && site.redis, "replicas share nothing");
    let (_, redis) = site.servers.redis_url(site.place).split_once("://").map(owned).context("a URL")?;
    let server = redis.split('/').next().context("a URL without a host")?;
    let proxies = (0..REPLICAS).map(|_| FaultProxy::to(server)).collect::<Result<Vec<_>>>()?;
    let database = site.database()?;
    let replicas = proxies.iter().map(|proxy| start(site, &database, proxy)).collect::<Result<Vec<_>>>()?;
    let scene = Scene::new(replicas.iter().map(|replica| replica.public).collect())?;
    let (history, faults) = thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(|| client(&scene))).collect();
        let faults = inject_faults(site, &proxies, &scene);
        let all = clients.into_iter().map(|client| client.join().expect("a client does not panic"));
        (all.collect::<Result<Vec<_>>>(), faults)
    });
    let (history, (faults, flushes)) = (history?.concat(), faults?);
    for replica in replicas {
        site.stop(replica)?;
    }
    ensure!(history.len() >= OPERATIONS, "only {} operations came to an end within {BOUND:?}", history.len());
    let mut seen = check(&history, &faults, &PROMISE)?;
    ensure!(seen.judged > history.len() / 100, "only {} reads were judged: too many faults", seen.judged);
    let most = seen.ages.percentile(99);
    let said = format!(
        "{} operations in {:.0?}, {} faults and {flushes} flushes; {} reads judged while healthy; {} others saw \
         a version superseded {most:.0?} before at most (99 %), all {:.0?}, with faults {:.0?}",
        history.len(),
        scene.start.elapsed(),
        faults.len(),
        seen.judged,
        seen.ages.count(),
        seen.ages.percentile(100),
        seen.oldest
    );
    ensure_timing(most <= HEALTHY, &said)?;
    Ok(said)
}

fn owned((scheme, rest): (&str, &str)) -> (String, String) {
    (scheme.to_owned(), rest.to_owned())
}

fn start(site: &Site<'_>, database: &str, proxy: &FaultProxy) -> Result<Service> {
    let redis = format!("redis://{}/{}", proxy.address(), site.place);
    let ttl = format!("{}s", TTL.as_secs());
    let settings = [
        // On a busy machine, not every slow call is a fault.
        ("APP__REDIS__TIMEOUT", "500ms"),
        ("DATABASE_URL", database),
        ("REDIS_URL", &redis),
        ("APP__CACHE__TTL", &ttl),
        ("APP__LOG__ACCESS", "false"),
    ];
    site.start(&[site.unlimited(), &settings].concat())
}

/// What clients share.
struct Scene {
    start: Instant,
    replicas: Vec<SocketAddr>,
    /// Each is a task's number in the history, and its path. A deleted task is replaced by the next writer.
    tasks: Vec<RwLock<(usize, String)>>,
    numbers: AtomicUsize,
    begun: AtomicUsize,
}

impl Scene {
    fn new(replicas: Vec<SocketAddr>) -> Result<Self> {
        let mut first = Connection::open(replicas[0])?;
        let tasks = (0..TASKS).map(|number| Ok(RwLock::new((number, create(&mut first)?))));
        let tasks = tasks.collect::<Result<Vec<_>>>()?;
        let numbers = AtomicUsize::new(TASKS);
        Ok(Self { start: Instant::now(), replicas, tasks, numbers, begun: AtomicUsize::new(0) })
    }

    fn over(&self) -> bool {
        self.begun.load(Ordering::SeqCst) >= OPERATIONS || self.start.elapsed() > BOUND
    }

    fn task(&self, place: usize) -> (usize, String) {
        self.tasks[place].read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Replaces a task that is gone with a new one, unless another client was faster.
    fn replace(&self, place: usize, gone: usize, connection: &mut Connection) -> Result<()> {
        let mut task = self.tasks[place].write().unwrap_or_else(PoisonError::into_inner);
        if task.0 == gone {
            *task = (self.numbers.fetch_add(1, Ordering::SeqCst), create(connection)?);
        }
        Ok(())
    }
}

fn create(connection: &mut Connection) -> Result<String> {
    let answer = connection.request("POST", "/v1/tasks", "", r#"{"title": "Count the boxes"}"#)?;
    ensure!(answer.status == 201, "creating answered {}: {}", answer.status, answer.body);
    answer.header("location").map(str::to_owned).context("no Location")
}

/// Reads and writes at random, and records the answers.
fn client(scene: &Scene) -> Result<Vec<Answer>> {
    let result = operate(scene);
    if result.is_err() {
        // The others need not continue.
        scene.begun.fetch_add(OPERATIONS, Ordering::SeqCst);
    }
    result
}

fn operate(scene: &Scene) -> Result<Vec<Answer>> {
    let mut connections =
        scene.replicas.iter().map(|replica| Connection::open(*replica)).collect::<Result<Vec<_>>>()?;
    let mut history = Vec::new();
    while !scene.over() {
        scene.begun.fetch_add(1, Ordering::SeqCst);
        let (replica, place) = (fastrand::usize(..REPLICAS), fastrand::usize(..TASKS));
        let (task, path) = scene.task(place);
        let (method, body) = match fastrand::usize(..1000) {
            ..CHANGES => ("PATCH", r#"{"description": "Once more"}"#),
            CHANGES..CHANGES_AND_DELETIONS if place % 2 == 0 => ("DELETE", ""),
            _ => ("GET", ""),
        };
        let connection = &mut connections[replica];
        let began = scene.start.elapsed();
        let answer =
            connection.request(method, &path, "", body).with_context(|| format!("{method} {path}"))?;
        let ended = scene.start.elapsed();
        let version = version(&answer).with_context(|| format!("{method} {path}"))?;
        let wrote = method != "GET" && answer.status != 404;
        history.push(Answer { replica, task, wrote, version, began, ended });
        if method != "GET" && answer.status == 404 {
            scene.replace(place, task, connection)?;
        }
    }
    Ok(history)
}

/// The version that an answer reports. Requests must be answered as usual even without Redis.
fn version(answer: &Response) -> Result<u64> {
    match answer.status {
        200 => answer.json()?["version"].as_u64().context("no version"),
        204 | 404 => Ok(GONE),
        status => bail!("answered {status}: {}", answer.body),
    }
}

/// Takes Redis away and gives it back, until the clients are done. Returns when it did so, and how often it also
/// flushed Redis, which excuses nothing.
fn inject_faults(site: &Site<'_>, proxies: &[FaultProxy], scene: &Scene) -> Result<(Vec<Fault>, usize)> {
    let (mut faults, mut flushes) = (Vec::new(), 0);
    loop {
        // Some faults begin before the service has recovered from the previous one.
        pause(scene, Duration::from_millis(fastrand::u64(500..7000)));
        if scene.over() {
            return Ok((faults, flushes));
        }
        let one = fastrand::usize(..proxies.len());
        let hit = if fastrand::bool() { proxies } else { &proxies[one..=one] };
        let began = scene.start.elapsed();
        let cut = match fastrand::u8(..5) {
            0 => {
                site.servers.flush_redis(site.place)?;
                flushes += 1;
                continue;
            }
            kind => kind < 3,
        };
        let outage = || {
            hit.iter().for_each(if cut { FaultProxy::cut } else { FaultProxy::freeze });
            // From a brief outage, which nobody may notice, to one that outlasts every deadline.
            pause(scene, Duration::from_millis(1 << fastrand::u64(..12)));
            hit.iter().for_each(FaultProxy::mend);
            scene.start.elapsed()
        };
        let mended = outage();
        // Whatever was in flight when it came back runs into the next outage.
        for _ in 0..fastrand::u8(..4) {
            pause(scene, Duration::from_millis(1 << fastrand::u64(..9)));
            outage();
        }
        let over = scene.start.elapsed() + RECOVERY;
        faults.push(Fault { began, mended, over, partial: hit.len() < proxies.len() });
    }
}

fn pause(scene: &Scene, length: Duration) {
    let until = Instant::now() + length;
    while Instant::now() < until && !scene.over() {
        thread::sleep(length.min(Duration::from_millis(20)));
    }
}
