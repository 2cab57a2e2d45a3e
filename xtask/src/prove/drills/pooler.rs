//! A pgbouncer between replicas and PostgreSQL: many connections share a few to the server, one transaction at a time.

use std::fs;
use std::io::Read;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Signal, geteuid};
use serde_json::Value;

use crate::children::{self, Child, Scratch};
use crate::http::Connection;
use crate::prove::service::Service;
use crate::servers::free_port;
use crate::tools;

use super::Site;
use super::clients::wait_until;
use super::peers::Receiver;

/// The first version that tracks prepared statements across server connections.
const FOLLOWS: [u64; 3] = [1, 21, 0];
const REPLICAS: usize = 2;
/// Fewer connections than either replica's pool has.
const SHARED: usize = 4;
const CLIENTS: usize = 16;
const ROUNDS: usize = 25;
const BOUND: Duration = Duration::from_secs(20);

pub fn through(site: &Site<'_>) -> Result<String> {
    let said = Command::new(site.pgbouncer).arg("--version").output()?.stdout;
    let said = String::from_utf8(said)?;
    let version =
        said.lines().next().and_then(tools::version).with_context(|| format!("no version: {said}"))?;
    let [major, minor, _] = version;
    // An older one works only in session mode, with as many server connections as all replicas have.
    let transactions = version >= FOLLOWS;
    if !transactions {
        site.not_run(&format!("transaction mode (needs pgbouncer 1.21, found {major}.{minor})"));
    }
    let (mode, shared) = if transactions { ("transaction", SHARED) } else { ("session", 100) };
    let (database, home, port) = (site.database()?, Scratch::new()?, free_port()?);
    let _pooler = start(
        site.pgbouncer,
        home.path(),
        &database,
        port,
        &format!("{mode}\ndefault_pool_size = {shared}"),
    )?;

    let receiver = Receiver::start()?;
    receiver.answer();
    let (name, hook) = (database.rsplit('/').next().context("no database")?, receiver.url());
    let url = format!("postgres://postgres@127.0.0.1:{port}/{name}");
    let mut command = site.command()?;
    command.envs(site.unlimited().iter().copied());
    command.env("DATABASE_URL", &url).env("APP__WEBHOOK__URL", &hook);
    command.env("APP__WEBHOOK__ALLOW_PRIVATE_ADDRESSES", "true");
    let replicas = (0..REPLICAS).map(|_| Service::launch(&mut command)).collect::<Result<Vec<_>>>()?;
    for replica in &replicas {
        replica.ready().context("replicas that migrate together")?;
    }
    thread::scope(|scope| {
        let clients = (0..CLIENTS).map(|number| replicas[number % REPLICAS].public);
        let clients: Vec<_> = clients.map(|address| scope.spawn(move || client(address))).collect();
        clients.into_iter().try_for_each(|client| client.join().expect("a client does not panic"))
    })?;
    let jobs = CLIENTS * ROUNDS;
    wait_until("every job done", BOUND, || Ok(receiver.delivered() == jobs))?;
    let calls = receiver.traces().len();
    ensure!(calls == jobs, "{calls} calls for {jobs} jobs: some were taken twice");
    let others = "FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()";
    let open: usize = site.servers.query(&database, &format!("SELECT count(*) {others}"))?.trim().parse()?;
    ensure!(!transactions || (1..=SHARED).contains(&open), "{open} connections to the server");
    let held = site.servers.query(&database, "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'")?;
    ensure!(held.trim() == "0", "the lock of the migrations is still held");
    for replica in replicas {
        site.stop(replica)?;
    }
    Ok(format!(
        "{major}.{minor} in {mode} mode: {} requests and {jobs} jobs over {open} connections",
        jobs * 4
    ))
}

/// Starts it with the settings that the guide for operators gives.
fn start(program: &Path, home: &Path, database: &str, port: u16, mode: &str) -> Result<Child> {
    let server = database.split(['@', '/']).find(|part| part.contains(':') && part.contains('.'));
    let (host, at) = server.and_then(|server| server.split_once(':')).context("no server in the URL")?;
    let mut settings = format!(
        "[databases]\n* = host={host} port={at} user=postgres\n[pgbouncer]\nlisten_addr = 127.0.0.1\n\
         listen_port = {port}\nunix_socket_dir =\nauth_type = any\nignore_startup_parameters = options\n\
         max_client_conn = 200\npool_mode = {mode}\n"
    );
    if geteuid().is_root() {
        settings += "user = nobody\n";
    }
    if !mode.starts_with("session") {
        settings += "max_prepared_statements = 100\n";
    }
    let file = home.join("pgbouncer.ini");
    fs::write(&file, settings)?;
    let mut command = children::killed_with_parent(program);
    command.arg(&file).stdout(Stdio::null()).stderr(fs::File::create(home.join("pgbouncer.log"))?);
    let mut child = Child::spawn(&mut command, Signal::INT)?;
    let up = wait_until("pgbouncer takes connections", BOUND, || {
        Ok(child.poll()?.is_some() || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok())
    });
    let mut log = String::new();
    fs::File::open(home.join("pgbouncer.log"))?.read_to_string(&mut log)?;
    ensure!(up.is_ok() && child.poll()?.is_none(), "pgbouncer does not run: {log}");
    Ok(child)
}

/// Makes tasks, changes them, completes them and lists them.
fn client(address: SocketAddr) -> Result<()> {
    let mut connection = Connection::open(address)?;
    let mut ask = |method: &str, path: &str, body: &str, status: u16| -> Result<Value> {
        let answer = connection.request(method, path, "", body)?;
        ensure!(answer.status == status, "{method} {path} answered {}: {}", answer.status, answer.body);
        answer.json()
    };
    for _ in 0..ROUNDS {
        let made = ask("POST", "/v1/tasks", r#"{"title":"Oil the chain"}"#, 201)?;
        let path = format!("/v1/tasks/{}", made["id"].as_str().context("no id")?);
        ask("PATCH", &path, r#"{"title":"Oil the chain, and wipe it"}"#, 200)?;
        ask("POST", &format!("{path}/complete"), "", 200)?;
        ask("GET", "/v1/tasks?limit=5&status=completed", "", 200)?;
    }
    Ok(())
}
