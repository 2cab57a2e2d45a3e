//! The steps that every variant goes through, in order: the cheap ones first.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::generate::{self, Request};
use crate::variant::Variant;

use super::check::Work;
use super::command::clean;
use super::{drills, features, files, fuzz, image, recipes, rules, size, transitions, unused, workflow};

/// A step: its name in the matrix, and what it does. It returns a note on what it saw.
#[derive(Clone, Copy)]
pub struct Step {
    pub name: &'static str,
    pub run: fn(&mut Work<'_>) -> Result<String>,
    /// Whether it may run while another subject is measured.
    pub ahead: bool,
}

const GENERATE: &str = "generate";
pub const FILES: &str = "files";
const LINT: &str = "clippy";
const BUILD: &str = "build";
const TEST: &str = "test";
const DRILLS: &str = "drills";
const IMAGE: &str = "image";
const FUZZ_NAME: &str = "fuzz";

/// The steps of a usual run.
pub const ALL: [Step; 12] = [
    Step::ahead(GENERATE, generate),
    Step::ahead("leftovers", leftovers),
    Step::ahead("size", size::check),
    Step::ahead("rules", rules::check),
    Step::ahead(FILES, files::check),
    Step::ahead("fmt", format),
    Step::ahead(LINT, lint),
    Step::ahead("unused", unused::check),
    Step::ahead("doc", document),
    Step::ahead(BUILD, build),
    Step::alone(TEST, test),
    Step::alone(DRILLS, drills::run),
];

/// The steps of `--fuzz`.
pub const FUZZ: [Step; 3] =
    [Step::ahead(GENERATE, generate), Step::ahead(BUILD, build), Step::alone(FUZZ_NAME, fuzz::run)];

/// The steps of `--images`.
pub const IMAGES: [Step; 4] = [
    Step::ahead(GENERATE, generate),
    Step::alone("workflow", workflow::run),
    Step::alone("recipes", recipes::run),
    Step::alone(IMAGE, image::check),
];

/// The steps of `--features`.
pub const FEATURES: [Step; 2] = [Step::ahead(GENERATE, generate), Step::alone("features", features::check)];

/// The steps of `--transitions`, for one service at a time: all have the same name, so their builds write the same
/// program in the shared target folder.
pub const TRANSITIONS: [Step; 5] = [
    Step::alone(GENERATE, transitions::become_variant),
    Step::alone("fmt", format),
    Step::alone(LINT, lint),
    Step::alone(BUILD, build),
    Step::alone(TEST, test),
];

impl Step {
    /// A step that reads or compiles: its result is the same on a busy machine.
    pub const fn ahead(name: &'static str, run: fn(&mut Work<'_>) -> Result<String>) -> Self {
        Self { name, run, ahead: true }
    }

    /// A step that measures.
    pub const fn alone(name: &'static str, run: fn(&mut Work<'_>) -> Result<String>) -> Self {
        Self { name, run, ahead: false }
    }

    pub fn is_fuzz(&self) -> bool {
        self.name == FUZZ_NAME
    }

    pub fn looks_at_files(&self) -> bool {
        self.name == FILES
    }

    /// Whether it is the first step that compiles anything.
    pub fn lints(&self) -> bool {
        self.name == LINT
    }

    pub fn makes_images(&self) -> bool {
        self.name == IMAGE
    }

    /// Whether it runs the service's own tests, in place or where it was generated.
    pub fn tests(&self) -> bool {
        self.name.ends_with(TEST)
    }

    pub fn is_drill(&self) -> bool {
        self.name == DRILLS
    }

    /// Whether the drills need what it makes.
    pub fn makes_the_program(&self) -> bool {
        [GENERATE, BUILD].contains(&self.name)
    }

    pub fn makes_the_code(&self) -> bool {
        self.name == GENERATE
    }
}

/// How long generation may take. The cargo-generate that people install does it in 0.2 s; the one that the proof
/// builds is mostly unoptimised, which takes much less time to build, and CI's machines are up to three times as
/// slow. The best of a few runs counts: chance can make a run slow, but not fast. The report has the time.
const GENERATION_BOUND: Duration = Duration::from_secs(1);
const GENERATIONS: u32 = 10;

