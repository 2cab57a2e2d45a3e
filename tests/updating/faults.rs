//! A run that is cut short, at each of its steps: afterwards either everything is as it was, or the change is complete.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::support::{Service, commit, contents, generator, git, said, slipway, template};

const SET: [&str; 3] = ["set", "redis=true", "postgres=true"];

/// Writes a `git` into `folder` that runs `script` before the real one.
pub fn shim(folder: &Path, script: &str) {
    wrap(folder, "git", &which("git"), script);
}

/// Writes a program `name` into `folder` that runs `script` before `program`.
pub fn wrap(folder: &Path, name: &str, program: &Path, script: &str) {
    let path = folder.join(name);
    fs::write(&path, format!("#!/bin/sh\n{script}\nexec {} \"$@\"\n", program.display())).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
}

fn which(program: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap();
    std::env::split_paths(&path).map(|folder| folder.join(program)).find(|file| file.is_file()).unwrap()
}

/// A `slipway set` in which the `at`th program that it starts, git or cargo-generate, runs `fault` first.
fn broken_off(service: &Service, at: usize, fault: &str) -> Command {
    let shims = service.parent.path().join("shims");
    let _ = fs::remove_dir_all(&shims);
    fs::create_dir(&shims).unwrap();
    let count = shims.join("count");
    let script = format!("echo x >> {0}; if [ $(wc -l < {0}) = {at} ]; then {fault}; fi", count.display());
    shim(&shims, &script);
    wrap(&shims, "cargo-generate", &generator(), &script);
    let path = std::env::join_paths(
        [shims.clone()].into_iter().chain(std::env::split_paths(&std::env::var_os("PATH").unwrap())),
    );
    let mut command = service.command(&SET);
    command.env("PATH", path.unwrap()).env("CARGO_GENERATE", shims.join("cargo-generate"));
    // So that what a killed run leaves there is removed with the test's folder.
    command.env("TMPDIR", service.parent.path());
    // A process group of its own: a signal to the whole group, as a terminal sends it, must not reach this test.
    command.process_group(0);
    command
}

/// How many programs `slipway set` starts.
fn steps(service: &Service) -> usize {
    said(&mut broken_off(service, 0, ":"), 0);
    let count = fs::read_to_string(service.parent.path().join("shims/count")).unwrap().lines().count();
    git(&service.folder, &["reset", "--quiet", "--merge"]);
    count
}

fn take_back(service: &Service) {
    // The run may have been cut short before git refreshed the index, so this refreshes it.
    git(&service.folder, &["status"]);
    git(&service.folder, &["reset", "--quiet", "--merge"]);
}

/// The last eight steps, during which the service changes, and every fifth of the earlier ones.
fn telling(steps: usize) -> impl Iterator<Item = usize> {
    (1..=steps).filter(move |at| at + 8 > steps || at % 5 == 0)
}

/// The state of the service, without the shims and without `ORIG_HEAD`, which a past reset leaves.
fn state(service: &Service) -> impl PartialEq + std::fmt::Debug + use<> {
    let (_, known, left) = service.state();
    let left: Vec<_> = left.into_iter().filter(|name| name != "ORIG_HEAD").collect();
    (contents(&service.folder), known, left)
}

#[test]
fn ctrl_c_at_every_step() {
    let service = Service::generate(&[]);
    let before = state(&service);
    let steps = steps(&service);
    assert!(steps > 20, "it runs {steps} programs");
    let mut interrupted = 0;
    for at in 1..=steps {
        // As a terminal sends it: to slipway and to every program that it runs in the same process group.
        let output = broken_off(&service, at, "kill -s INT 0; sleep 0.05").output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        match output.status.code() {
            Some(130) => {
                interrupted += 1;
                assert!(said.contains("interrupted; nothing was changed"), "step {at}: {said}");
            }
            // The signal came too late: the change is made.
            Some(0) => take_back(&service),
            other => panic!("step {at}: {other:?}: {said}"),
        }
        assert_eq!(state(&service), before, "step {at} of {steps}");
    }
    assert!(interrupted + 2 >= steps, "{interrupted} of {steps} were interrupted");
}

#[test]
fn ctrl_c_at_the_questions_of_a_new_service() {
    let parent = tempfile::tempdir().unwrap();
    let (shims, there) = (parent.path().join("shims"), parent.path().join("there"));
    fs::create_dir_all(&shims).unwrap();
    fs::create_dir_all(there.join("berths")).unwrap();
    // It makes the folder before it asks.
    wrap(&shims, "cargo-generate", &generator(), "mkdir -p orders other; kill -s INT 0; sleep 0.05");
    // Whatever the name's spelling.
    for name in ["orders", "Orders", "berths"] {
        let mut command = slipway();
        command.args(["new", name, "--template"]).arg(template()).current_dir(&there);
        command.env("CARGO_GENERATE", shims.join("cargo-generate")).stdin(Stdio::null());
        let said = said(command.process_group(0), 130);
        assert!(said.contains("interrupted; nothing was changed"), "{said}");
        assert_eq!(there.join("orders").exists(), name == "berths", "{name}");
        assert!(there.join("berths").exists() && there.join("other").exists(), "they are someone else's");
    }
}

