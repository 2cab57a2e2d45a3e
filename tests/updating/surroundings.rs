//! Where services live: in monorepos and workspaces, with other line endings, next to files that aren't in git.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::process::Command;

use crate::faults::wrap;
use crate::support::{Service, commit, contents, generated, generator, git, said, slipway, template};

/// A service in a subfolder of a repository that has other things too.
fn in_a_monorepo() -> Service {
    let parent = tempfile::tempdir().unwrap();
    let top = parent.path();
    fs::create_dir_all(top.join("services")).unwrap();
    fs::write(top.join("README.md"), "# All of ours\n").unwrap();
    fs::write(top.join("services/README.md"), "# Services\n").unwrap();
    let folder = generated(template(), &top.join("services"), &[]);
    git(top, &["init", "--quiet"]);
    commit(top, "all of ours");
    Service { folder, parent, template: template().to_owned() }
}

#[test]
fn a_service_in_a_monorepo() {
    let service = in_a_monorepo();
    let top = service.parent.path();
    fs::write(top.join("notes.txt"), "not in git").unwrap();
    // Run from a subfolder of the service, which must work as well.
    let mut command = service.command(&["set", "redis=true", "postgres=true"]);
    said(command.current_dir(service.folder.join("src/http")), 0);
    service.is_generated(&["redis=true", "postgres=true"]);
    let staged = git(top, &["diff", "--staged", "--name-only"]);
    assert!(staged.lines().all(|path| path.starts_with("services/orders/")), "{staged}");
    git(top, &["reset", "--quiet", "--merge"]);
    assert_eq!(git(top, &["status", "--porcelain"]), "?? notes.txt");
}

#[test]
fn a_service_in_a_monorepo_that_is_not_committed_yet() {
    let service = in_a_monorepo();
    git(service.parent.path(), &["rm", "--quiet", "-r", "--cached", "services/orders"]);
    git(service.parent.path(), &["commit", "--quiet", "--message", "without"]);
    let cause = "error: nothing is committed yet: `git add .` and `git commit` the service as it is";
    service.refuses(&["set", "redis=true"], cause);
}

#[test]
fn a_conflict_in_a_monorepo() {
    let service = in_a_monorepo();
    service.replace(
        "src/app.rs",
        "        let checks = store.checks().into_iter().chain(webhook.as_ref().map(Webhook::check));\n",
        "        let checks = Vec::new();\n",
    );
    commit(service.parent.path(), "ours");
    service.run(&["set", "redis=true"], 1);
    assert!(service.read("src/app.rs").contains("<<<<<<< yours"));
    let unmerged = git(service.parent.path(), &["diff", "--name-only", "--diff-filter=U"]);
    assert_eq!(unmerged, "services/orders/src/app.rs");
}

#[test]
fn a_folder_whose_name_is_no_text_or_ends_in_a_space() {
    // Once as the top of the work tree, once below it.
    for mut service in [Service::generate(&[]), in_a_monorepo()] {
        for name in [&b"berths\xff"[..], b"berths "] {
            let folder = service.folder.with_file_name(OsStr::from_bytes(name));
            fs::rename(&service.folder, &folder).unwrap();
            service.folder = folder;
            commit(&service.folder, "renamed");
            service.run(&["set", "redis=true"], 0);
            service.is_generated(&["redis=true"]);
            git(&service.folder, &["reset", "--quiet", "--merge"]);
        }
    }
}

#[test]
fn a_member_of_a_workspace_whose_lock_is_above() {
    let service = in_a_monorepo();
    let top = service.parent.path();
    fs::write(top.join("Cargo.toml"), "[workspace]\nresolver = \"3\"\nmembers = [\"services/orders\"]\n")
        .unwrap();
    fs::rename(service.folder.join("Cargo.lock"), top.join("Cargo.lock")).unwrap();
    commit(top, "a workspace");
    let said = service.run(&["set", "redis=true"], 0);
    assert!(said.contains("Cargo.lock stays removed"), "{said}");
    assert!(!service.folder.join("Cargo.lock").exists());
    assert!(service.read("Cargo.toml").contains("redis = {"));
    let mut cargo = Command::new(env!("CARGO"));
    let output =
        cargo.args(["metadata", "--no-deps", "--format-version", "1"]).current_dir(top).output().unwrap();
    assert!(output.status.success());
}