fn generate(work: &mut Work<'_>) -> Result<String> {
    let variant = work.subject.variant.context("only variants are generated")?;
    let parent = work.context.folder.join("services").join(variant.to_string());
    let mut best = Duration::MAX;
    for _ in 0..GENERATIONS {
        if parent.exists() {
            fs::remove_dir_all(&parent)?;
        }
        fs::create_dir_all(&parent)?;
        let request = Request {
            cargo_generate: work.context.tools.cargo_generate.clone(),
            template: work.context.snapshot.path().to_path_buf(),
            variant,
            name: work.subject.name.clone(),
            parent: parent.clone(),
        };
        let started = Instant::now();
        work.subject.dir = generate::generate(&request)?;
        best = best.min(started.elapsed());
        if best < GENERATION_BOUND {
            break;
        }
    }
    work.subject.facts.insert("generation_ms", best.as_secs_f64() * 1000.0);
    ensure!(best < GENERATION_BOUND, "generation took {best:.0?}, more than {GENERATION_BOUND:.0?}");
    Ok(format!("{best:.0?}"))
}

fn leftovers(work: &mut Work<'_>) -> Result<String> {
    let variant = work.subject.variant.context("only variants are searched")?;
    let found = generate::leftovers(&work.subject.dir, variant)?;
    if !found.is_empty() {
        fs::write(&work.log, found.join("\n"))?;
        bail!("{} leftovers, such as: {}", found.len(), found[..found.len().min(3)].join(" | "));
    }
    Ok(String::new())
}

pub fn format(work: &mut Work<'_>) -> Result<String> {
    let mut command = Command::new("cargo");
    command.args(["fmt", "--check", "--", "--color", "never"]).current_dir(&work.subject.dir);
    work.run(&mut command)?;
    Ok(String::new())
}

/// Lints and compiles, which is one pass of the compiler. It runs twice, without and with the test targets:
/// otherwise the findings on unused dependencies could not tell what the service needs from what its tests need.
/// Nothing is compiled twice.
pub fn lint(work: &mut Work<'_>) -> Result<String> {
    let as_json = "--message-format=json";
    for (subcommand, arguments, findings) in
        [("build", &[as_json][..], unused::SERVICE), ("test", &["--no-run", as_json], unused::ALL)]
    {
        let said = work.run(with_clippy_wrapper(work, &mut work.cargo(subcommand, arguments)))?;
        fs::write(work.log.with_file_name(findings), said)?;
    }
    Ok(String::new())
}

/// Makes cargo compile the service's own crates as [`lint`] does.
fn with_clippy_wrapper<'a>(work: &Work<'_>, command: &'a mut Command) -> &'a mut Command {
    command.env("RUSTC_WORKSPACE_WRAPPER", work.context.root.join("xtask/clippy.sh"))
}

/// cargo on what [`lint`] has compiled. Where that failed, or was not asked for, cargo runs the plain compiler.
fn cargo_reusing_lint(work: &Work<'_>, subcommand: &str, arguments: &[&str]) -> Command {
    let mut command = work.cargo(subcommand, arguments);
    if work.subject.checks.iter().any(|check| check.step.ends_with(LINT) && check.passed()) {
        with_clippy_wrapper(work, &mut command);
    }
    command
}

/// Checks the documentation of all items as `cargo doc` would, with the libraries that are already built.
fn document(work: &mut Work<'_>) -> Result<String> {
    let mut command = cargo_reusing_lint(work, "test", &["--doc"]);
    work.run(command.env("RUSTDOC", work.context.root.join("xtask/rustdoc.sh")))?;
    Ok(String::new())
}

/// Builds the program, and the test programs if a later step runs them.
pub fn build(work: &mut Work<'_>) -> Result<String> {
    let as_json = "--message-format=json-render-diagnostics";
    let at_an_extreme = work.subject.variant.is_some_and(Variant::is_extreme);
    if at_an_extreme && work.context.counts {
        work.subject.optimised = Some(optimised(work)?);
    }
    if work.subject.steps.iter().any(Step::tests) {
        let built = work.run(&mut cargo_reusing_lint(work, "test", &["--no-run", as_json]))?;
        work.subject.tests = programs(&built, true);
        ensure!(!work.subject.tests.is_empty(), "cargo built no test program");
    }
    // The program comes last: dev-dependencies may have changed the features that it was built with.
    let built = work.run(&mut cargo_reusing_lint(work, "build", &[as_json]))?;
    work.subject.program = programs(&built, false).pop().context("cargo built no program")?;
    Ok(String::new())
}

