//! Private PostgreSQL and Redis servers on free ports of the loopback interface.
//!
//! They live as long as [`Servers`], keep their data in a scratch folder, and never touch servers that the machine
//! may already be running.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::ops::Range;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU16, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Signal, geteuid};

use crate::children::{self, Child, Frozen, Scratch};
use crate::tools::Tools;

pub mod rotel;

const START_BOUND: Duration = Duration::from_secs(30);
/// Another process may take the port between our check and the server's bind.
const TRIES: u32 = 3;

/// Running servers; dropping them stops them. Fields are dropped in order, so the servers end before their folder.
pub struct Servers {
    postgres: Child,
    redis: Child,
    _home: Scratch,
    postgres_bin: PathBuf,
    postgres_port: u16,
    redis_port: u16,
}

impl Servers {
    /// Starts both and waits until they answer.
    ///
    /// # Errors
    /// When one can't be started; the message ends with the server's last log lines.
    pub fn start(tools: &Tools) -> Result<Self> {
        let home = Scratch::new()?;
        let (redis, redis_port) =
            retried("Redis", home.path(), redis_answers, |port| redis(&tools.redis, home.path(), port))?;
        let user = Unprivileged::find()?;
        init_database(&tools.postgres, home.path(), user.as_ref())?;
        let (postgres, postgres_port) = retried("PostgreSQL", home.path(), postgres_answers, |port| {
            postgres(&tools.postgres, home.path(), port, user.as_ref())
        })?;
        Ok(Self {
            postgres,
            redis,
            _home: home,
            postgres_bin: tools.postgres.clone(),
            postgres_port,
            redis_port,
        })
    }

    /// The URL of `database`, as a superuser.
    #[must_use]
    pub fn database_url(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}", self.postgres_port)
    }

    /// The URL of one of Redis' numbered databases.
    #[must_use]
    pub fn redis_url(&self, database: usize) -> String {
        format!("redis://127.0.0.1:{}/{database}", self.redis_port)
    }

    /// Creates an empty database and returns its URL.
    ///
    /// # Errors
    /// When the server refuses.
    pub fn create_database(&self, name: &str) -> Result<String> {
        self.client("createdb", &[name])?;
        Ok(self.database_url(name))
    }

    /// Creates a superuser, for tests that create their own databases, and returns its URL.
    ///
    /// # Errors
    /// When the server refuses.
    pub fn create_superuser(&self, role: &str) -> Result<String> {
        self.client("createuser", &["--superuser", role])?;
        Ok(format!("postgres://{role}@127.0.0.1:{}/postgres", self.postgres_port))
    }

    /// Drops the databases that match an SQL condition on their `datname` and their owner's `rolname`: each variant
    /// leaves a hundred small ones, which would fill the disk.
    ///
    /// # Errors
    /// When the server refuses.
    pub fn drop_databases(&self, condition: &str) -> Result<()> {
        let query = format!(
            "SELECT format('DROP DATABASE IF EXISTS %I WITH (FORCE)', datname) \
             FROM pg_database JOIN pg_roles r ON datdba = r.oid WHERE {condition}"
        );
        let url = self.database_url("postgres");
        let drops = self.query(&url, &query)?;
        if drops.is_empty() {
            return Ok(());
        }
        // Each in a `-c` of its own: a database can't be dropped inside a transaction.
        let each = drops.lines().flat_map(|drop| ["-c", drop]);
        let arguments: Vec<&str> =
            ["-d", &url, "-v", "ON_ERROR_STOP=1", "-q"].into_iter().chain(each).collect();
        self.client("psql", &arguments).map(drop)
    }

    /// Runs SQL in the database at `url` and returns the rows, one per line.
    ///
    /// # Errors
    /// When the server refuses.
    pub fn query(&self, url: &str, sql: &str) -> Result<String> {
        self.client("psql", &["-d", url, "-v", "ON_ERROR_STOP=1", "-Atqc", sql])
    }

    /// Suspends Postgres, with all of its processes, until the returned value is dropped.
    ///
    /// # Errors
    /// When a process can't be suspended.
    pub fn freeze_postgres(&self) -> Result<Frozen> {
        Frozen::process_tree(&self.postgres)
    }

    /// The same for Redis.
    ///
    /// # Errors
    /// When it can't be suspended.
    pub fn freeze_redis(&self) -> Result<Frozen> {
        Frozen::process_tree(&self.redis)
    }

    /// Empties one of Redis' numbered databases.
    ///
    /// # Errors
    /// When the server refuses.
    pub fn flush_redis(&self, database: usize) -> Result<()> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.redis_port))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        write!(stream, "SELECT {database}\r\nFLUSHDB\r\n")?;
        let mut answers = [0; 10];
        stream.read_exact(&mut answers)?;
        ensure!(&answers == b"+OK\r\n+OK\r\n", "Redis: {}", String::from_utf8_lossy(&answers));
        Ok(())
    }

    fn client(&self, program: &str, arguments: &[&str]) -> Result<String> {
        let output = Command::new(self.postgres_bin.join(program))
            .args(["-h", "127.0.0.1", "-U", "postgres", "-p", &self.postgres_port.to_string()])
            .args(arguments)
            .output()?;
        ensure!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?)
    }
}