#[test]
fn a_work_tree_of_its_own() {
    let mut service = Service::generate(&[]);
    let first = service.folder.clone();
    let before = contents(&first);
    let device = |folder: &str| fs::metadata(folder).unwrap().dev();
    // Also with the work tree on a different file system from git's folder.
    let here = device(first.to_str().unwrap());
    let far = ["/dev/shm", env!("CARGO_TARGET_TMPDIR")].into_iter().find(|folder| device(folder) != here);
    let far = tempfile::tempdir_in(far.expect("this test needs a second file system")).unwrap();
    for (parent, name) in [(service.parent.path().to_owned(), "near"), (far.path().to_owned(), "far")] {
        let other = parent.join(name);
        git(&first, &["worktree", "add", "--quiet", other.to_str().unwrap()]);
        service.folder = other;
        service.run(&["set", "redis=true"], 0);
        assert!(service.read("slipway.toml").contains("redis = true"));
        git(&service.folder, &["commit", "--quiet", "--no-edit"]);
        assert_eq!(git(&service.folder, &["log", "-1", "--format=%s"]), "Set redis = true");
        assert_eq!(git(&service.folder, &["status", "--porcelain"]), "");
        assert_eq!(contents(&first), before, "the other one is left alone");
    }
}

#[test]
fn what_git_does_not_have_is_left_alone() {
    let service = Service::generate(&["redis=true"]);
    service.write(".env", "SECRET=1\n");
    service.write("target/debug/orders", "a program");
    service.write("src/cache/notes.txt", "untracked, in a folder that goes");
    let others = ["SECRET=1\n", "a program", "untracked, in a folder that goes"];
    for answers in [["redis=false", "postgres=true"], ["redis=true", "postgres=false"]] {
        service.run(&["set", answers[0], answers[1]], 0);
        assert_eq!(
            [".env", "target/debug/orders", "src/cache/notes.txt"].map(|path| service.read(path)),
            others
        );
        commit_tracked(&service);
    }
}

#[test]
fn what_a_link_of_theirs_leads_to_is_left_alone() {
    let service = Service::generate(&[]);
    let (docs, elsewhere) = (service.folder.join("docs"), service.parent.path().join("elsewhere"));
    fs::rename(&docs, &elsewhere).unwrap();
    std::os::unix::fs::symlink(&elsewhere, &docs).unwrap();
    commit(&service.folder, "ours");
    let before = contents(&elsewhere);
    let said = service.run(&["set", "otlp=false"], 1);
    assert!(said.contains("docs~yours"), "{said}");
    assert_eq!(fs::read_link(service.folder.join("docs~yours")).unwrap(), elsewhere);
    assert_eq!(contents(&elsewhere), before);
}

#[test]
fn what_is_left_out_of_a_sparse_checkout_is_merged_too() {
    let service = Service::generate(&[]);
    git(&service.folder, &["sparse-checkout", "set", "--no-cone", "/*", "!/docs/"]);
    assert!(!service.folder.join("docs").exists());
    service.run(&["set", "otlp=false"], 0);
    assert_eq!(git(&service.folder, &["diff", "--name-only"]), "");
    commit_tracked(&service);
    git(&service.folder, &["sparse-checkout", "disable"]);
    service.is_generated(&["otlp=false"]);
}

fn commit_tracked(service: &Service) {
    git(&service.folder, &["commit", "--quiet", "--message", "set"]);
}