#[test]
fn a_program_that_fails_at_every_step() {
    let service = Service::generate(&[]);
    let before = state(&service);
    let steps = steps(&service);
    for at in telling(steps).filter(|at| *at < steps) {
        let output =
            broken_off(&service, at, "echo 'fatal: No space left on device' >&2; exit 128").output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "step {at}: {said}");
        assert!(said.starts_with("error: "), "step {at}: {said}");
        assert_eq!(state(&service), before, "step {at} of {steps}");
    }
}

#[test]
fn a_kill_at_every_step() {
    let service = Service::generate(&[]);
    let before = state(&service);
    for at in telling(steps(&service)) {
        // The program that it started outlives it, and keeps this file locked until it ends.
        let alive = service.parent.path().join("alive");
        let fault = format!("exec 9> {}; flock 9; kill -KILL $PPID; sleep 0.2", alive.display());
        let mut command = broken_off(&service, at, &fault);
        command.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap();
        // The next run recovers from it.
        service.run(&["status"], 0);
        fs::File::open(alive).unwrap().lock().unwrap();
        if service.read("slipway.toml").contains("redis = true") {
            take_back(&service);
        }
        assert_eq!(state(&service), before, "step {at}");
    }
}

#[test]
fn a_second_run_waits_for_the_first() {
    let service = Service::generate(&[]);
    let steps = steps(&service);
    let mut first = broken_off(&service, steps - 2, "sleep 1").stdout(Stdio::null()).spawn().unwrap();
    while !service.folder.join(".git/slipway/pid").exists() {
        assert_eq!(first.try_wait().unwrap(), None);
        std::thread::sleep(Duration::from_millis(5));
    }
    service.run(&["status"], 0);
    assert_eq!(first.wait().unwrap().code(), Some(0));
}

#[test]
fn what_a_kill_left_of_a_cleanup_goes() {
    let service = Service::generate(&[]);
    let before = state(&service);
    service.write(".git/slipway/journal", "+src/app.rs\0");
    service.write(".git/slipway.gone/old/src/app.rs", "");
    service.run(&["status"], 0);
    assert_eq!(state(&service), before);
}

#[test]
fn what_is_saved_or_committed_meanwhile_is_kept() {
    let service = Service::generate(&[]);
    let steps = steps(&service);
    let settings = service.folder.join("config/default.toml");
    let before = fs::read_to_string(&settings).unwrap();
    let save = format!("echo '# mine' >> {}", settings.display());
    let git_in = format!("env -u GIT_DIR -u GIT_INDEX_FILE git -C {}", service.folder.display());
    let stage = format!("{save}; {git_in} add --update");
    let commit = format!("{save}; {git_in} commit --quiet --all --message mine");
    for (fault, cause) in [
        (save, "config/default.toml differs from what is committed"),
        (stage, "config/default.toml was staged meanwhile: `git commit` or `git stash` it"),
        (commit, "meanwhile: run this again"),
    ] {
        let output = broken_off(&service, steps / 2, &fault).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(2) && said.contains(cause), "{said}");
        assert_eq!(fs::read_to_string(&settings).unwrap(), format!("{before}# mine\n"));
        git(&service.folder, &["checkout", "--quiet", "--force", "HEAD"]);
    }
}

#[test]
fn what_is_made_meanwhile_where_a_new_file_goes_is_kept() {
    let service = Service::generate(&[]);
    let mine = service.folder.join("src/cache/shared.rs");
    let steps = steps(&service);
    // Up to the last program before the files are swapped.
    for at in steps - 3..steps {
        let make = format!("mkdir -p {0} && echo mine > {0}/shared.rs", mine.parent().unwrap().display());
        let output = broken_off(&service, at, &make).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains("would take the place of src/cache/shared.rs, which is not in git"), "{said}");
        assert_eq!(fs::read_to_string(&mine).unwrap(), "mine\n", "step {at} of {steps}");
        fs::remove_file(&mine).unwrap();
    }
}

#[test]
fn what_git_was_told_not_to_look_at_is_kept() {
    for flag in ["--assume-unchanged", "--skip-worktree"] {
        let service = Service::generate(&[]);
        git(&service.folder, &["update-index", flag, "config/default.toml"]);
        let mine = service.read("config/default.toml") + "# mine\n";
        fs::write(service.folder.join("config/default.toml"), &mine).unwrap();
        service.refuses(&SET, "config/default.toml differs from what is committed");
        assert_eq!(service.read("config/default.toml"), mine);
    }
}

/// Runs `slipway` on a file system of its own with `$1` KiB left. Mounting one needs root or a user namespace.
const FULL_DISK: &str = r#"
set -e
room=$1 disk=$2 service=$3; shift 3
mount -t tmpfs -o size=64m tmpfs "$disk"
cp -a "$service" "$disk/orders"
avail=$(df --output=avail -k "$disk" | tail -1)
dd if=/dev/zero of="$disk/filler" bs=1k count=$((avail - room)) status=none
cd "$disk/orders"
code=0; TMPDIR=$disk "$@" || code=$?
rm "$disk/filler"
echo "code=$code"
git status --porcelain --untracked-files=all
find .git -path .git/objects -prune -o -name 'slipway*' -print -o -name 'index.lock' -print -o -name MERGE_MSG -print
find "$disk" -maxdepth 1 -name 'slipway-*'
git fsck --no-dangling --no-progress
"#;

