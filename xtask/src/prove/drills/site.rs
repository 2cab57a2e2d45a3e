//! The environment in which a variant is drilled.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::Value;

use crate::children;
use crate::prove::check::Work;
use crate::prove::service::{Exit, Service};
use crate::servers::Servers;

/// A variant's program, the settings it can't do without, and what was observed.
pub struct Site<'a> {
    pub servers: &'a Servers,
    pub haproxy: &'a Path,
    pub prometheus: &'a Path,
    pub promtool: &'a Path,
    /// `None` where no spans are exported.
    pub rotel: Option<&'a Path>,
    pub pgbouncer: &'a Path,
    /// `None` where no drill needs it.
    pub node: Option<&'a Path>,
    pub program: PathBuf,
    /// Valgrind, and the program whose instructions it counts; `None` where no drill needs them.
    pub counting: Option<(&'a Path, PathBuf)>,
    pub dir: PathBuf,
    pub place: usize,
    pub postgres: bool,
    pub redis: bool,
    pub rate_limit: bool,
    pub errors: File,
    pub databases: Cell<u32>,
    pub facts: RefCell<Vec<(&'static str, f64)>>,
    pub lines: RefCell<Vec<String>>,
    /// What the drill that runs has left out, each with the reason.
    pub left_out: RefCell<BTreeSet<String>>,
}

impl<'a> Site<'a> {
    pub fn prepare(work: &mut Work<'a>) -> Result<Self> {
        Ok(Self {
            servers: &work.context.servers,
            haproxy: &work.context.tools.haproxy,
            prometheus: &work.context.tools.prometheus,
            promtool: &work.context.tools.promtool,
            rotel: work.context.tools.rotel.as_deref().filter(|_| work.subject.has("otlp")),
            pgbouncer: &work.context.tools.pgbouncer,
            node: work.context.tools.linters.as_ref().map(|linters| linters.node.as_path()),
            program: work.subject.program.clone(),
            counting: work.context.tools.valgrind.as_deref().zip(work.subject.optimised.clone()),
            dir: work.subject.dir.clone(),
            place: work.subject.place,
            postgres: work.subject.has("postgres"),
            redis: work.subject.has("redis"),
            rate_limit: work.subject.has("rate_limit"),
            errors: File::create(work.log.with_extension("stderr.log"))?,
            databases: Cell::default(),
            facts: RefCell::default(),
            lines: RefCell::default(),
            left_out: RefCell::default(),
        })
    }

    pub fn fact(&self, name: &'static str, value: f64) {
        self.facts.borrow_mut().push((name, value));
    }

    /// Reports that a drill can't run a part of it here.
    pub fn not_run(&self, what: &str) {
        self.left_out.borrow_mut().insert(what.to_owned());
    }

    /// The program with nothing in its environment but what it can't do without: the servers' URLs
    /// and free ports.
    pub fn command(&self) -> Result<Command> {
        let mut command = children::killed_with_parent(&self.program);
        self.bare(&mut command)?;
        Ok(command)
    }

    pub fn bare(&self, command: &mut Command) -> Result<()> {
        command.env_clear().current_dir(&self.dir).stderr(self.errors.try_clone()?);
        command.envs([("APP__HTTP__PORT", "0"), ("APP__ADMIN__PORT", "0"), ("APP__LOG__FORMAT", "json")]);
        if self.redis {
            command.env("REDIS_URL", self.servers.redis_url(self.place));
        }
        if self.postgres {
            command.env("DATABASE_URL", self.database()?);
            command.env("APP__DATABASE__MIGRATE_ON_START", "true");
        }
        Ok(())
    }

    /// The URL of a new, empty database.
    pub fn database(&self) -> Result<String> {
        let number = self.databases.replace(self.databases.get() + 1);
        self.servers.create_database(&format!("drill_{}_{number}", self.place))
    }

    /// Drops the databases that were created here.
    pub fn clear(&self) -> Result<()> {
        self.servers.drop_databases(&format!(r"datname LIKE 'drill\_{}\_%'", self.place))
    }

    /// Starts a service with these settings in addition, and waits until it is ready.
    pub fn start(&self, settings: &[(&str, &str)]) -> Result<Service> {
        let service = Service::launch(self.command()?.envs(settings.iter().copied()))?;
        service.ready()?;
        Ok(service)
    }

    /// Rate limits high enough for a well-behaved client in a hurry.
    pub fn unlimited(&self) -> &'static [(&'static str, &'static str)] {
        const HURRY: &[(&str, &str)] = &[
            ("APP__RATE_LIMIT__PER_CLIENT_PER_SECOND", "100000"),
            ("APP__RATE_LIMIT__PER_CLIENT_BURST", "100000"),
            ("APP__RATE_LIMIT__GLOBAL_PER_SECOND", "100000"),
            ("APP__RATE_LIMIT__GLOBAL_BURST", "100000"),
            ("APP__RATE_LIMIT__WRITES_PER_SECOND", "100000"),
            ("APP__RATE_LIMIT__WRITES_BURST", "100000"),
        ];
        if self.rate_limit { HURRY } else { &[] }
    }

    /// Adds, to settings with short deadlines, a pool that gives up before they pass.
    pub fn with_pool<'s>(&self, settings: &[(&'s str, &'s str)]) -> Vec<(&'s str, &'s str)> {
        let mut settings = settings.to_vec();
        if self.postgres {
            settings.push(("APP__DATABASE__ACQUIRE_TIMEOUT", "500ms"));
        }
        settings
    }

    /// Waits for the service to exit, and keeps its log for the last drill.
    pub fn end(&self, service: Service, bound: Duration) -> Result<Exit> {
        self.end_expecting(service, bound, &[])
    }

    /// The same, but hides the errors that are `due` from the drill that checks everything that was logged.
    pub fn end_expecting(&self, service: Service, bound: Duration, due: &[&str]) -> Result<Exit> {
        let exit = service.wait(bound)?;
        let due = |line: &&String| {
            let event: Value = serde_json::from_str(line).unwrap_or_default();
            due.iter().any(|name| event["message"] == *name)
        };
        self.lines.borrow_mut().extend(exit.lines.iter().filter(|line| !due(line)).cloned());
        Ok(exit)
    }

    /// Stops a service that has nothing left to do.
    pub fn stop(&self, service: Service) -> Result<Exit> {
        service.signal();
        let exit = self.end(service, Duration::from_secs(5))?;
        ensure!(exit.code == Some(0), "exit {:?} after SIGTERM when idle", exit.code);
        Ok(exit)
    }
}
