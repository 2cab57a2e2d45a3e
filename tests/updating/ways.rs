//! The ordinary uses of `slipway`, when nothing goes wrong.

use std::process::Stdio;
use std::time::{Duration, Instant};

use xtask::machine;

use crate::support::{Service, git, release, repository, said, slipway, template, version};

#[test]
fn an_answer_changes_as_if_it_had_been_given_at_first() {
    let service = Service::generate(&["owner=harbour"]);
    let said = service.run(&["set", "redis=true", "postgres=true"], 0);
    assert!(said.contains("git commit") && said.contains("git reset --merge"), "{said}");
    service.is_generated(&["owner=harbour", "redis=true", "postgres=true"]);
    let message = service.read(".git/MERGE_MSG");
    assert_eq!(message, "Set postgres = true, redis = true\n");
    git(&service.folder, &["commit", "--quiet", "--no-edit"]);
    assert_eq!(git(&service.folder, &["log", "-1", "--format=%s %p"]).lines().count(), 1);
    assert_eq!(git(&service.folder, &["rev-list", "--count", "HEAD"]), "2", "it is an ordinary commit");

    service.run(&["set", "redis=false", "otlp=false"], 0);
    service.is_generated(&["owner=harbour", "postgres=true", "otlp=false"]);
}

#[test]
fn owner_and_description_change_too() {
    let service = Service::generate(&[]);
    service.run(&["set", "owner=Harbour", "description=Keeps the berths, by day"], 0);
    service.is_generated(&["owner=Harbour", "description=Keeps the berths, by day"]);
}

#[test]
fn what_is_so_already_changes_nothing() {
    let service = Service::generate(&["redis=true"]);
    let before = service.state();
    let said = service.run(&["set", "redis=true"], 0);
    assert!(said.contains("already has these answers. If you changed one in slipway.toml by hand"), "{said}");
    assert!(service.run(&["update"], 0).contains("already"));
    assert_eq!(service.state(), before);
}

#[test]
fn a_dry_run_shows_the_difference_and_makes_none() {
    let service = Service::generate(&[]);
    let before = service.state();
    let said = service.run(&["set", "redis=true", "--dry-run"], 0);
    assert!(said.contains("+redis = true\n") && said.contains("diff --git a/src/cache/shared.rs"), "{said}");
    assert_eq!(service.state(), before);
}

#[test]
fn git_reset_merge_undoes_a_change() {
    let service = Service::generate(&["postgres=true"]);
    let before = service.state();
    service.run(&["set", "postgres=false", "redis=true"], 0);
    git(&service.folder, &["reset", "--quiet", "--merge"]);
    let (files, known, _) = service.state();
    assert_eq!((&files, &known), (&before.0, &before.1));
    assert!(!service.folder.join(".git/MERGE_MSG").exists(), "MERGE_MSG should be gone as well");
}

#[test]
fn status_says_what_is_recorded() {
    let service = Service::generate(&["redis=true", "owner=harbour"]);
    let said = service.run(&["status"], 0);
    for wanted in [
        &*format!("orders: slipway {}", version()),
        "owner        harbour",
        "redis        true",
        "nothing to update",
    ] {
        assert!(said.contains(wanted), "no `{wanted}` in: {said}");
    }
}

/// On an idle machine it takes a quarter of this; on a shared one, the bounds grow with the load.
#[test]
fn status_and_dry_run_are_fast() {
    let service = Service::generate(&[]);
    let best = |arguments: &[&str]| {
        let run = |_| {
            let started = Instant::now();
            service.run(arguments, 0);
            started.elapsed()
        };
        (0..5).map(run).min().unwrap()
    };
    let bound = |seconds| Duration::from_secs(seconds).mul_f64(machine::overload());
    let (status, set) = (best(&["status"]), best(&["set", "redis=true", "postgres=true", "--dry-run"]));
    assert!(status < bound(1), "status took {status:?}");
    assert!(set < bound(3), "set took {set:?}");
}

#[test]
fn new_is_cargo_generate_with_the_newest_release() {
    let parent = tempfile::tempdir().unwrap();
    let mut command = slipway();
    command.args(["new", "orders", "redis=true", "owner=harbour", "--template"]).arg(template());
    said(command.current_dir(parent.path()).stdin(Stdio::null()), 0);
    let folder = parent.path().join("orders");
    assert!(folder.join(".git").is_dir(), "it should be a git repository");
    let service = Service { folder, parent, template: template().to_owned() };
    service.is_generated(&["redis=true", "owner=harbour"]);
}

#[test]
fn a_template_may_be_a_bare_repository_one_without_releases_or_with_other_ids() {
    let mut service = Service::generate(&[]);
    let parent = tempfile::tempdir().unwrap();
    let at = |name: &str| parent.path().join(name).to_str().unwrap().to_owned();
    for (kind, name) in [("--bare", "bare"), ("--no-tags", "untagged")] {
        git(parent.path(), &["clone", "--quiet", kind, template().to_str().unwrap(), name]);
    }
    git(parent.path(), &["init", "--quiet", "--object-format=sha256", "other"]);
    xtask::generate::snapshot(repository(), at("other").as_ref()).unwrap();
    release(at("other").as_ref(), &version());
    for name in ["bare", "untagged", "other"] {
        service.template = at(name).into();
        service.run(&["set", "redis=true", "--dry-run"], 0);
    }
}

/// As when piped into `head -0`, for both standard output and standard error.
#[test]
fn it_does_its_work_where_nobody_reads_what_it_says() {
    let service = Service::generate(&[]);
    let unread = |arguments: &[&str]| {
        let mut command = service.command(arguments);
        let writer = || std::io::pipe().unwrap().1;
        command.stdout(writer()).stderr(writer()).status().unwrap().code()
    };
    let before = service.state();
    assert_eq!(unread(&["status"]), Some(0));
    assert_eq!(unread(&["set", "redis=true", "--dry-run"]), Some(0));
    assert_eq!(unread(&["set", "redis=maybe"]), Some(2));
    assert_eq!(service.state(), before);
    assert_eq!(unread(&["set", "redis=true"]), Some(0));
    service.is_generated(&["redis=true"]);
}