#[test]
fn line_endings_that_git_converts() {
    let service = Service::generate(&[]);
    service.write(".gitattributes", "* text eol=crlf\n");
    git(&service.folder, &["add", "--renormalize", "."]);
    commit(&service.folder, "crlf");
    git(&service.folder, &["rm", "--quiet", "-r", "--cached", "."]);
    git(&service.folder, &["reset", "--quiet", "--hard"]);
    assert!(service.read("src/app.rs").contains("\r\n"));
    service.run(&["set", "redis=true"], 0);
    for path in ["src/app.rs", "src/cache/shared.rs", "README.md"] {
        let text = service.read(path);
        assert_eq!(text.matches('\n').count(), text.matches("\r\n").count(), "{path}");
    }
    assert_eq!(git(&service.folder, &["diff", "--name-only"]), "");
    assert!(
        !git(&service.folder, &["cat-file", "blob", ":src/cache/shared.rs"]).contains('\r'),
        "git should store it with LF"
    );
}

#[test]
fn line_endings_that_were_committed() {
    let service = Service::generate(&[]);
    for (path, (text, _)) in contents(&service.folder) {
        service.write(&path, &text.replace('\n', "\r\n"));
    }
    let ours = service.read("src/lib.rs").replace("//! The service", "//! Our service");
    service.write("src/lib.rs", &ours);
    // Also edits to the files that are merged by their entries rather than their lines.
    service.replace("Cargo.toml", "\ngovernor = ", "\nitoa = \"1\"\r\ngovernor = ");
    service.write("slipway.toml", &(service.read("slipway.toml") + "# Ours.\r\n"));
    let (name, older, newer) = ("name = \"orders\"\r\n", "version = \"0.1.0\"", "version = \"0.2.0\"");
    service.replace("Cargo.lock", &format!("{name}{older}"), &format!("{name}{newer}"));
    commit(&service.folder, "crlf");
    let settings = service.parent.path().join("gitconfig");
    fs::write(&settings, "[grep]\npatternType = fixed\n[color]\ngrep = always\n").unwrap();
    let mut command = service.command(&["set", "redis=true"]);
    said(command.env("GIT_CONFIG_GLOBAL", &settings), 0);
    let mut files = contents(&service.folder);
    for (path, (text, _)) in &mut files {
        assert_eq!(text.matches('\n').count(), text.matches("\r\n").count(), "{path}");
        *text = text.replace("\r\n", "\n");
    }
    let fresh = tempfile::tempdir().unwrap();
    let mut wanted = contents(&generated(template(), fresh.path(), &["redis=true"]));
    wanted.get_mut("src/lib.rs").unwrap().0 = ours.replace("\r\n", "\n");
    wanted.get_mut("slipway.toml").unwrap().0 += "# Ours.\n";
    let (lock, name) = (&mut wanted.get_mut("Cargo.lock").unwrap().0, "name = \"orders\"\n");
    *lock = lock.replace(&format!("{name}{older}"), &format!("{name}{newer}"));
    let manifest = &mut files.get_mut("Cargo.toml").unwrap().0;
    assert!(manifest.contains("\nredis = "), "{manifest}");
    manifest.clone_from(&wanted["Cargo.toml"].0);
    assert_eq!(files.keys().collect::<Vec<_>>(), wanted.keys().collect::<Vec<_>>());
    for (path, content) in &wanted {
        assert_eq!(&files[path], content, "{path}");
    }
}

#[test]
fn modes_are_kept() {
    let service = Service::generate(&[]);
    let justfile = service.folder.join("justfile");
    fs::set_permissions(&justfile, fs::Permissions::from_mode(0o755)).unwrap();
    commit(&service.folder, "ours");
    service.run(&["set", "redis=true", "postgres=true"], 0);
    assert!(service.read("justfile").contains("migrate"), "it was merged");
    assert_eq!(fs::metadata(&justfile).unwrap().permissions().mode() & 0o111, 0o111);
    assert_eq!(fs::metadata(service.folder.join("src/app.rs")).unwrap().permissions().mode() & 0o111, 0);
    assert_eq!(git(&service.folder, &["diff", "--name-only"]), "");
}

