//! Processes and folders that must not outlive the run, whichever way it ends: return, error,
//! panic (by `Drop`), Ctrl-C or SIGTERM (by the thread that [`watch_signals`] starts).

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::io::Errno;
use rustix::process::{
    Pid, Signal, WaitId, WaitIdOptions, kill_process, kill_process_group, test_kill_process, waitid,
};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::{machine, tools};

/// How long a process may take to end after its stop signal before it is killed.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(5);

/// The children that are not reaped yet: only while this is locked may one be, so that the ids in it, which are also
/// those of their groups, can't have passed on to strangers.
static LIVE: Mutex<Vec<(Pid, Signal)>> = Mutex::new(Vec::new());
static FROZEN: Mutex<Vec<Pid>> = Mutex::new(Vec::new());
static FOLDERS: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());
static DEFERRED: AtomicBool = AtomicBool::new(false);
static SEEN: AtomicBool = AtomicBool::new(false);

/// A child that leads a process group of its own, so that Ctrl-C in the terminal reaches it only through us, and
/// its own children can be ended with it.
pub struct Child {
    inner: std::process::Child,
    pid: Pid,
    stop: Signal,
    /// Once it has been reaped.
    status: Option<ExitStatus>,
}

impl Child {
    /// Starts `command`; `stop` is the signal that asks it to end.
    ///
    /// # Errors
    /// When the program can't be started.
    pub fn spawn(command: &mut Command, stop: Signal) -> Result<Self> {
        // The lock is held during the start: the handler of a signal that arrives now waits, then finds the child.
        let mut live = lock(&LIVE);
        let inner = command
            .process_group(0)
            .stdin(Stdio::null())
            .spawn()
            .with_context(|| format!("could not start {}", command.get_program().to_string_lossy()))?;
        let pid = Pid::from_child(&inner);
        live.push((pid, stop));
        Ok(Self { inner, pid, stop, status: None })
    }

    #[must_use]
    pub fn id(&self) -> u32 {
        self.inner.id()
    }

    /// A value from its `/proc/<pid>/status` in MiB, such as `VmRSS` (Linux).
    ///
    /// # Errors
    /// When it has ended, or there is no such value.
    pub fn memory(&self, field: &str) -> Result<f64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
        Ok(kib.with_context(|| format!("no {field}"))? / 1024.0)
    }

    /// The child's standard output, if the command piped it; only the first call returns it.
    pub fn take_stdout(&mut self) -> Option<std::process::ChildStdout> {
        self.inner.stdout.take()
    }

    /// Sends `signal` to the child's group.
    pub fn signal(&self, signal: Signal) {
        // Once it is reaped, its id may be someone else's.
        if self.status.is_none() {
            // It may have ended in the meantime: whoever waits for it sees that.
            let _ = kill_process_group(self.pid, signal);
        }
    }

    /// Its exit status if it has ended. What it left running in its group is then killed.
    ///
    /// # Errors
    /// When a system call fails.
    pub fn poll(&mut self) -> Result<Option<ExitStatus>> {
        if self.status.is_none() && has_ended(self.pid)? {
            let mut live = lock(&LIVE);
            // Before it is reaped: until then, no other group can have its id.
            let killed = kill_group(self.pid);
            self.status = self.inner.try_wait()?;
            live.retain(|(pid, _)| *pid != self.pid);
            killed.context("could not end what a process left behind")?;
        }
        Ok(self.status)
    }

    /// Waits at most `bound` for it to end; `None` when it is still running.
    ///
    /// # Errors
    /// When a system call fails.
    pub fn wait(&mut self, bound: Duration) -> Result<Option<ExitStatus>> {
        let deadline = Instant::now() + bound;
        loop {
            if let Some(status) = self.poll()? {
                return Ok(Some(status));
            }
            if Instant::now() >= deadline {
                return Ok(None);
            }
            thread::sleep(POLL);
        }
    }

    /// Asks it to end and waits; kills it if it takes too long.
    pub fn end(&mut self) {
        let mut ended = self.poll();
        for signal in [self.stop, Signal::KILL] {
            if matches!(ended, Ok(None)) {
                self.signal(signal);
                ended = self.wait(STOP_TIMEOUT);
            }
        }
        match ended {
            Ok(Some(_)) => {}
            Ok(None) => eprintln!("process {} runs on although it was killed", self.id()),
            Err(error) => eprintln!("process {}: {error:#}", self.id()),
        }
    }
}

