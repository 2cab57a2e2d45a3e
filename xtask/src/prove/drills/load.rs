//! SIGTERM while a service is busy with everything it can be doing at once.
//!
//! A request counts as accepted once its whole head has been sent on an open connection that the service had not
//! announced it would close. Every accepted request must be answered in full. Connections that are opened, or first
//! used, after the grace delay are refused: that is what the delay announces, and no client here does it.

use std::cell::Cell;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use crate::http::{Connection, get, head};
use crate::prove::service::{Exit, Service};

use super::Site;
use super::clients::{complete, connect_with_small_buffers, long_tasks, wait_until};
use super::peers::Receiver;
use super::shutdown::{TASK, clean};

/// Clients of each kind, and jobs.
const EACH: usize = 64;
/// The grace delay, and how long uploads and downloads go on after SIGTERM: well into the drain.
const GRACE: &str = "1500ms";
const UPLOAD: Duration = Duration::from_millis(1900);
const BOUND: Duration = Duration::from_secs(10);

/// What the clients share.
struct Scene {
    address: SocketAddr,
    signalled: AtomicBool,
    /// Downloads of which something has come.
    begun: AtomicUsize,
}

pub fn under_load(site: &Site<'_>) -> Result<String> {
    let receiver = Receiver::start()?;
    let url = receiver.url();
    let mut command = site.command()?;
    command.envs(site.unlimited().iter().copied());
    command.env("APP__SHUTDOWN__GRACE_DELAY", GRACE).env("APP__WEBHOOK__URL", &url);
    command.env("APP__WEBHOOK__ALLOW_PRIVATE_ADDRESSES", "true");
    // A busy machine takes a while until all clients are active at once: no upload may time out meanwhile.
    command.env("APP__HTTP__REQUEST_TIMEOUT", "20s").env("APP__HTTP__BODY_TIMEOUT", "20s");
    // Nor may a job.
    command.env("APP__WEBHOOK__TIMEOUT", "15s");
    let service = Service::launch(&mut command)?;
    service.ready()?;
    let tasks = long_tasks(service.public, EACH)?;
    let scene =
        Scene { address: service.public, signalled: AtomicBool::new(false), begun: AtomicUsize::new(0) };
    let clients: [fn(&Scene) -> Result<usize>; 3] = [keep_alive, upload, download];
    let mut signalled = Instant::now();
    let (answered, stopped) = thread::scope(|scope| {
        let scene = &scene;
        let crowd: Vec<_> = clients
            .into_iter()
            .flat_map(|client| (0..EACH).map(move |_| scope.spawn(move || client(scene))))
            .collect();
        let busy = busy(&service, scene, &tasks);
        scene.signalled.store(true, Ordering::SeqCst);
        signalled = Instant::now();
        service.signal();
        let begun = busy.and_then(|()| service.event("shutdown.begin"));
        let stopped = begun.and_then(|_| grace(service.public).context("in the grace delay"));
        // After the grace delay, so that the drain finds the queue full.
        thread::sleep(Duration::from_millis(1600));
        receiver.answer();
        let ends = crowd.into_iter().map(|client| client.join().expect("a client does not panic"));
        (ends.collect::<Vec<Result<usize>>>(), stopped)
    });
    let exit = site.end(service, BOUND)?;
    let after = signalled.elapsed();
    stopped?;
    let lost = answered.iter().filter(|end| end.is_err()).count();
    let answered: Result<Vec<usize>> = answered.into_iter().collect();
    let answered = answered.with_context(|| format!("{lost} clients lost a request"))?;
    let in_flight = in_flight(&exit)?;
    let late = deliveries(site, &receiver, || Service::launch(&mut command))?;
    let kept: usize = answered[..EACH].iter().sum();
    Ok(format!(
        "{kept} answered to {EACH} keep-alive clients, {EACH} uploads, {EACH} downloads, {EACH} jobs \
         ({late} by the next process), 0 lost; {in_flight} in flight at SIGTERM; exit 0 after {after:.1?}"
    ))
}

/// Waits until every upload and download is being handled, then fills the queue.
fn busy(service: &Service, scene: &Scene, tasks: &[String]) -> Result<()> {
    wait_until("uploads and downloads in flight", BOUND, || {
        let count = service.metric("http_requests_in_flight")?.context("no http_requests_in_flight")?;
        let begun = scene.begun.load(Ordering::SeqCst);
        Ok(begun == EACH && count >= f64::from(u32::try_from(EACH)?))
    })?;
    tasks.iter().try_for_each(|path| complete(service.public, path))
}