/// In the folder of a service, rustup's `cargo` runs or installs whatever toolchain the `rust-toolchain.toml` there names.
#[test]
fn no_program_but_git_runs_in_the_service() {
    let service = Service::generate(&[]);
    let shims = tempfile::tempdir().unwrap();
    let ran = shims.path().join("ran");
    let note = format!("[ ! -e slipway.toml ] || echo $0 >> {}", ran.display());
    let installed = format!("{note}; echo 'slipway v1.0.0 ({}):'; exit", template().display());
    wrap(shims.path(), "cargo", "/nowhere".as_ref(), &installed);
    wrap(shims.path(), "cargo-generate", &generator(), &note);
    let mut command = slipway();
    command.args(["set", "redis=true"]).current_dir(&service.folder).env("CARGO", shims.path().join("cargo"));
    said(command.env("CARGO_GENERATE", shims.path().join("cargo-generate")), 0);
    service.is_generated(&["redis=true"]);
    assert_eq!(fs::read_to_string(ran).unwrap_or_default(), "");
}

#[test]
fn a_cargo_generate_by_a_relative_path() {
    let service = Service::generate(&[]);
    wrap(service.parent.path(), "generator", &generator(), "");
    let mut command = service.command(&["set", "redis=true"]);
    said(command.env("CARGO_GENERATE", "../generator"), 0);
    service.is_generated(&["redis=true"]);
}

/// Settings that people have, each of which changes what git prints or refuses.
const SETTINGS: &str = "[safe]\nbareRepository = explicit\n[color]\nui = always\n[core]\nautocrlf = true\npager = false\n\
                        [merge]\nrenames = false\ndirectoryRenames = false\nrenormalize = true\nconflictStyle = diff3\n[diff]\nrenames = false\nnoprefix = true\n\
                        external = false\n[status]\nshort = true\nbranch = true\n[init]\ndefaultBranch = trunk\n";

#[test]
fn whatever_their_settings_are() {
    let service = Service::generate(&["otlp=false"]);
    git(&service.folder, &["mv", "src/jobs.rs", "src/work.rs"]);
    let rules = ["tests", "checks"].map(|name| service.folder.join("deploy/prometheus").join(name));
    fs::rename(&rules[0], &rules[1]).unwrap();
    commit(&service.folder, "ours");
    let settings = service.parent.path().join("gitconfig");
    let attributes = service.parent.path().join("gitattributes");
    fs::write(&attributes, "* text=auto eol=crlf\n").unwrap();
    fs::write(&settings, format!("{SETTINGS}[core]\nattributesFile = {}\n", attributes.display())).unwrap();
    let mut command = service.command(&["set", "redis=true", "otlp=true"]);
    command.env("GIT_CONFIG_GLOBAL", &settings).env("GIT_DEFAULT_HASH", "sha256");
    for name in ["COMMON_DIR", "DIR", "INDEX_FILE", "OBJECT_DIRECTORY", "WORK_TREE"] {
        command.env(format!("GIT_{name}"), "/nowhere");
    }
    said(&mut command, 0);
    assert!(service.read("src/work.rs").contains("\r\n"), "git writes files with CRLF here");
    assert!(!service.folder.join("src/jobs.rs").exists(), "renames are followed");
    for (path, (text, executable)) in contents(&service.folder) {
        service.write(&path, &text.replace("\r\n", "\n"));
        assert!(!executable, "{path}");
    }
    fs::rename(service.folder.join("src/work.rs"), service.folder.join("src/jobs.rs")).unwrap();
    assert!(rules[1].join("redis.yml").exists() && !rules[0].exists(), "renames of folders are followed");
    fs::rename(&rules[1], &rules[0]).unwrap();
    commit(&service.folder, "set");
    service.is_generated(&["redis=true"]);
}