/// Puts git's folder on a different mount from the work tree.
const APART: &str = "mount --bind .git .git";

/// A command that runs `script` in namespaces of its own, where it may mount what nobody else sees.
fn mounting(script: &str) -> Command {
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--mount", "sh", "-c", script, "sh"]);
    command
}

/// A command that makes `mounts` in the service's folder, in such namespaces, then runs `program` there.
fn behind(service: &Service, mounts: &str, program: &Command) -> Command {
    let mut command = mounting(&format!("{mounts} && exec \"$@\""));
    command.arg(program.get_program()).args(program.get_args()).current_dir(&service.folder);
    command.envs(program.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command
}

#[test]
fn a_swap_that_fails_half_way() {
    let service = Service::generate(&[]);
    let before = state(&service);
    // A mount point can't be renamed or replaced.
    let mut set = behind(&service, "mount --bind Cargo.toml Cargo.toml", &service.command(&SET));
    let said = said(&mut set, 2);
    assert!(said.starts_with("error: ") && said.contains("Cargo.toml can't be moved"), "{said}");
    assert_eq!(state(&service), before);
    assert_eq!(git(&service.folder, &["status", "--porcelain"]), "");
}

/// Being on one file system is not enough: a rename can't cross from one mount of it to another.
#[test]
fn a_git_folder_behind_a_mount_of_its_own() {
    let service = Service::generate(&[]);
    let (before, steps) = (state(&service), steps(&service));
    // Killed before the swap and after it.
    for at in [steps - 1, steps] {
        let killed = broken_off(&service, at, "kill -KILL $PPID; sleep 0.2");
        let mut killed = behind(&service, APART, &killed);
        killed.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap();
        service.run(&["status"], 0);
        if at == steps {
            take_back(&service);
        }
        assert_eq!(state(&service), before, "step {at} of {steps}");
    }
    // A kill may also leave `.slipway` empty.
    fs::create_dir(service.folder.join(".slipway")).unwrap();
    said(&mut behind(&service, APART, &service.command(&SET)), 0);
    service.is_generated(&SET[1..]);
    assert!(!service.folder.join(".slipway").exists());
}

/// If someone commits what a killed run left behind, every clone has it.
#[test]
fn what_a_clone_brings_along_is_nothing_to_undo() {
    let service = Service::generate(&[]);
    std::os::unix::fs::symlink(".git", service.folder.join("inside")).unwrap();
    std::os::unix::fs::symlink("..", service.folder.join("outside")).unwrap();
    for (path, text) in [
        ("/pid", "1"),
        ("/locked", ""),
        ("/journal", "+outside/precious\0-inside/config\0-outside/made\0"),
        ("/old/inside/config", "[core]\n\tfsmonitor = touch ../ran\n"),
        ("/old/outside/made", "theirs"),
        (".gone/theirs", ""),
    ] {
        service.write(&format!(".slipway{path}"), text);
    }
    commit(&service.folder, "theirs");
    service.write("../precious", "mine");
    let settings = service.read(".git/config");
    let unharmed = || {
        let before = service.state();
        service.run(&["status"], 0);
        assert_eq!(service.state(), before);
    };
    unharmed();
    // Nor is the lock of another git removed.
    service.write(".git/index.lock", "");
    unharmed();
    fs::remove_file(service.folder.join(".git/index.lock")).unwrap();
    // When files would have to be prepared in `.slipway`, it is in the way.
    let mut set = behind(&service, APART, &service.command(&SET));
    service.refuses_as(&mut set, "/.slipway can't be created: File exists");
    service.run(&SET, 0);
    assert_eq!(service.read(".git/config"), settings);
}

#[test]
fn a_full_disk() {
    let service = Service::generate(&[]);
    let disk = tempfile::tempdir().unwrap();
    let program = service.command(&SET);
    let mut refused = 0;
    for room in (0..).map(|step| step * 300) {
        let mut command = mounting(FULL_DISK);
        command.arg(room.to_string()).arg(disk.path()).arg(&service.folder);
        command.arg(program.get_program()).args(program.get_args());
        command.envs(program.get_envs().filter_map(|(name, value)| Some((name, value?))));
        let output = command.output().unwrap();
        let (said, failed) = (
            String::from_utf8_lossy(&output.stdout).into_owned(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        );
        assert!(output.status.success(), "{room} KiB: {said}{failed}");
        let (before, after) = said.split_once("code=").unwrap();
        if after.starts_with('0') {
            assert!(before.contains("merged and staged"), "{before}");
            break;
        }
        refused += 1;
        assert_eq!(after, "2\n", "{room} KiB: {failed}");
        assert!(
            failed.starts_with("error: ") && failed.contains("No space left on device"),
            "{room} KiB: {failed}"
        );
    }
    assert!(refused > 5, "it was refused {refused} times");
}
