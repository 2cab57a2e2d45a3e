//! Runs `slipway set`, as the installed program would, from each variant to every other. An untouched service has to
//! become what would have been generated, and one that its owners have edited has to become that with their edits.

use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use walkdir::WalkDir;

use crate::children::{Scratch, lock};
use crate::generate::{self, Request};
use crate::machine;
use crate::owner;
use crate::variant::{TOGGLES, Variant};

use super::check::Work;
use super::command::clean;
use super::steps::programs;

pub const NAME: &str = "orders";
/// The transitions whose result is compiled and tested with the owners' code in it. That code has a table of its
/// own if the service begins with a database.
const COMPILED: [(&str, &str); 12] = [
    ("base", "redis"),
    ("base", "rate_limit"),
    ("base", "otlp"),
    ("base", "postgres+redis+rate_limit+otlp"),
    ("redis", "base"),
    ("rate_limit+otlp", "postgres+rate_limit+otlp"),
    ("redis+rate_limit+otlp", "redis"),
    ("postgres", "postgres+redis"),
    ("postgres", "postgres+redis+rate_limit+otlp"),
    ("postgres+otlp", "postgres+rate_limit"),
    ("postgres+redis+rate_limit+otlp", "postgres"),
    ("postgres+redis+rate_limit+otlp", "postgres+redis+otlp"),
];
/// The variable that tells `slipway` which cargo-generate to run.
const GENERATOR: &str = "CARGO_GENERATE";
/// How many services are changed at once: most of the time is spent in programs that use one core.
const CONCURRENCY: usize = 2;
/// How long all transitions may take together.
const BOUND: Duration = Duration::from_mins(5);

/// Each file's content, and whether it is executable.
type Files = BTreeMap<PathBuf, (Vec<u8>, bool)>;

/// Makes every transition with services as they are generated.
pub fn untouched(work: &mut Work<'_>) -> Result<String> {
    each(work, |_, _| Ok(()))
}

/// Makes every transition with services that have their owners' edits, and no longer the example.
pub fn edited(work: &mut Work<'_>) -> Result<String> {
    each(work, |folder, variant| {
        owner::edit(folder, variant)?;
        owner::remove_example(folder)
    })
}

/// The transitions to compile: the variants before and after.
pub fn compiled() -> impl Iterator<Item = (Variant, Variant)> {
    let parsed = |name: &str| name.parse().expect("a variant, as a test sees");
    COMPILED.into_iter().map(move |(from, to)| (parsed(from), parsed(to)))
}

/// Generates the service as the first variant, applies its owners' edits, and changes it without losing any of them.
pub fn become_variant(work: &mut Work<'_>) -> Result<String> {
    let (from, to) =
        work.subject.from.zip(work.subject.variant).context("only transitions have two variants")?;
    let program = build(work)?;
    let parent = work.context.folder.join("services").join(work.subject.title.replace(' ', "-"));
    let service = Service::generate(work, from, &parent, owner::edit)?;
    let before = owner::lines(&service.folder)?;
    let environment = [(GENERATOR, work.context.tools.cargo_generate.as_path())];
    let call = Call { program: &program, template: work.context.snapshot.path(), environment: &environment };
    let (code, said) = call.set(&service.folder, to)?;
    ensure!(code == Some(0), "{said}");
    work.subject.dir = service.folder;
    let own = owner::own(&generated_lines(work, from)?, &before);
    let lost = owner::lost(&own, &owner::lines(&work.subject.dir)?);
    ensure!(lost.is_empty(), "{} lines of its owners are lost, such as {}", lost.len(), lost[0]);
    Ok(format!("{} files of its owners", own.len()))
}

fn generated_lines(work: &Work<'_>, variant: Variant) -> Result<owner::Lines> {
    let folder = Scratch::new()?;
    owner::lines(&Service::generate(work, variant, folder.path(), |_, _| Ok(()))?.folder)
}

