//! The page that Prometheus scrapes, as checked by its own tool.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Write as _;
use std::net::SocketAddr;
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::children::Scratch;
use crate::http::{Connection, get, head};
use crate::prove::service::Service;

use super::Site;
use super::clients::{complete, long_tasks, wait_until};
use super::peers::Receiver;
use super::prometheus::BOUND;

/// The strange requests, and those sent first so that every series exists.
const STRANGE: usize = 100_000;
const FIRST: usize = 1_000;
/// By then every gauge that is updated periodically has been set.
const GAUGES: Duration = Duration::from_secs(2);
const CLIENTS: usize = 4;
/// Pipelined: sent before the first of them is answered.
const AT_ONCE: usize = 50;

/// Every kind of metric has a value by the time the page is read: promtool can't find fault with what isn't there.
pub fn page(site: &Site<'_>) -> Result<String> {
    let receiver = Receiver::start()?;
    receiver.answer();
    let settings =
        [("APP__WEBHOOK__URL", &*receiver.url()), ("APP__WEBHOOK__ALLOW_PRIVATE_ADDRESSES", "true")];
    let service = site.start(&settings)?;
    let path = long_tasks(service.public, 1)?.remove(0);
    complete(service.public, &path)?;
    get(service.public, &path)?;
    get(service.public, "/nowhere")?;
    let done = "jobs_total{job=\"webhook\",outcome=\"done\"}";
    wait_until("the job done", BOUND, || Ok(service.metric(done)? == Some(1.0)))?;
    let page = get(service.admin, "/metrics")?.body;
    site.stop(service)?;

    let folder = Scratch::new()?;
    let file = folder.path().join("metrics");
    File::create(&file)?.write_all(page.as_bytes())?;
    let mut command = Command::new(site.promtool);
    let output = command.args(["check", "metrics"]).stdin(File::open(&file)?).output();
    let output = output.context("promtool")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success() && said.trim().is_empty(), "promtool: {said}");
    Ok(format!("{} metrics", page.matches("# TYPE ").count()))
}

/// What clients make up must not become a series: each costs memory, here and in Prometheus, as long as either runs.
pub fn series(site: &Site<'_>) -> Result<String> {
    let mut settings = site.unlimited().to_vec();
    settings.push(("APP__LOG__ACCESS", "false"));
    let service = site.start(&settings)?;
    send_random_requests(service.public, FIRST)?;
    thread::sleep(GAUGES);
    let before = names(&service)?;
    send_random_requests(service.public, STRANGE)?;
    let after = names(&service)?;
    site.stop(service)?;
    let new: Vec<_> = after.difference(&before).collect();
    ensure!(new.is_empty(), "{} new series, such as {}", new.len(), new[0]);
    Ok(format!("{} series before and after", before.len()))
}

/// Sends requests of which no two are alike.
fn send_random_requests(address: SocketAddr, count: usize) -> Result<()> {
    let client = || -> Result<()> {
        let mut connection = Connection::open(address)?;
        for _ in 0..count / CLIENTS / AT_ONCE {
            let requests: Vec<String> = (0..AT_ONCE).map(random_request).collect();
            connection.send(&requests.concat())?;
            for request in requests {
                let answer = connection.response()?;
                ensure!((400..500).contains(&answer.status), "answered {} to {request}", answer.status);
            }
        }
        Ok(())
    };
    thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(client)).collect();
        clients.into_iter().try_for_each(|client| client.join().expect("a client does not panic"))
    })
}

/// A path, a method, an id and a query that nobody has used before.
fn random_request(number: usize) -> String {
    let word = |_| fastrand::lowercase();
    let word: String = (0..12).map(word).collect();
    match number % 4 {
        0 => head("GET", &format!("/{word}/{word}"), "", 0),
        1 => head(&word.to_uppercase(), "/v1/tasks", "", 0),
        2 => head("GET", &format!("/v1/tasks/{word}"), "", 0),
        _ => head("GET", &format!("/v1/tasks?{word}={word}&limit={word}"), "", 0),
    }
}

/// The names and labels of all series.
fn names(service: &Service) -> Result<BTreeSet<String>> {
    let page = get(service.admin, "/metrics")?.body;
    let lines = page.lines().filter(|line| !line.starts_with('#'));
    Ok(lines.filter_map(|line| Some(line.rsplit_once(' ')?.0.to_owned())).collect())
}
