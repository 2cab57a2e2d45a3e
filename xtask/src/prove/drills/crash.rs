//! `kill -9` while tasks are being completed: each acknowledged completion is kept and its webhook delivered; one
//! that was not committed leaves no trace.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::children::lock;
use crate::http::Connection;
use crate::prove::service::Service;

use super::Site;
use super::clients::wait_until;
use super::peers::{Deliveries, Receiver};

/// For more, run the drill with `--times`.
const ROUNDS: usize = 3;
const TASKS: usize = 1000;
const CLIENTS: usize = 64;
const SETTINGS: [(&str, &str); 4] = [
    // The lease of a job follows from it: that is how long the next process waits for those that were running.
    ("APP__WEBHOOK__TIMEOUT", "100ms"),
    ("APP__WEBHOOK__ALLOW_PRIVATE_ADDRESSES", "true"),
    ("APP__JOBS__QUEUE_CAPACITY", "100000"),
    ("APP__JOBS__CONCURRENCY", "16"),
];
/// The lease of 10.2 s and as much again.
const BOUND: Duration = Duration::from_secs(20);

/// What the clients of one round share.
struct Scene {
    address: SocketAddr,
    paths: Vec<String>,
    next: AtomicUsize,
    acknowledged: Mutex<BTreeSet<String>>,
    killed: AtomicBool,
}

pub fn killed(site: &Site<'_>) -> Result<String> {
    let receiver = Receiver::start()?;
    receiver.answer();
    let (database, url) = (site.database()?, receiver.url());
    let mut command = site.command()?;
    command.envs(site.unlimited().iter().copied()).envs(SETTINGS);
    command.env("DATABASE_URL", &database).env("APP__WEBHOOK__URL", &url);
    let mut acknowledged = BTreeSet::new();
    for _ in 0..ROUNDS {
        let service = Service::launch(&mut command)?;
        service.ready()?;
        acknowledged.extend(round(site, service, &database)?);
    }
    let told_before = receiver.delivered();
    let service = Service::launch(&mut command)?;
    service.ready()?;
    let count = |table: &str| site.servers.query(&database, &format!("SELECT count(*) FROM {table}"));
    let took = wait_until("all jobs done after the last crash", BOUND, || Ok(count("jobs")?.trim() == "0"))?;
    site.stop(service)?;
    let completed = site.servers.query(&database, "SELECT id FROM tasks WHERE status = 'completed'")?;
    let completed: BTreeSet<String> = completed.lines().map(str::to_owned).collect();
    compare(&acknowledged, &completed, &receiver.deliveries())?;
    ensure!(completed.len() < ROUNDS * TASKS, "it was never killed before it was done");
    Ok(format!(
        "{ROUNDS} crashes: {} acknowledged, {} committed, all told, {} of them {took:.1?} after",
        acknowledged.len(),
        completed.len(),
        completed.len() - told_before
    ))
}

/// Clients complete tasks until the service is killed, at a random point. Returns which completions it acknowledged.
fn round(site: &Site<'_>, service: Service, database: &str) -> Result<BTreeSet<String>> {
    let made = format!(
        "INSERT INTO tasks (id, title, status, version, created_at, updated_at)
         SELECT gen_random_uuid(), 'Check the brakes', 'open', 1, now(), now()
         FROM generate_series(1, {TASKS}) RETURNING id"
    );
    let made = site.servers.query(database, &made)?;
    let scene = Scene {
        address: service.public,
        paths: made.lines().map(|id| format!("/v1/tasks/{id}")).collect(),
        next: AtomicUsize::new(0),
        acknowledged: Mutex::default(),
        killed: AtomicBool::new(false),
    };
    let moment = fastrand::usize(TASKS / 10..TASKS * 9 / 10);
    let ends = thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(|| client(&scene))).collect();
        let waited = wait_until("enough completions", BOUND, || Ok(scene.acknowledged() >= moment));
        scene.killed.store(true, Ordering::SeqCst);
        service.kill();
        let ends = clients.into_iter().map(|client| client.join().expect("a client does not panic"));
        ends.chain([waited.map(drop)]).collect::<Result<()>>()
    });
    service.wait(Duration::from_secs(5))?;
    ends?;
    Ok(scene.acknowledged.into_inner().unwrap_or_else(PoisonError::into_inner))
}

impl Scene {
    fn acknowledged(&self) -> usize {
        lock(&self.acknowledged).len()
    }
}

fn client(scene: &Scene) -> Result<()> {
    let mut connection = Connection::open(scene.address)?;
    while let Some(path) = scene.paths.get(scene.next.fetch_add(1, Ordering::SeqCst)) {
        let answer = match connection.request("POST", &format!("{path}/complete"), "", "") {
            Err(_) if scene.killed.load(Ordering::SeqCst) => return Ok(()),
            answer => answer?,
        };
        ensure!(answer.status == 200, "completing answered {}: {}", answer.status, answer.body);
        let id = path.rsplit('/').next().context("a path without an id")?.to_owned();
        lock(&scene.acknowledged).insert(id);
    }
    Ok(())
}

/// Compares what clients were told, what the database has, and what the receiver was told.
fn compare(acknowledged: &BTreeSet<String>, completed: &BTreeSet<String>, told: &Deliveries) -> Result<()> {
    let lost: Vec<_> = acknowledged.difference(completed).collect();
    ensure!(lost.is_empty(), "{} acknowledged and not in the database, such as {}", lost.len(), lost[0]);
    let silent: Vec<_> = completed.iter().filter(|id| !told.contains_key(*id)).collect();
    ensure!(silent.is_empty(), "{} completed but not delivered, such as {}", silent.len(), silent[0]);
    let invented: Vec<_> = told.keys().filter(|id| !completed.contains(*id)).collect();
    ensure!(invented.is_empty(), "{} delivered but not completed, such as {}", invented.len(), invented[0]);
    let twice = told.iter().find(|(_, deliveries)| deliveries.len() > 1);
    ensure!(twice.is_none(), "delivered under more than one id: {twice:?}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::{Deliveries, compare};

    #[test]
    fn each_of_the_four_faults_is_named() {
        let set = |ids: &[&str]| -> BTreeSet<String> { ids.iter().map(|id| (*id).to_owned()).collect() };
        let told = |all: &[(&str, &[&str])]| -> Deliveries {
            all.iter().map(|(id, deliveries)| ((*id).to_owned(), set(deliveries))).collect()
        };
        let said = |acknowledged, completed, told: &Deliveries| {
            compare(acknowledged, completed, told).map_err(|error| error.to_string())
        };
        let (none, one, two) = (&set(&[]), &set(&["a"]), &set(&["a", "b"]));
        assert_eq!(said(one, two, &told(&[("a", &["1"]), ("b", &["2"])])), Ok(()));
        for (acknowledged, completed, told, fault) in [
            (one, none, told(&[]), "acknowledged and not in the database"),
            (one, one, told(&[]), "completed but not delivered"),
            (none, none, told(&[("a", &["1"])]), "delivered but not completed"),
            (one, one, told(&[("a", &["1", "2"])]), "under more than one id"),
        ] {
            let said = said(acknowledged, completed, &told);
            assert!(said.as_ref().is_err_and(|said| said.contains(fault)), "{fault}: {said:?}");
        }
    }
}