/// Whether a child has ended. It stays a zombie, which keeps its id.
fn has_ended(child: Pid) -> rustix::io::Result<bool> {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    Ok(waitid(WaitId::Pid(child), options)?.is_some())
}

/// Kills what runs in a group, if anything does.
fn kill_group(group: Pid) -> rustix::io::Result<()> {
    match kill_process_group(group, Signal::KILL) {
        Err(Errno::SRCH) => Ok(()),
        // macOS says so where only zombies are left.
        Err(Errno::PERM) if cfg!(target_os = "macos") => Ok(()),
        result => result,
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.end();
    }
}

/// A command for `program` that the kernel ends if we are killed before we can do it ourselves. Where util-linux's
/// `setpriv` is missing (macOS), only our own clean-up ends it.
#[must_use]
pub fn killed_with_parent(program: &Path) -> Command {
    let Some(setpriv) = tools::on_path("setpriv") else {
        return Command::new(program);
    };
    let mut command = Command::new(setpriv);
    // SIGQUIT is PostgreSQL's immediate shutdown, and ends any other program.
    command.args(["--pdeathsig", "QUIT", "--"]).arg(program);
    command
}

/// Processes that were sent SIGSTOP, and will be sent SIGCONT on drop.
pub struct Frozen(Vec<Pid>);

impl Frozen {
    /// Stops a process and its children (Linux): the parent first, so that it can't start others.
    ///
    /// # Errors
    /// When one of them is gone, or not ours.
    pub fn process_tree(parent: &Child) -> Result<Self> {
        let mut frozen = Self(Vec::new());
        frozen.stop(parent.id())?;
        for entry in fs::read_dir("/proc")? {
            let Some(id) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            let status = fs::read_to_string(format!("/proc/{id}/status")).unwrap_or_default();
            if status.lines().any(|line| line == format!("PPid:\t{}", parent.id())) {
                frozen.stop(id)?;
            }
        }
        Ok(frozen)
    }

    fn stop(&mut self, id: u32) -> Result<()> {
        let id = Pid::from_raw(i32::try_from(id)?).context("no process has the id 0")?;
        // Held, so that an interrupt in between leaves no process stopped.
        let mut frozen = lock(&FROZEN);
        kill_process(id, Signal::STOP)?;
        frozen.push(id);
        self.0.push(id);
        Ok(())
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        for id in &self.0 {
            let _ = kill_process(*id, Signal::CONT);
        }
        lock(&FROZEN).retain(|id| !self.0.contains(id));
    }
}

/// A temporary folder that is removed on drop, with everything in it.
pub struct Scratch(PathBuf);

impl Scratch {
    /// Creates a folder under the system's temporary one, not under `target/`: the checkout may be in a home
    /// directory that the database's user can't enter.
    ///
    /// # Errors
    /// When the folder can't be created.
    pub fn new() -> Result<Self> {
        sweep();
        let path =
            tempfile::Builder::new().prefix(&format!("slipway-{}-", std::process::id())).tempdir()?.keep();
        lock(&FOLDERS).push(path.clone());
        Ok(Self(path))
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
        lock(&FOLDERS).retain(|path| *path != self.0);
    }
}

