//! Finds the programs that the proof needs, or installs them where that is allowed, or says in one line what to
//! install.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::panic;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Signal, geteuid};

use crate::children::{Child, lock};
use crate::machine::COMPILER_ENV;
use crate::servers::tail;

mod cargo_deny;
mod linters;
mod python;
mod rotel;
mod schemathesis;

pub use linters::Linters;

/// The version to install when none is found: the newest that builds with the Rust version that we require.
const CARGO_GENERATE: &str = "0.23.14";
/// The oldest version in which hooks and `.liquid` siblings work as the template needs; see `cargo-generate.toml`.
const OLDEST: [u64; 3] = [0, 23, 12];
/// The crates in which cargo-generate spends its time, with their optimisation levels. Its full release profile takes
/// five minutes of processor time to build, to save 10 ms of a run; optimising only these halves the build time.
///
/// Crates that parse get 2: at 1, a crate calls the standard library's generics as compiled into other crates, and
/// nothing of them is inlined. Level 2 makes a run a quarter shorter.
const HOT: [(&str, u8); 12] = [
    ("aho-corasick", 1),
    ("hashbrown", 1),
    ("kstring", 1),
    ("liquid", 1),
    ("liquid-core", 2),
    ("liquid-lib", 1),
    ("memchr", 1),
    ("pest", 2),
    ("regex-automata", 1),
    ("regex-syntax", 1),
    ("rhai", 1),
    ("smallvec", 1),
];
const INSTALL_BOUND: Duration = Duration::from_mins(10);
const BUILD_BOUND: Duration = Duration::from_mins(30);

/// Where each program is.
pub struct Tools {
    pub cargo_generate: PathBuf,
    /// The folder of PostgreSQL's server programs.
    pub postgres: PathBuf,
    pub redis: PathBuf,
    pub haproxy: PathBuf,
    pub prometheus: PathBuf,
    /// Prometheus's own checker, from the same package.
    pub promtool: PathBuf,
    pub pgbouncer: PathBuf,
    /// Present only in a run that fuzzes.
    pub schemathesis: Option<PathBuf>,
    /// Present only in a run that exports traces.
    pub rotel: Option<PathBuf>,
    /// Present only in a run that lints files or runs recipes.
    pub linters: Option<Linters>,
    /// Present only in a run that runs recipes.
    pub cargo_deny: Option<PathBuf>,
    /// Present only in a run that counts instructions.
    pub valgrind: Option<PathBuf>,
    /// Present only in a benchmark, whose load it generates.
    pub wrk: Option<PathBuf>,
}

/// The tools that a run needs besides those that every run needs.
#[derive(Clone, Copy, Default)]
#[expect(clippy::struct_excessive_bools, reason = "each is a tool of its own")]
pub struct Wanted {
    pub schemathesis: bool,
    pub rotel: bool,
    pub linters: bool,
    pub images: bool,
    pub valgrind: bool,
    pub wrk: bool,
}

impl Tools {
    /// Finds or installs all that are needed; each step that takes time is announced with `say`.
    ///
    /// # Errors
    /// When one is missing and can't be installed.
    pub fn set_up(root: &Path, wanted: Wanted, say: &(dyn Fn(&str) + Sync)) -> Result<Self> {
        let missing: Vec<&str> = [
            (postgres_bin().is_none(), "postgresql"),
            (redis_server().is_none(), "redis-server"),
            (daemon("haproxy").is_none(), "haproxy"),
            (daemon("pgbouncer").is_none(), "pgbouncer"),
            (on_path("prometheus").and(on_path("promtool")).is_none(), "prometheus"),
            (wanted.images && on_path("buildah").is_none(), "buildah"),
            (wanted.images && on_path("mmdebstrap").is_none(), "mmdebstrap"),
            (wanted.images && on_path("openssl").is_none(), "openssl"),
            (wanted.valgrind && on_path("valgrind").is_none(), "valgrind"),
            (wanted.wrk && on_path("wrk").is_none(), "wrk"),
        ]
        .into_iter()
        .filter_map(|(missing, package)| missing.then_some(package))
        .collect();
        if !missing.is_empty() {
            say(&format!("installing {} with apt-get", missing.join(", ")));
            install(&missing)?;
        }
        // In parallel: the compiler keeps the processors busy, while the others wait for their registries.
        let (cargo_generate, rotel, linters) = thread::scope(|scope| {
            let built = scope.spawn(|| cargo_generate(root, say));
            let rotel = wanted.rotel.then(|| rotel::set_up(root, say)).transpose();
            let linters = (wanted.linters || wanted.images).then(|| linters::set_up(root, say)).transpose();
            (built.join().unwrap_or_else(|cause| panic::resume_unwind(cause)), rotel, linters)
        });
        Ok(Self {
            cargo_generate: cargo_generate?,
            postgres: postgres_bin().context("no PostgreSQL server was found: install postgresql")?,
            redis: redis_server().context("no redis-server was found: install redis-server")?,
            haproxy: daemon("haproxy").context("no haproxy was found: install haproxy")?,
            pgbouncer: daemon("pgbouncer").context("no pgbouncer was found: install pgbouncer")?,
            prometheus: on_path("prometheus").context("no Prometheus was found: install prometheus")?,
            promtool: on_path("promtool").context("no promtool was found: install prometheus")?,
            schemathesis: wanted.schemathesis.then(|| schemathesis::set_up(root, say)).transpose()?,
            rotel: rotel?,
            linters: linters?,
            cargo_deny: wanted.images.then(|| cargo_deny::set_up(root, say)).transpose()?,
            valgrind: wanted.valgrind.then(|| needed("valgrind")).transpose()?,
            wrk: wanted.wrk.then(|| needed("wrk")).transpose()?,
        })
    }
}