/// Sends requests without a pause, as a load balancer would, until a response announces that it was the last.
fn keep_alive(scene: &Scene) -> Result<usize> {
    let mut connection = Connection::open(scene.address)?;
    let mut answered = 0;
    loop {
        let answer = connection.request("POST", "/v1/tasks", "", TASK).context("keep-alive")?;
        ensure!(answer.status == 201, "answered {}: {}", answer.status, answer.body);
        answered += 1;
        if answer.closes() {
            ensure!(scene.signalled.load(Ordering::SeqCst), "closed before SIGTERM");
            return Ok(answered);
        }
    }
}

/// Sends half of a body before SIGTERM, and the rest in pieces that end during the drain.
fn upload(scene: &Scene) -> Result<usize> {
    let mut connection = Connection::open(scene.address)?;
    let (first, rest) = TASK.split_at(TASK.len() / 2);
    connection.send(&head("POST", "/v1/tasks", "", TASK.len()))?;
    connection.send(first)?;
    while !scene.signalled.load(Ordering::SeqCst) {
        thread::sleep(Duration::from_millis(10));
    }
    let pieces: Vec<&str> = rest.split_inclusive(|_| true).collect();
    let pause = UPLOAD / u32::try_from(pieces.len())?;
    for piece in pieces {
        thread::sleep(pause);
        connection.send(piece).context("upload")?;
    }
    let answer = connection.response().context("upload")?;
    ensure!(answer.status == 201, "an upload was answered {}: {}", answer.status, answer.body);
    Ok(1)
}

/// A page of 640 kB, read so slowly that it ends during the drain.
fn download(scene: &Scene) -> Result<usize> {
    let mut connection = Connection::over(connect_with_small_buffers(scene.address)?)?;
    connection.send(&head("GET", &format!("/v1/tasks?limit={EACH}"), "", 0))?;
    let begun = Cell::new(false);
    let pause = || {
        if !begun.replace(true) {
            scene.begun.fetch_add(1, Ordering::SeqCst);
        }
        let told = scene.signalled.load(Ordering::SeqCst);
        thread::sleep(Duration::from_millis(if told { 12 } else { 100 }));
    };
    let answer = connection.response_slowly(pause).context("download")?;
    ensure!(answer.status == 200, "a download was answered {}", answer.status);
    let items = answer.json().context("download")?["items"].as_array().map_or(0, Vec::len);
    ensure!(items == EACH, "a page came with {items} tasks");
    Ok(1)
}

/// While load balancers may not have noticed yet, new connections are still served.
fn grace(address: SocketAddr) -> Result<()> {
    let ready = get(address, "/ready")?;
    ensure!(ready.status == 503, "/ready answered {}", ready.status);
    ensure!(ready.body.contains("draining"), "/ready says {}", ready.body);
    let late = get(address, "/v1/tasks?limit=1")?;
    ensure!(late.status == 200, "a new connection was answered {}", late.status);
    ensure!(late.closes(), "answered without `Connection: close`");
    Ok(())
}

/// What `shutdown.begin` counted: every upload, and at most one request of each other client. A download counts until
/// its last part has been handed to the connection, which may then still hold it.
fn in_flight(exit: &Exit) -> Result<u64> {
    clean(exit)?;
    let begin = exit.event("shutdown.begin").context("no shutdown.begin")?;
    let counted = begin["in_flight"].as_u64().context("shutdown.begin counts nothing")?;
    let (least, most) = (EACH as u64, 3 * EACH as u64);
    ensure!((least..=most).contains(&counted), "{counted} in flight, not {least} to {most}: {begin}");
    Ok(counted)
}

/// Checks that every job was delivered: by the process that took it, or, where the queue outlives the process, by the
/// next one. Returns how many the next one delivered.
fn deliveries(site: &Site<'_>, receiver: &Receiver, next: impl FnOnce() -> Result<Service>) -> Result<usize> {
    let told = receiver.delivered();
    if !site.postgres {
        ensure!(told == EACH, "{told} of {EACH} jobs were delivered");
        return Ok(0);
    }
    let service = next()?;
    wait_until("the rest of the jobs delivered", BOUND, || Ok(receiver.delivered() == EACH))?;
    site.stop(service)?;
    Ok(EACH - told)
}