fn retried(
    name: &str,
    home: &Path,
    answers: fn(&Path, u16) -> bool,
    start: impl Fn(u16) -> Result<Child>,
) -> Result<(Child, u16)> {
    let log = home.join(format!("{name}.log"));
    for _ in 0..TRIES {
        let port = free_port()?;
        let mut child = start(port)?;
        let deadline = Instant::now() + START_BOUND;
        while child.poll()?.is_none() && Instant::now() < deadline {
            if answers(home, port) {
                return Ok((child, port));
            }
            thread::sleep(Duration::from_millis(20));
        }
    }
    let said = fs::read_to_string(log).unwrap_or_default();
    bail!("{name} did not start; it said:\n{}", tail(&said, 12))
}

/// Ports outside the ephemeral ranges of Linux and macOS: the system gives none of them to another process meanwhile.
const PORTS: Range<u16> = 20_000..30_000;

/// A free port, a different one each time.
///
/// # Errors
/// When the loopback interface has none.
pub fn free_port() -> Result<u16> {
    static NEXT: LazyLock<AtomicU16> = LazyLock::new(|| AtomicU16::new(fastrand::u16(PORTS)));
    let next = || PORTS.start + NEXT.fetch_add(1, Ordering::SeqCst) % (PORTS.end - PORTS.start);
    let is_free = |port: &u16| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok();
    PORTS.map(|_| next()).find(is_free).context("no port is free")
}

fn redis(program: &Path, home: &Path, port: u16) -> Result<Child> {
    let mut command = children::killed_with_parent(program);
    command.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--databases", "64"]);
    command.args(["--save", "", "--appendonly", "no", "--dir"]).arg(home);
    Child::spawn(logged(&mut command, &home.join("Redis.log"))?, Signal::TERM)
}

fn redis_answers(_home: &Path, port: u16) -> bool {
    pong(port).unwrap_or(false)
}

fn pong(port: u16) -> Result<bool> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_read_timeout(Some(Duration::from_secs(1)))?;
    stream.write_all(b"PING\r\n")?;
    let mut answer = [0; 5];
    stream.read_exact(&mut answer)?;
    Ok(&answer == b"+PONG")
}

fn init_database(bin: &Path, home: &Path, user: Option<&Unprivileged>) -> Result<()> {
    let data = home.join("postgres");
    fs::create_dir(&data)?;
    let mut command = Command::new(bin.join("initdb"));
    command.args(["--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C"]);
    command.args(["--no-sync", "--pgdata"]).arg(&data).current_dir(home);
    if let Some(user) = user {
        chown(home, Some(user.uid), Some(user.gid))?;
        chown(&data, Some(user.uid), Some(user.gid))?;
        command.uid(user.uid).gid(user.gid);
    }
    let output = command.output().context("could not start initdb")?;
    ensure!(output.status.success(), "initdb: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

fn postgres(bin: &Path, home: &Path, port: u16, user: Option<&Unprivileged>) -> Result<Child> {
    let mut command = children::killed_with_parent(&bin.join("postgres"));
    command.arg("-D").arg(home.join("postgres")).args(["-p", &port.to_string()]);
    // The tests need no durability, and most of their time would go into syncs.
    for setting in [
        "listen_addresses=127.0.0.1",
        "unix_socket_directories=",
        "fsync=off",
        "synchronous_commit=off",
        "full_page_writes=off",
        "wal_level=minimal",
        // Otherwise, whoever needs a new WAL segment waits until 16 MB are written.
        "wal_init_zero=off",
        "max_wal_senders=0",
        "max_connections=400",
        "autovacuum=off",
    ] {
        command.args(["-c", setting]);
    }
    command.current_dir(home);
    if let Some(user) = user {
        command.uid(user.uid).gid(user.gid);
    }
    // SIGQUIT is PostgreSQL's immediate shutdown, which also ends its child processes.
    Child::spawn(logged(&mut command, &home.join("PostgreSQL.log"))?, Signal::QUIT)
}

fn postgres_answers(home: &Path, port: u16) -> bool {
    // The log names the port, so that the log of an earlier attempt can't be mistaken for this one's.
    let log = fs::read_to_string(home.join("PostgreSQL.log")).unwrap_or_default();
    log.contains(&format!("port {port}")) && log.contains("database system is ready")
}

/// PostgreSQL refuses to run as root, so when we are root, it runs as an unprivileged user.
struct Unprivileged {
    uid: u32,
    gid: u32,
}

impl Unprivileged {
    fn find() -> Result<Option<Self>> {
        if !geteuid().is_root() {
            return Ok(None);
        }
        let accounts = fs::read_to_string("/etc/passwd")?;
        let find = |wanted: &str| {
            let line = accounts.lines().find(|line| line.split(':').next() == Some(wanted))?;
            let mut fields = line.split(':').skip(2).map_while(|field| field.parse().ok());
            Some(Self { uid: fields.next()?, gid: fields.next()? })
        };
        let user = find("postgres").or_else(|| find("nobody"));
        user.map(Some).context("no user `postgres` or `nobody` to run PostgreSQL as; it refuses root")
    }
}

fn logged<'a>(command: &'a mut Command, log: &Path) -> Result<&'a mut Command> {
    let log = fs::File::create(log)?;
    Ok(command.stdout(Stdio::from(log.try_clone()?)).stderr(log))
}

/// The last `count` lines of `text`.
#[must_use]
pub fn tail(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.trim_end().lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}