/// A program whose package has the same name.
fn needed(program: &str) -> Result<PathBuf> {
    on_path(program).with_context(|| format!("no {program} was found: install {program}"))
}

/// A cargo-generate that is new enough. If there is none, it is built in the user's cache, so that a build of two
/// minutes isn't lost when a clone is deleted.
///
/// # Errors
/// When there is none and the build fails.
pub fn cargo_generate(root: &Path, say: &(dyn Fn(&str) + Sync)) -> Result<PathBuf> {
    let places = [
        on_path("cargo-generate"),
        Some(root.join("target/tools/bin/cargo-generate")),
        Some(cache_folder(root).join("bin/cargo-generate")),
    ];
    if let Some(found) = places.into_iter().flatten().find(|path| new_enough(path)) {
        return Ok(found);
    }
    let optimised =
        HOT.map(|(package, level)| format!("profile.release.package.{package}.opt-level={level}"));
    let optimised = optimised.iter().flat_map(|setting| ["--config", setting]);
    let options: Vec<_> = openssl(say)?.iter().copied().chain(optimised).collect();
    let built = cargo_install(root, ("cargo-generate", CARGO_GENERATE), &options, say)?;
    ensure!(new_enough(&built), "cargo-generate was built but is missing or too old");
    Ok(built)
}

/// Builds a program into the user's cache, optimising only what `options` name: most of the time goes into the build.
fn cargo_install(
    root: &Path,
    (name, version): (&str, &str),
    options: &[&str],
    say: &(dyn Fn(&str) + Sync),
) -> Result<PathBuf> {
    let cache = cache_folder(root);
    say(&format!("building {name} {version}, once, into {}", cache.display()));
    let objects = root.join("target/tools").join(name);
    let mut command = Command::new("cargo");
    command.args(["install", name, "--version", version, "--locked", "--root"]).arg(&cache);
    for setting in ["lto='off'", "codegen-units=16", "opt-level=0"] {
        command.args(["--config", &format!("profile.release.{setting}")]);
    }
    command.args(options).env("CARGO_TARGET_DIR", &objects).env(COMPILER_ENV.0, COMPILER_ENV.1);
    finish(&mut command).with_context(|| format!("{name} could not be built"))?;
    // Half a gigabyte that nothing reads again.
    let _ = fs::remove_dir_all(objects);
    Ok(cache.join("bin").join(name))
}

/// The options for the OpenSSL that cargo-generate links: the system's, or else one built from source.
fn openssl(say: &(dyn Fn(&str) + Sync)) -> Result<&'static [&'static str]> {
    let found = || runs("pkg-config", &["--exists", "openssl"]);
    if cfg!(target_os = "macos") || found() {
        return Ok(&[]);
    }
    say("installing libssl-dev and pkg-config with apt-get");
    match install(&["libssl-dev", "pkg-config"]) {
        Ok(()) if found() => Ok(&[]),
        _ if runs("perl", &["-v"]) && runs("make", &["-v"]) => Ok(&["--features", "vendored-openssl"]),
        Ok(()) => bail!("OpenSSL's headers were not found: install libssl-dev and pkg-config"),
        Err(error) => Err(error),
    }
}

fn cache_folder(root: &Path) -> PathBuf {
    let named = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    named("XDG_CACHE_HOME")
        .or_else(|| Some(named("HOME")?.join(".cache")))
        .map_or_else(|| root.join("target/tools"), |cache| cache.join("slipway/tools"))
}

fn new_enough(program: &Path) -> bool {
    let Ok(output) = Command::new(program).args(["generate", "--version"]).output() else {
        return false;
    };
    version(&String::from_utf8_lossy(&output.stdout)).is_some_and(|found| found >= OLDEST)
}

/// The three numbers in output such as `cargo generate-generate 0.23.14`.
pub(crate) fn version(text: &str) -> Option<[u64; 3]> {
    let last = text.split_whitespace().last()?;
    let numbers: Vec<u64> = last.split('.').map_while(|part| part.parse().ok()).collect();
    numbers.try_into().ok()
}