/// Builds the program with its own code optimised, and the dependencies as they are. In a single codegen unit: with
/// several, any change could regroup functions, which changes what is inlined and so the count.
fn optimised(work: &Work<'_>) -> Result<PathBuf> {
    let settings = ["opt-level=2", "codegen-units=1", "debug-assertions=false", "overflow-checks=false"];
    let settings = settings.map(|setting| format!("profile.prove.{setting}"));
    let mut arguments = vec!["--message-format=json-render-diagnostics"];
    arguments.extend(settings.iter().flat_map(|setting| ["--config", setting]));
    let built = work.run(&mut work.cargo("build", &arguments))?;
    let program = programs(&built, false).pop().context("cargo built no program")?;
    // The next build overwrites it.
    let kept = program.with_file_name(format!("{}-optimised", work.subject.name));
    fs::copy(program, &kept)?;
    Ok(kept)
}

/// The programs that cargo says it has built, in its JSON messages.
pub fn programs(built: &str, tests: bool) -> Vec<PathBuf> {
    let messages = built.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let wanted = messages.filter(|message| message["profile"]["test"] == tests);
    wanted.filter_map(|message| Some(PathBuf::from(message["executable"].as_str()?))).collect()
}

/// How many tests run in parallel: they wait more than they compute.
const TESTS_AT_ONCE: &str = "8";

/// Runs the test programs, as `cargo test` would.
pub fn test(work: &mut Work<'_>) -> Result<String> {
    let role = format!("prove_{}", work.subject.place);
    let servers = &work.context.servers;
    let database = work.subject.has("postgres").then(|| servers.create_superuser(&role)).transpose()?;
    let mut total = 0;
    for program in &work.subject.tests {
        let mut command = Command::new(program);
        clean(&mut command);
        command.current_dir(&work.subject.dir).env("CARGO_MANIFEST_DIR", &work.subject.dir);
        command.env("RUST_TEST_THREADS", TESTS_AT_ONCE);
        if let Some(url) = &database {
            command.env("DATABASE_URL", url);
        }
        if work.subject.has("redis") {
            command.env("REDIS_URL", work.context.servers.redis_url(work.subject.place));
        }
        total += passed_tests(&work.run(&mut command)?)?;
    }
    if has_doctests(&work.subject.dir.join("src"))? {
        total += passed_tests(&work.run(&mut cargo_reusing_lint(work, "test", &["--doc"]))?)?;
    }
    if database.is_some() {
        work.context.servers.drop_databases(&format!("rolname = '{role}'"))?;
    }
    ensure!(total > 0, "no test ran");
    work.subject.facts.insert("tests", f64::from(total));
    Ok(format!("{total} tests"))
}

/// Adds up the `test result:` lines. An ignored test proves nothing, so it is an error, and so is a test program that
/// has begun but not come to a result: a test may have ended it, even with success.
pub fn passed_tests(said: &str) -> Result<u32> {
    let started = said.lines().filter(|line| line.starts_with("running ") && line.contains(" test")).count();
    let results: Vec<&str> = said.lines().filter(|line| line.starts_with("test result: ")).collect();
    let ended = results.len();
    ensure!(started > 0 && ended == started, "{started} test programs began, {ended} came to a result");
    let mut total = 0;
    for line in results {
        let count = |what: &str| -> Option<u32> {
            let before = line.split(what).next()?;
            before.split_whitespace().last()?.parse().ok()
        };
        let ignored = count(" ignored").with_context(|| format!("unreadable: {line}"))?;
        ensure!(ignored == 0, "{ignored} tests are ignored");
        total += count(" passed").with_context(|| format!("unreadable: {line}"))?;
    }
    Ok(total)
}

fn has_doctests(folder: &Path) -> Result<bool> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let found = if path.is_dir() {
            has_doctests(&path)?
        } else {
            let text = fs::read_to_string(&path)?;
            text.lines().any(|line| {
                let line = line.trim_start();
                line.starts_with("/// ```") || line.starts_with("//! ```")
            })
        };
        if found {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::passed_tests;

    #[test]
    fn results_add_up_and_ignored_tests_are_refused() {
        let said =
            "running 12 tests\ntest result: ok. 12 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out\n";
        assert_eq!(passed_tests(&format!("{said}noise\n{said}")).ok(), Some(24));
        assert!(passed_tests(&said.replace("0 ignored", "1 ignored")).is_err());
    }

    #[test]
    fn every_program_that_began_needs_a_result() {
        let one =
            "running 1 test\ntest result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out\n";
        let refused = |said: &str| passed_tests(said).err().map(|error| error.to_string());
        let wanted = Some("2 test programs began, 1 came to a result".to_owned());
        assert_eq!(refused(&format!("{one}running 7 tests\n")), wanted);
        assert!(refused("").is_some(), "nothing ran");
    }
}
