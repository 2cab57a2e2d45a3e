//! The machine that this runs on.

use std::env;
use std::fs;
use std::num::NonZero;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;
use std::thread;

use anyhow::{Result, bail, ensure};
use rustix::fs::{Access, StatVfs, StatVfsMountFlags, access, statvfs};
use rustix::process::{Resource, getrlimit, setrlimit};
#[cfg(target_os = "linux")]
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Makes the compiler's allocator use huge pages where the system allows it, which halves the page faults. A service
/// has a different allocator, which ignores this variable.
pub const COMPILER_ENV: (&str, &str) = ("MALLOC_CONF", "thp:always");

/// The number of threads that want to run, as a multiple of the cores, but at least 1. It is 1 in CI; on a shared
/// machine, the load that others cause is no fault of the template.
#[must_use]
pub fn overload() -> f64 {
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load: f64 = load.split(' ').next().and_then(|text| text.parse().ok()).unwrap_or_default();
    let cores = thread::available_parallelism().map_or(1, NonZero::get);
    (load / f64::from(u16::try_from(cores).unwrap_or(u16::MAX))).max(1.0)
}

/// Allows this process, and those that it starts from now on, to have `count` files and sockets open.
///
/// # Errors
/// When the system's hard limit is lower.
pub fn raise_descriptor_limit(count: u64) -> Result<()> {
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= count) {
        return Ok(());
    }
    let enough = limit.maximum.is_none_or(|maximum| maximum >= count);
    ensure!(enough, "{count} descriptors are needed and `ulimit -Hn` allows {:?}", limit.maximum);
    limit.current = limit.maximum;
    Ok(setrlimit(Resource::Nofile, limit)?)
}

/// Warns if the disk of `folder` may not have room for what a run from scratch compiles.
///
/// # Errors
/// When there is no such folder.
pub fn warn_if_disk_is_low(folder: &Path) -> Result<()> {
    const NEEDED: u64 = 8_000_000_000;
    let free = free(&statvfs(folder)?);
    if free < NEEDED {
        let (free, needed) = (free / 1_000_000, NEEDED / 1_000_000);
        eprintln!("warning: {free} MB are free at {}: a run from scratch takes {needed}", folder.display());
    }
    Ok(())
}

/// The free space that is available to unprivileged users, in bytes.
fn free(disk: &StatVfs) -> u64 {
    disk.f_bavail * disk.f_frsize
}

/// The in-memory file system of Linux.
pub const MEMORY: &str = "/dev/shm";

/// Restarts this program with its temporary files in memory, if there is plenty of room and of free memory: the proof
/// creates and removes hundreds of thousands of them, which takes minutes on a disk.
pub fn keep_temporary_files_in_memory() {
    const ROOM: u64 = 8_000_000_000;
    const AVAILABLE: u64 = 12_000_000_000;
    // A plain number, because macOS has no name for it; it has no such folder either.
    const NOEXEC: StatVfsMountFlags = StatVfsMountFlags::from_bits_retain(8);
    let folder = Path::new(MEMORY);
    let fits = |disk: StatVfs| free(&disk) >= ROOM && !disk.f_flag.contains(NOEXEC);
    let has_room = statvfs(folder).is_ok_and(fits) && access(folder, Access::WRITE_OK).is_ok();
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let available =
        meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:")?.split_whitespace().next());
    let available: u64 = available.and_then(|kilobytes| kilobytes.parse().ok()).unwrap_or_default();
    if env::var_os("TMPDIR").is_some() || !has_room || available * 1024 < AVAILABLE {
        return;
    }
    if let Ok(program) = env::current_exe() {
        let error = Command::new(program).args(env::args_os().skip(1)).env("TMPDIR", folder).exec();
        eprintln!("warning: temporary files stay on the disk: {error}");
    }
}

/// The date, the compiler, the processor and its number of cores.
#[must_use]
pub fn description() -> String {
    let processors = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = processors.lines().find_map(|line| line.strip_prefix("model name")?.split(": ").nth(1));
    let cores = thread::available_parallelism().map_or(1, NonZero::get);
    format!(
        "{} · rustc {} · {cores} cores of {}",
        said("date", "+%F"),
        compiler(),
        model.unwrap_or(env::consts::ARCH)
    )
}

/// The version of the compiler, such as `1.95.0`.
#[must_use]
pub fn compiler() -> String {
    said("rustc", "--version").split(' ').nth(1).unwrap_or_default().to_owned()
}

fn said(program: &str, argument: &str) -> String {
    let output = Command::new(program).arg(argument).output();
    output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default()
}

/// Keeps this thread, and what it starts from now on, off one of its cores. Returns that core and the next.
///
/// # Errors
/// When there is only one.
#[cfg(target_os = "linux")]
pub fn reserve_core() -> Result<[usize; 2]> {
    let mut mine = sched_getaffinity(None)?;
    let mut cores = (0..CpuSet::MAX_CPU).filter(|core| mine.is_set(*core));
    let (Some(core), Some(next)) = (cores.next(), cores.next()) else {
        bail!("two cores are needed: one for what is measured, others for the load");
    };
    mine.unset(core);
    sched_setaffinity(None, &mine)?;
    Ok([core, next])
}

/// # Errors
/// Always: only Linux can pin a thread to a core.
#[cfg(not(target_os = "linux"))]
pub fn reserve_core() -> Result<[usize; 2]> {
    bail!("only Linux can pin what is measured to a core of its own: run this there")
}