/// Makes every transition with services that `edit` has changed, compares every file, and undoes it.
fn each(work: &mut Work<'_>, edit: fn(&Path, Variant) -> Result<()>) -> Result<String> {
    let program = build(work)?;
    let folder = Scratch::new()?;
    let started = Instant::now();
    let services = Variant::all().map(|variant| Service::generate(work, variant, folder.path(), edit));
    let services = services.collect::<Result<Vec<_>>>()?;
    let waiting = Mutex::new(services.iter().collect::<VecDeque<_>>());
    let failures = Mutex::new(Vec::new());
    let count = Mutex::new(0);
    // Each transition generates the variants before and after it, always with the same result: the stand-in keeps it.
    let kept = Scratch::new()?;
    let stand_in = work.context.root.join("xtask/generated.sh");
    let environment = [
        (GENERATOR, stand_in.as_path()),
        ("PROVE_GENERATOR", &work.context.tools.cargo_generate),
        ("PROVE_GENERATED", kept.path()),
    ];
    let call = Call { program: &program, template: work.context.snapshot.path(), environment: &environment };
    thread::scope(|scope| {
        for _ in 0..CONCURRENCY {
            scope.spawn(|| {
                while let Some(from) = { lock(&waiting).pop_front() } {
                    for to in services.iter().filter(|to| to.variant != from.variant) {
                        match from.check_transition(to, &call) {
                            Ok(()) => *lock(&count) += 1,
                            Err(error) => {
                                lock(&failures)
                                    .push(format!("{} to {}: {error:#}", from.variant, to.variant));
                            }
                        }
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().unwrap_or_else(PoisonError::into_inner);
    if let Some(first) = failures.first() {
        fs::write(&work.log, failures.join("\n"))?;
        bail!("{} transitions failed, such as {first}", failures.len());
    }
    let (count, planned) = (*lock(&count), services.len() * (services.len() - 1));
    ensure!(count == planned, "{count} of {planned} transitions were made");
    let time = started.elapsed();
    // At least twice the bound: a machine shared with others may be half as fast as a dedicated one.
    let bound = BOUND.mul_f64(machine::overload().max(2.0));
    ensure!(time < bound, "the transitions took {time:.0?}, more than {bound:.0?}");
    work.subject.facts.insert("transitions", f64::from(u32::try_from(count)?));
    Ok(format!("{count} of {planned} transitions"))
}

/// Builds `slipway` and returns its path.
pub fn build(work: &mut Work<'_>) -> Result<PathBuf> {
    let mut command = Command::new("cargo");
    command.args(["build", "--package", "slipway", "--locked", "--message-format=json-render-diagnostics"]);
    clean(&mut command);
    let said = work.run(command.current_dir(&work.context.root))?;
    programs(&said, false).pop().context("cargo built no slipway")
}

/// How `slipway` is called.
struct Call<'a> {
    program: &'a Path,
    template: &'a Path,
    /// Tells it which cargo-generate to use.
    environment: &'a [(&'a str, &'a Path)],
}

impl Call<'_> {
    /// Runs `slipway set` in `folder` with all answers of `variant`. Returns its exit code and output.
    fn set(&self, folder: &Path, variant: Variant) -> Result<(Option<i32>, String)> {
        let mut command = Command::new(self.program);
        command.arg("set").args(TOGGLES.map(|toggle| format!("{toggle}={}", variant.has(toggle))));
        command.arg("--template").arg(self.template).current_dir(folder);
        let output = command.envs(self.environment.iter().copied()).output()?;
        let said = [output.stdout, output.stderr].concat();
        Ok((output.status.code(), String::from_utf8_lossy(&said).into_owned()))
    }
}

/// git in `folder`, without the user's settings.
pub fn git(folder: &Path, arguments: &[&str]) -> Result<String> {
    let mut command = Command::new("git");
    command.args(["-c", "user.name=owner", "-c", "user.email=owner@localhost", "-c", "commit.gpgsign=false"]);
    command.args(arguments).current_dir(folder).env("GIT_CONFIG_GLOBAL", "/dev/null");
    let output = command.output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "git {}: {said}", arguments.join(" "));
    Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
}

/// A generated service, committed to git.
struct Service {
    variant: Variant,
    folder: PathBuf,
    files: Files,
}

impl Service {
    fn generate(
        work: &Work<'_>,
        variant: Variant,
        parent: &Path,
        edit: fn(&Path, Variant) -> Result<()>,
    ) -> Result<Self> {
        let request = Request {
            cargo_generate: work.context.tools.cargo_generate.clone(),
            template: work.context.snapshot.path().to_path_buf(),
            variant,
            name: NAME.into(),
            parent: parent.join(variant.to_string()),
        };
        fs::create_dir_all(&request.parent)?;
        let folder = generate::generate(&request)?;
        edit(&folder, variant)?;
        let files = contents(&folder)?;
        for arguments in
            [&["init", "--quiet"][..], &["add", "--all"], &["commit", "--quiet", "--message", "x"]]
        {
            git(&folder, arguments)?;
        }
        Ok(Self { variant, folder, files })
    }

    /// What it has to become: the same as `other`, except for what its owners wrote for this variant.
    fn wanted(&self, other: &Self) -> Files {
        let own = |path: &PathBuf| owner::OWN.map(Path::new).contains(&path.as_path());
        let mut wanted = other.files.clone();
        wanted.retain(|path, _| !own(path));
        wanted.extend(self.files.clone().into_iter().filter(|(path, _)| own(path)));
        wanted
    }

    /// Changes `self` into `other`, compares the files, and undoes the change as `slipway` says to.
    fn check_transition(&self, other: &Self, call: &Call<'_>) -> Result<()> {
        let (code, said) = call.set(&self.folder, other.variant)?;
        ensure!(code == Some(0), "{said}");
        let (found, wanted) = (contents(&self.folder)?, self.wanted(other));
        let strange = found.keys().chain(wanted.keys()).find(|path| !same(path, &found, &wanted));
        ensure!(
            strange.is_none(),
            "{} is not as it would be generated",
            strange.unwrap_or(&self.folder).display()
        );
        ensure!(git(&self.folder, &["diff", "--name-only"])?.is_empty(), "something is not staged");
        git(&self.folder, &["reset", "--quiet", "--merge"])?;
        ensure!(contents(&self.folder)? == self.files, "`git reset --merge` does not restore the service");
        ensure!(
            git(&self.folder, &["status", "--porcelain"])?.is_empty(),
            "`git reset --merge` leaves something"
        );
        Ok(())
    }
}

/// Whether both have the same file. Where owners have added dependencies, the order in `Cargo.toml` may differ.
fn same(path: &Path, found: &Files, wanted: &Files) -> bool {
    let lines = |files: &Files| -> Option<Vec<String>> {
        let text = String::from_utf8_lossy(&files.get(path)?.0).into_owned();
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.sort();
        Some(lines)
    };
    found.get(path) == wanted.get(path)
        || path == Path::new("Cargo.toml")
            && found.contains_key(owner::OWN.map(Path::new)[0])
            && lines(found) == lines(wanted)
}

fn contents(folder: &Path) -> Result<Files> {
    let mut files = Files::new();
    for entry in WalkDir::new(folder).into_iter().filter_entry(|entry| entry.file_name() != ".git") {
        let entry = entry?;
        let path = entry.path().strip_prefix(folder)?.to_owned();
        if !entry.file_type().is_dir() {
            let executable = entry.metadata()?.permissions().mode() & 0o111 != 0;
            files.insert(path, (fs::read(entry.path())?, executable));
        } else if fs::read_dir(entry.path())?.next().is_none() {
            // git doesn't track empty folders, but an owner would see one that was left behind.
            files.insert(path, (Vec::new(), false));
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::compiled;

    #[test]
    fn compiled_transitions_are_distinct() {
        let all: std::collections::BTreeSet<_> = compiled().collect();
        assert_eq!(all.len(), 12);
        assert!(all.iter().all(|(from, to)| from != to && (to.has("postgres") || !from.has("postgres"))));
    }
}