/// Removes what earlier runs left behind because they were killed before they could clean up.
fn sweep() {
    // A proof may have kept its folders in memory even if we don't.
    let folders = [std::env::temp_dir(), machine::MEMORY.into()];
    for entry in folders.iter().flat_map(fs::read_dir).flatten().flatten() {
        let name = entry.file_name();
        let owner = name.to_str().and_then(|name| Some(name.strip_prefix("slipway-")?.split_once('-')?.0));
        let owner = owner.and_then(|pid| pid.parse().ok()).and_then(Pid::from_raw);
        if owner.is_some_and(|pid| test_kill_process(pid).is_err()) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// Ends every child and removes every folder when the run is interrupted, then exits with 130.
///
/// # Errors
/// When the signal handlers can't be installed.
pub fn watch_signals() -> Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])?;
    thread::spawn(move || {
        for _ in signals.forever() {
            let second = SEEN.swap(true, Ordering::SeqCst);
            if second || !DEFERRED.load(Ordering::SeqCst) {
                end_everything();
                std::process::exit(130);
            }
        }
    });
    Ok(())
}

/// From here on, the first signal only shows in [`interrupted`]; a second one still ends everything.
pub fn defer_signals() {
    DEFERRED.store(true, Ordering::SeqCst);
}

/// Whether a signal has arrived.
#[must_use]
pub fn interrupted() -> bool {
    SEEN.load(Ordering::SeqCst)
}

fn end_everything() {
    eprintln!("\ninterrupted: stopping everything that was started");
    // Never unlocked again: nothing can be stopped or started any more.
    let (frozen, live) = (lock(&FROZEN), lock(&LIVE));
    // A stopped process can't act on its stop signal, and PostgreSQL's backends have process groups of their own.
    for pid in frozen.iter() {
        let _ = kill_process(*pid, Signal::CONT);
    }
    for (pid, stop) in live.iter() {
        let _ = kill_process_group(*pid, *stop);
    }
    let deadline = Instant::now() + STOP_TIMEOUT;
    for (pid, _) in live.iter() {
        while matches!(has_ended(*pid), Ok(false)) {
            if Instant::now() >= deadline {
                let _ = kill_group(*pid);
            }
            thread::sleep(POLL);
        }
        // Also what the leader itself had started.
        let _ = kill_group(*pid);
    }
    for path in lock(&FOLDERS).iter() {
        let _ = fs::remove_dir_all(path);
    }
    std::mem::forget((frozen, live));
}

/// Ignores poisoning: what a panicked thread left is still valid, and its own check has failed.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
mod tests {
    use std::io::Read as _;

    use super::*;

    const BOUND: Duration = Duration::from_secs(10);

    /// A shell that starts a program that would run for long, prints the id of that, and then does what `last` says.
    fn shell(last: &str) -> (Child, Pid) {
        let mut command = Command::new("sh");
        command.args(["-c", &format!("sleep 100 >/dev/null 2>&1 & echo $!; {last}")]).stdout(Stdio::piped());
        let mut child = Child::spawn(&mut command, Signal::TERM).unwrap();
        let (mut out, mut said) = (child.take_stdout().unwrap(), Vec::new());
        while !said.ends_with(b"\n") {
            let mut byte = [0];
            out.read_exact(&mut byte).unwrap();
            said.extend(byte);
        }
        let id = String::from_utf8(said).unwrap().trim().parse().unwrap();
        (child, Pid::from_raw(id).unwrap())
    }

    /// Whether a process ends soon. Where nobody reaps orphans, it stays a zombie.
    fn ends(pid: Pid) -> bool {
        let deadline = Instant::now() + BOUND;
        let runs = || {
            let status = fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero()));
            test_kill_process(pid).is_ok() && !status.is_ok_and(|status| status.contains("State:\tZ"))
        };
        while runs() && Instant::now() < deadline {
            thread::sleep(POLL);
        }
        !runs()
    }

    #[test]
    fn what_a_child_leaves_behind_ends_with_it() {
        let (mut child, left) = shell("kill -9 $$");
        assert_eq!(child.wait(BOUND).unwrap().map(|status| status.success()), Some(false));
        assert!(ends(left), "its leader was waited for");
        assert!(!lock(&LIVE).iter().any(|(pid, _)| *pid == child.pid), "its id may be someone else's now");
        let (child, left) = shell("kill -9 $$");
        drop(child);
        assert!(ends(left), "its leader had crashed");
        let (child, left) = shell("trap 'exit 0' TERM; while :; do sleep 0.01; done");
        drop(child);
        assert!(ends(left), "its leader had to be asked");
    }
}