/// PostgreSQL's server programs: Debian keeps them off the PATH, one folder per version.
fn postgres_bin() -> Option<PathBuf> {
    let whole =
        |bin: &PathBuf| ["initdb", "postgres", "createdb", "psql"].iter().all(|p| bin.join(p).is_file());
    let mut versions: Vec<(u64, PathBuf)> = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path().join("bin"))))
        .filter(|(_, bin)| whole(bin))
        .collect();
    versions.sort();
    let newest = versions.pop().map(|(_, bin)| bin);
    newest.or_else(|| on_path("initdb")?.parent().map(Path::to_path_buf).filter(whole))
}

fn redis_server() -> Option<PathBuf> {
    on_path("redis-server").or_else(|| on_path("valkey-server"))
}

/// Debian installs daemons into a folder that isn't on a user's PATH.
fn daemon(name: &str) -> Option<PathBuf> {
    on_path(name).or_else(|| Some(Path::new("/usr/sbin").join(name)).filter(|file| file.is_file()))
}

/// Debian would start the servers that it installs; we run private ones, so a policy (Debian policy 9.3.3) forbids it
/// during the installation. The package lists of a fresh image are empty and those of an old one stale: they are
/// refreshed only when the first attempt fails, because that takes time.
const INSTALL: &str = r#"
policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then
    trap 'rm -f $policy' EXIT
    trap 'exit 1' HUP INT TERM
    printf '#!/bin/sh\nexit 101\n' >$policy
    chmod 755 $policy
fi
export DEBIAN_FRONTEND=noninteractive
try() { apt-get -q -o DPkg::Lock::Timeout=120 install -y --no-install-recommends "$@"; }
try "$@" || { apt-get -q update && try "$@"; }
"#;

/// Installs Debian packages, if this user may. One call at a time, since apt doesn't wait for the lock on its lists.
fn install(packages: &[&str]) -> Result<()> {
    static ALONE: Mutex<()> = Mutex::new(());
    let _alone = lock(&ALONE);
    let cure = format!("install {}, then run this again", packages.join(" and "));
    if on_path("apt-get").is_none() {
        bail!("{} missing, and there is no apt-get: {cure}", packages.join(", "));
    }
    let mut command = if geteuid().is_root() {
        Command::new("sh")
    } else if runs("sudo", &["-n", "true"]) {
        let mut sudo = Command::new("sudo");
        sudo.args(["-n", "sh"]);
        sudo
    } else {
        bail!("{} missing, and this user may not install anything: {cure}", packages.join(", "));
    };
    command.args(["-c", INSTALL, "install"]).args(packages);
    finish_within(&mut command, INSTALL_BOUND).with_context(|| format!("apt-get failed, so {cure}"))
}

/// Runs an installation command to completion.
fn finish(command: &mut Command) -> Result<()> {
    finish_within(command, BUILD_BOUND)
}

/// Retries a command that fails, as a registry may for a moment; each of these commands can safely be run again.
/// `bound` covers all attempts together.
fn finish_within(command: &mut Command, bound: Duration) -> Result<()> {
    let (log, began) = (tempfile::NamedTempFile::new()?, Instant::now());
    for pause in [0, 5, 15] {
        thread::sleep(Duration::from_secs(pause));
        log.as_file().set_len(0)?;
        command.stdout(log.reopen()?).stderr(log.reopen()?);
        let left = bound.saturating_sub(began.elapsed());
        match Child::spawn(command, Signal::TERM)?.wait(left)? {
            Some(status) if status.success() => return Ok(()),
            Some(_) => {}
            None => break,
        }
    }
    let said = fs::read_to_string(log.path()).unwrap_or_default();
    let program = command.get_program().to_string_lossy();
    bail!("`{program}` failed; the last lines of its output:\n{}", tail(&said, 8))
}

/// Where `program` is on the PATH.
#[must_use]
pub fn on_path(program: impl AsRef<OsStr>) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path).map(|folder| folder.join(program.as_ref())).find(|file| file.is_file())
}

fn runs(program: impl AsRef<OsStr>, arguments: &[&str]) -> bool {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

#[cfg(test)]
mod tests {
    use super::{OLDEST, version};

    #[test]
    fn a_version_is_the_last_word() {
        assert_eq!(version("cargo generate-generate 0.23.14\n"), Some([0, 23, 14]));
        assert!(version("cargo-generate-generate 0.23.11").is_some_and(|found| found < OLDEST));
        assert_eq!(version("error: no such command"), None);
    }

    #[test]
    fn the_template_refuses_the_same_versions() {
        let [major, minor, patch] = OLDEST;
        let wanted = format!("\ncargo_generate_version = \">={major}.{minor}.{patch}\"\n");
        assert!(include_str!("../../cargo-generate.toml").contains(&wanted), "it should have {wanted}");
    }
}
