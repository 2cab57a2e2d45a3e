//! Runs each recipe of the justfile once, as a person would.

use std::collections::BTreeMap;
use std::env;
use std::fs::{self, OpenOptions};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::weave::tree;

use super::check::Work;
use super::command::clean;
use super::service::Service;

/// The recipes that need Docker.
const DOCKER: [&str; 4] = ["up", "down", "observe", "image"];
/// The others, in an order in which each finds what it depends on. Some exist only when their toggle is on.
const ORDER: [&str; 10] =
    ["default", "fmt", "lint", "rules", "alerts", "openapi", "migrate", "sqlx-prepare", "test", "deny"];
/// The recipe that serves until it is stopped.
const SERVES: &str = "dev";

/// Runs every recipe of the justfile that doesn't need Docker, and fails on one that is not listed here.
pub fn run(work: &mut Work<'_>) -> Result<String> {
    let name = format!("recipes_{}", work.subject.place);
    let servers = &work.context.servers;
    let database = work.subject.has("postgres").then(|| servers.create_database(&name)).transpose()?;
    let mut recipes = Recipes { work, database };
    let dump = recipes.work.run(&mut recipes.just(&["--dump", "--dump-format", "json"])?)?;
    let dump: Value = serde_json::from_str(&dump)?;
    let there = dump["recipes"].as_object().context("no recipes")?;
    let known = |name: &str| DOCKER.contains(&name) || ORDER.contains(&name) || name == SERVES;
    let unknown: Vec<_> = there.keys().filter(|name| !known(name)).collect();
    ensure!(unknown.is_empty(), "recipes that this step does not know: {unknown:?}");
    let before = recipes.tracked_files()?;
    let ran: Vec<&str> = ORDER.into_iter().filter(|name| there.contains_key(*name)).collect();
    for name in &ran {
        match *name {
            "deny" => recipes.deny()?,
            _ => drop(recipes.build(&[name])?),
        }
    }
    recipes.serve()?;
    ensure!(recipes.tracked_files()? == before, "a recipe changed a committed file");
    let skipped: Vec<&str> = DOCKER.into_iter().filter(|name| there.contains_key(*name)).collect();
    let title = &recipes.work.subject.title;
    println!("not run: {title}: just {} (needs Docker)", skipped.join(", just "));
    Ok(format!("{} recipes, {} not", ran.len() + 1, skipped.len()))
}

struct Recipes<'a, 'w> {
    work: &'a mut Work<'w>,
    database: Option<String>,
}

impl Recipes<'_, '_> {
    fn build(&mut self, arguments: &[&str]) -> Result<String> {
        let mut command = self.just(arguments)?;
        self.work.run(&mut command)
    }

    /// Runs `just deny` or, if the advisory database can't be fetched, the checks that don't need it.
    fn deny(&mut self) -> Result<()> {
        let Err(error) = self.build(&["deny"]) else { return Ok(()) };
        let said = fs::read_to_string(&self.work.log)?;
        ensure!(said.contains("failed to fetch advisory database"), "{error:#}");
        println!(
            "not run: {}: advisories of `just deny` (their database can't be fetched)",
            self.work.subject.title
        );
        let mut command = Command::new(self.work.context.tools.cargo_deny.as_ref().context("no cargo-deny")?);
        command.args(["check", "bans", "licenses", "sources"]).current_dir(&self.work.subject.dir);
        clean(&mut command);
        self.work.run(&mut command)?;
        Ok(())
    }

    fn serve(&self) -> Result<()> {
        let mut command = self.just(&[SERVES])?;
        command.env("APP__HTTP__PORT", "0").env("APP__ADMIN__PORT", "0").env("APP__LOG__FORMAT", "json");
        command.stderr(OpenOptions::new().append(true).open(&self.work.log)?);
        let service = Service::launch(&mut command)?;
        service.ready()?;
        service.signal();
        let exit = service.wait(Duration::from_secs(10))?;
        ensure!(
            exit.event("service.exit").is_some(),
            "`just {SERVES}` did not stop: {:?}",
            exit.lines.last()
        );
        Ok(())
    }

    /// The files that git tracks. Recipes may rewrite but not change them: sources are formatted and queries prepared.
    fn tracked_files(&self) -> Result<BTreeMap<PathBuf, Vec<u8>>> {
        let mut kept = BTreeMap::new();
        for path in tree::files(&self.work.subject.dir)? {
            kept.insert(path.clone(), fs::read(self.work.subject.dir.join(path))?);
        }
        Ok(kept)
    }

    /// `just` with the servers that .env would name.
    fn just(&self, arguments: &[&str]) -> Result<Command> {
        let (tools, subject) = (&self.work.context.tools, &self.work.subject);
        let linters = tools.linters.as_ref().context("just was not set up")?;
        let mut command = Command::new(linters.bin.join("just"));
        command.args(arguments).current_dir(&subject.dir);
        clean(&mut command);
        command.env("CARGO_TARGET_DIR", self.work.context.folder.join("build"));
        let own = env::var_os("PATH").unwrap_or_default();
        // A recipe may call another through `just`, and cargo looks for cargo-deny: both must be on the PATH.
        let deny = tools.cargo_deny.iter().filter_map(|it| it.parent());
        let path = deny.map(PathBuf::from).chain([linters.bin.clone()]).chain(env::split_paths(&own));
        command.env("PATH", env::join_paths(path)?);
        command.envs(self.database.iter().map(|url| ("DATABASE_URL", url)));
        if subject.has("redis") {
            command.env("REDIS_URL", self.work.context.servers.redis_url(subject.place));
        }
        Ok(command)
    }
}
