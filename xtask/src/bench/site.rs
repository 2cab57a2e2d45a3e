//! Where measurements take place: the programs, and what they need around them.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};

use crate::children;
use crate::servers::Servers;
use crate::servers::rotel::Rotel;
use crate::tools::Tools;
use crate::variant::Variant;

use super::build::Programs;
use super::server::Server;

/// The call to Redis in each request is a cost of its own: without it, the other costs become visible.
pub const WITHOUT_REDIS: Variant = Variant::FULL_BUT_REDIS;

/// Large enough to allow each request, which is counted all the same.
const BUDGET: &str = "1000000";

pub struct Site<'a> {
    root: &'a Path,
    pub wrk: &'a Path,
    pub servers: &'a Servers,
    programs: &'a Programs,
    collector: Rotel,
    database: String,
    /// The core that contestants run on, and one more for those with two workers, which the load generator uses too.
    cores: [usize; 2],
}

/// One of the servers that are compared.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Contestant {
    /// Bare axum, and where it keeps tasks.
    Bare(&'static str),
    Loco,
    Service(Variant),
}

impl Contestant {
    pub fn label(self) -> &'static str {
        match self {
            Self::Bare("postgres") => "bare axum + sqlx",
            Self::Bare("redis") => "bare axum + redis",
            Self::Bare(_) => "bare axum",
            Self::Loco => "loco",
            Self::Service(Variant::BASE) => "base",
            Self::Service(WITHOUT_REDIS) => "full, without Redis",
            Self::Service(_) => "full",
        }
    }
}

impl<'a> Site<'a> {
    pub fn new(
        root: &'a Path,
        tools: &'a Tools,
        servers: &'a Servers,
        programs: &'a Programs,
        cores: [usize; 2],
    ) -> Result<Self> {
        let wrk = tools.wrk.as_deref().context("wrk was not set up")?;
        let collector = Rotel::start(tools.rotel.as_ref().context("rotel was not set up")?, &[])?;
        let database = servers.create_database("bench")?;
        let site = Self { root, wrk, servers, programs, collector, database, cores };
        let mut migrate = site.service(Variant::FULL, 1, &[])?;
        let migrated = migrate.arg("migrate").stdout(Stdio::null()).status()?;
        ensure!(migrated.success(), "the database could not be set up");
        Ok(site)
    }

    /// Starts a contestant with these additional settings, and waits until it is ready.
    pub fn start(&self, who: Contestant, settings: &[(&str, &str)]) -> Result<Server> {
        self.start_with(1, who, settings)
    }

    /// The same with this many workers, at most two.
    pub fn start_with(&self, workers: usize, who: Contestant, settings: &[(&str, &str)]) -> Result<Server> {
        let mut command = match who {
            Contestant::Service(variant) => self.service(variant, workers, settings)?,
            Contestant::Loco => {
                let mut command = self.pinned(&self.programs.rival, workers);
                command.env("LOCO_CONFIG_FOLDER", self.root.join("bench/loco/config"));
                command
            }
            Contestant::Bare(keeps) => {
                let mut command = self.pinned(&self.programs.bare, workers);
                command.arg(keeps);
                match keeps {
                    "postgres" => command.arg(&self.database),
                    "redis" => command.arg(self.servers.redis_url(1)),
                    _ => &mut command,
                };
                command
            }
        };
        Server::launch(&mut command)
    }

    pub fn program(&self, who: Contestant) -> Result<&Path> {
        match who {
            Contestant::Bare(_) => Ok(&self.programs.bare),
            Contestant::Loco => Ok(&self.programs.rival),
            Contestant::Service(variant) => self.programs.service(variant),
        }
    }

    /// A service with everything enabled, and nothing refused.
    fn service(&self, variant: Variant, workers: usize, settings: &[(&str, &str)]) -> Result<Command> {
        let mut command = self.pinned(self.programs.service(variant)?, workers);
        command.envs([
            ("APP_ENV", "production"),
            ("APP__HTTP__HOST", "127.0.0.1"),
            ("APP__HTTP__PORT", "0"),
            ("APP__HTTP__MAX_IN_FLIGHT", "10000"),
            ("APP__ADMIN__HOST", "127.0.0.1"),
            ("APP__ADMIN__PORT", "0"),
            ("APP__SHUTDOWN__GRACE_DELAY", "0s"),
        ]);
        if variant.has("postgres") {
            command.env("DATABASE_URL", &self.database);
        }
        if variant.has("redis") {
            command.env("REDIS_URL", self.servers.redis_url(0));
        }
        if variant.has("rate_limit") {
            for policy in ["PER_CLIENT", "GLOBAL", "WRITES"] {
                command.env(format!("APP__RATE_LIMIT__{policy}_PER_SECOND"), BUDGET);
                command.env(format!("APP__RATE_LIMIT__{policy}_BURST"), BUDGET);
            }
        }
        if variant.has("otlp") {
            command.env("APP__OTLP__ENDPOINT", self.collector.url());
        }
        command.envs(settings.iter().copied());
        Ok(command)
    }

    /// A command for a program, with an otherwise empty environment, pinned to a core for each worker.
    fn pinned(&self, program: &Path, workers: usize) -> Command {
        let cores = self.cores[..workers].iter().map(ToString::to_string).collect::<Vec<_>>();
        let mut command = children::killed_with_parent(Path::new("taskset"));
        command.args(["--cpu-list", &cores.join(",")]).arg(program);
        command.env_clear().env("PATH", "/usr/bin:/bin").env("TOKIO_WORKER_THREADS", workers.to_string());
        command
    }
}
