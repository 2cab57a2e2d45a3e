//! Every way of calling cargo-generate produces the same service.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rexpect::session::spawn_command;

use crate::support::{contents, generator, silent, succeed, template, text_of};

type Files = BTreeMap<String, Vec<u8>>;

/// The service that is generated when `answers` are given with `-d`.
fn service(answers: &[&str]) -> Files {
    let folder = tempfile::tempdir().unwrap();
    succeed(silent(folder.path(), "order-desk").args(answers.iter().flat_map(|answer| ["-d", answer])));
    contents(&folder.path().join("order-desk"))
}

fn same(found: &Files, wanted: &Files) {
    assert!(found.keys().eq(wanted.keys()), "{:?}\nis not\n{:?}", found.keys(), wanted.keys());
    for (path, bytes) in wanted {
        assert_eq!(text_of(&found[path]), text_of(bytes), "{path}");
    }
}

#[test]
fn the_defaults_need_no_server() {
    let files = service(&[]);
    same(&files, &service(&["postgres=false", "redis=false", "rate_limit=true", "otlp=true", "owner=acme"]));
}

/// GitHub ignores the case of an owner's name, and an image name must be in lower case.
#[test]
fn an_owner_is_written_small() {
    same(&service(&["owner=Harbour"]), &service(&["owner=harbour"]));
}

#[test]
fn from_a_repository() {
    let clone = tempfile::tempdir().unwrap();
    xtask::generate::snapshot(template(), clone.path()).unwrap();
    for git in ["init --quiet", "add .", "-c user.name=x -c user.email=x@y commit --quiet --message x"] {
        succeed(Command::new("git").args(git.split(' ')).current_dir(clone.path()));
    }
    let folder = tempfile::tempdir().unwrap();
    let mut command = xtask::generate::command(&generator());
    command.arg("--git").arg(clone.path()).arg("--destination").arg(folder.path());
    succeed(command.args(["--name", "order-desk", "--silent"]));
    same(&contents(&folder.path().join("order-desk")), &service(&[]));
    assert!(folder.path().join("order-desk/.git").is_dir(), "it should be a git repository");
}

#[test]
fn with_a_values_file() {
    let folder = tempfile::tempdir().unwrap();
    let values = folder.path().join("answers.toml");
    fs::write(&values, "[values]\npostgres = true\notlp = false\nowner = \"harbour\"\n").unwrap();
    succeed(silent(folder.path(), "order-desk").arg("--values-file").arg(&values));
    let found = contents(&folder.path().join("order-desk"));
    same(&found, &service(&["postgres=true", "otlp=false", "owner=harbour"]));
}

#[test]
fn again_from_what_the_service_records() {
    let answers =
        ["redis=true", "rate_limit=false", "owner=harbour", "description=Keeps the harbour's berths, by day"];
    let first = service(&answers);
    let folder = tempfile::tempdir().unwrap();
    let record = folder.path().join("slipway.toml");
    fs::write(&record, &first["slipway.toml"]).unwrap();
    succeed(silent(folder.path(), "order-desk").arg("--values-file").arg(&record));
    same(&contents(&folder.path().join("order-desk")), &first);
}

#[test]
fn into_an_empty_folder() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = xtask::generate::command(&generator());
    command.arg("--path").arg(template()).args(["--init", "--name", "order-desk", "--silent"]);
    succeed(command.current_dir(folder.path()));
    same(&contents(folder.path()), &service(&[]));
}

/// Wherever the service is generated, and whatever characters its path has.
#[test]
fn what_it_says_leads_to_the_service() {
    let folder = tempfile::tempdir().unwrap();
    let parent = folder.path().join("it's here");
    fs::create_dir(&parent).unwrap();
    let mut inside = silent(&parent, "order-desk");
    inside.args(["--init"]);
    for (mut command, wanted) in [
        (silent(folder.path(), "order-desk"), folder.path().join("order-desk")),
        (silent(&parent, "order-desk"), parent.join("order-desk")),
        (inside, parent.clone()),
    ] {
        let said = text_of(&succeed(&mut command).stdout);
        let (_, hint) = said.split_once("Start it: ").unwrap_or_else(|| panic!("no hint: {said}"));
        let (enter, _) = hint.split_once(" && cargo run").unwrap_or_else(|| panic!("no `cd`: {hint}"));
        let shown = succeed(Command::new("sh").args(["-c", &format!("{enter} && pwd")]));
        assert_eq!(text_of(&shown.stdout).trim_end(), wanted.to_str().unwrap(), "{hint}");
        assert!(said.contains("named after the default owner"), "{said}");
    }
    for server in ["postgres=true", "redis=true"] {
        let folder = tempfile::tempdir().unwrap();
        let mut command = silent(folder.path(), "order-desk");
        let said = text_of(&succeed(command.args(["-d", server, "-d", "owner=harbour"])).stdout);
        assert!(said.contains(" && docker compose up -d --wait && cargo run"), "{said}");
        assert!(!said.contains("default owner"), "{said}");
    }
}

#[test]
fn into_a_workspace() {
    let folder = tempfile::tempdir().unwrap();
    let manifest = folder.path().join("Cargo.toml");
    fs::write(&manifest, "[workspace]\nresolver = \"3\"\nmembers = []\n").unwrap();
    succeed(&mut silent(folder.path(), "order-desk"));
    let joined = fs::read_to_string(&manifest).unwrap();
    assert!(joined.contains("members = [\"order-desk\"]"), "{joined}");
    // From now on cargo uses the workspace's lockfile and the root's profile.
    let mut cargo = Command::new(env!("CARGO"));
    let output =
        succeed(cargo.args(["metadata", "--no-deps", "--format-version", "1"]).current_dir(folder.path()));
    assert!(text_of(&output.stdout).contains("\"name\":\"order-desk\""));
}

#[test]
fn by_hand_on_a_terminal() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = xtask::generate::command(&generator());
    command.arg("--path").arg(template()).arg("--destination").arg(folder.path()).args(["--vcs", "none"]);
    answer(command, folder.path());
    let wanted = service(&["owner=harbour", "postgres=true", "otlp=false"]);
    same(&contents(&folder.path().join("order-desk")), &wanted);
}

/// Answers the questions in the order in which they are asked.
fn answer(command: Command, folder: &Path) {
    const ENTER: &str = "\r";
    const DOWN: &str = "\x1b[B";
    const UP: &str = "\x1b[A";
    let seconds = Duration::from_secs(20).as_millis().try_into().ok();
    let mut terminal = spawn_command(command, seconds).unwrap();
    let answers = [
        ("Project Name", "order-desk\r".to_owned()),
        ("What the service does", ENTER.into()),
        ("The GitHub organisation or user", "harbour\r".into()),
        ("Store tasks and jobs in PostgreSQL", format!("{DOWN}{ENTER}")),
        ("Share the cache between replicas", ENTER.into()),
        ("Limit the request rate", ENTER.into()),
        ("Export traces", format!("{UP}{ENTER}")),
    ];
    for (question, answer) in answers {
        terminal.exp_string(question).unwrap();
        terminal.send(&answer).unwrap();
        terminal.flush().unwrap();
    }
    terminal.exp_string("order-desk is generated, with postgres, rate_limit").unwrap();
    terminal.exp_eof().unwrap();
    assert!(folder.join("order-desk").is_dir());
}
