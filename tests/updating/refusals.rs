//! What slipway refuses: each time with the cause and the fix, and with everything left as it was.

use std::fs;
use std::process::{Command, Stdio};

use rexpect::session::spawn_command;

use crate::support::{Service, commit, git, said, slipway, template};

#[test]
fn a_tree_that_is_not_clean() {
    let service = Service::generate(&[]);
    service.replace("README.md", "## Run it", "## Start it");
    service.refuses(
        &["set", "redis=true"],
        "README.md changed since the last commit: `git commit` or `git stash`",
    );
    git(&service.folder, &["add", "README.md"]);
    service.write("src/lib.rs", "// Ours.\n");
    service.refuses(&["update"], "1 more changed since the last commit");
    // A dry run still shows what would change.
    service.run(&["set", "redis=true", "--dry-run"], 0);
}

#[test]
fn a_folder_that_is_no_service() {
    let service = Service::generate(&[]);
    git(&service.folder, &["rm", "--quiet", "slipway.toml"]);
    service.refuses(&["status"], "no slipway.toml in ");
    commit(&service.folder, "ours");
    service.refuses(&["set", "redis=true"], "run this inside a service that slipway generated");
    service.write("slipway.toml", "");
    service.refuses(&["set", "redis=true"], "slipway.toml is not committed: `git add`");
}

#[test]
fn a_record_that_is_broken() {
    let service = Service::generate(&[]);
    let good = service.read("slipway.toml");
    for (bad, wanted) in [
        (good.replace("[values]", "[values"), "TOML parse error"),
        (good.replace("version = ", "edition = "), "it has no `version = \"…\"`"),
        (good.replace("name = ", "title = "), "it has no `name = \"…\"`"),
        (good.replace("[values]", "[answers]"), "it has no [values]"),
    ] {
        service.write("slipway.toml", &bad);
        commit(&service.folder, "broken");
        service.refuses(&["set", "redis=true"], wanted);
        service.refuses(
            &["status"],
            "slipway.toml can't be used (`git log -p slipway.toml` shows how it changed): ",
        );
    }
}

/// Files get the line endings of the record, which must not be done outside of what was generated.
#[test]
fn a_record_whose_name_leads_elsewhere() {
    let service = Service::generate(&[]);
    let record = service.read("slipway.toml").replace('\n', "\r\n");
    service.write("../notes.txt", "not\nours\n");
    let parent = service.parent.path().to_str().unwrap();
    for name in ["/proc/self/cwd/..", "../../orders", parent, "Orders", "--init"] {
        let named = format!("name = \"{name}\"");
        service.write("slipway.toml", &record.replace("name = \"orders\"", &named));
        commit(&service.folder, "theirs");
        let wanted = format!("slipway.toml: \"{name}\" can't be the name of a service: restore the one");
        service.refuses(&["set", "redis=true", "--dry-run"], &wanted);
    }
}

#[test]
fn a_record_that_would_command_the_terminal() {
    let service = Service::generate(&[]);
    service.replace("slipway.toml", "name = \"orders\"", r#"name = "orders\u001B[2J""#);
    service.replace("slipway.toml", "owner = \"acme\"", r#"owner = "acme\r\u009B31m""#);
    commit(&service.folder, "theirs");
    let said = service.run(&["status"], 0);
    assert!(said.contains("orders\u{fffd}[2J: ") && said.contains("acme\u{fffd}\u{fffd}31m\n"), "{said:?}");
    service.replace("slipway.toml", "version = \"", r#"version = "\u0007"#);
    commit(&service.folder, "theirs");
    let said = service.run(&["status"], 2);
    assert!(said.contains("`version = \"\u{fffd}0."), "{said:?}");
}

#[test]
fn a_diff_that_would_command_the_terminal() {
    let service = Service::generate(&[]);
    service.replace(".env.example", "#APP__WEBHOOK__SECRET=", "#\u{1b}]52;c;YQ==\u{7}\u{1b}[8m");
    commit(&service.folder, "theirs");
    let set = ["set", "redis=true", "--dry-run"];
    let mut terminal = spawn_command(service.command(&set), Some(20_000)).unwrap();
    let said = terminal.exp_eof().unwrap();
    let theirs = said.lines().find(|line| line.contains("]52;c;YQ==")).unwrap();
    for command in ["\u{1b}]", "\u{7}", "\u{1b}[8m"] {
        assert!(!theirs.contains(command), "{theirs:?}");
    }
    assert!(said.contains("\u{1b}[32m+redis = true\u{1b}[m\r\n"), "it should have git's usual colours");
    // A file or another program gets it as it is.
    let piped = service.run(&set, 0);
    assert!(
        piped.contains("\n #\u{1b}]52;c;YQ==\u{7}\u{1b}[8mwhsec_") && piped.contains("\n+redis = true\n")
    );
}

#[test]
fn a_record_of_answers_that_there_are_not() {
    let service = Service::generate(&[]);
    let good = service.read("slipway.toml");
    for (bad, wanted) in [
        ("redis = \"maybe\"", "slipway.toml: redis can't be \"maybe\": allowed are true and false"),
        ("reddis = true", "slipway.toml: there is no question \"reddis\"; allowed are"),
    ] {
        service.write("slipway.toml", &good.replace("redis = false", bad));
        commit(&service.folder, "broken");
        service.refuses(&["set", "otlp=false"], wanted);
        // `status` shows what is recorded before it fails.
        let said = said(&mut service.command(&["status"]), 2);
        assert!(said.contains(wanted), "{said}");
    }
}

#[test]
fn a_record_that_is_newer_than_the_template() {
    let service = Service::generate(&[]);
    let version = crate::support::version();
    service.replace("slipway.toml", &format!("version = \"{version}\""), "version = \"9.0.0\"");
    commit(&service.folder, "newer");
    let wanted = format!("has no version 9.0.0, which is newer than all of its versions; it has {version}");
    service.refuses(&["set", "redis=true"], &wanted);
    service.refuses(&["update"], &wanted);
}

#[test]
fn unknown_or_invalid_answers() {
    let service = Service::generate(&[]);
    let known = "allowed are description, owner, postgres, redis, rate_limit, otlp";
    service.refuses(&["set", "rediss=true"], &format!("there is no question \"rediss\"; {known}"));
    service.refuses(&["set", "redis=maybe"], "redis can't be \"maybe\": allowed are true and false");
    let refused = said(&mut service.command(&["set", "owner=two words"]), 2);
    let wanted = format!(
        "error: cargo-generate failed for version {}: Runtime error: the owner \"two words\" is not a valid GitHub \
         organisation or user; allowed are letters, digits and hyphens, no hyphen first or last, at most 39 \
         characters\n",
        crate::support::version()
    );
    assert_eq!(refused, wanted);
    let said = said(&mut service.command(&["set", "redis"]), 2);
    assert!(said.contains("write QUESTION=ANSWER, like redis=true"), "{said}");
}

#[test]
fn a_new_service_that_cannot_be() {
    let parent = tempfile::tempdir().unwrap();
    for (arguments, wanted) in [
        (&["fn"][..], "fn"),
        (&["orders", "foo=1"], "there is no question \"foo\"; allowed are"),
        (
            &["orders", "owner=two words"],
            "the owner \"two words\" is not a valid GitHub organisation or user",
        ),
    ] {
        let mut command = slipway();
        command.arg("new").args(arguments).arg("--template").arg(template()).current_dir(&parent);
        let said = said(command.stdin(Stdio::null()), 2);
        assert!(said.contains(wanted), "{said}");
        assert_eq!(
            said.contains("the empty folder orders is removed again"),
            wanted.contains("owner"),
            "{said}"
        );
        assert_eq!(fs::read_dir(&parent).unwrap().count(), 0);
    }
}

#[test]
fn a_version_that_there_is_not() {
    let service = Service::generate(&[]);
    let version = crate::support::version();
    service.refuses(
        &["update", "--to", "7.7.7"],
        &format!("has no version 7.7.7, which is newer than all of its versions; it has {version}"),
    );
    service.refuses(&["update", "--to", "0.0.1"], &format!("has no version 0.0.1; it has {version}"));
    let said = said(&mut service.command(&["update", "--to", "latest"]), 2);
    assert!(said.contains("a version looks like 0.1.0"), "{said}");
}

#[test]
fn a_template_that_is_out_of_reach() {
    let mut service = Service::generate(&[]);
    let empty = tempfile::tempdir().unwrap();
    for (template, wanted) in [
        ("/nowhere/at/all", "there is no template at /nowhere/at/all: it is neither a folder nor a URL"),
        ("http://127.0.0.1:9/slipway", "can't be reached"),
        ("file:///nowhere/at/all", "check the address and the network, or name a clone with --template PATH"),
        (empty.path().to_str().unwrap(), "holds no template"),
    ] {
        service.template = template.into();
        service.refuses(&["set", "redis=true"], wanted);
        service.refuses(&["update"], wanted);
    }
    // `status` still shows what is recorded.
    let said = said(&mut service.command(&["status"]), 2);
    assert!(said.contains("owner        acme") && said.contains("holds no template"), "{said}");
}

#[test]
fn no_template_named_at_all() {
    let service = Service::generate(&[]);
    let mut command = slipway();
    service.refuses_as(
        command.args(["update"]).current_dir(&service.folder),
        "the template is not known: name its repository with --template",
    );
    // Until the record names one, which later changes keep.
    let address = format!("template = \"{}\"", template().display());
    service.replace("slipway.toml", "template = \"slipway\"", &address);
    commit(&service.folder, "ours");
    let mut command = slipway();
    said(command.args(["set", "redis=true"]).current_dir(&service.folder), 0);
    assert!(service.read("slipway.toml").contains(&address));
    assert!(service.read("slipway.toml").contains("redis = true"));
}

#[test]
fn a_path_to_the_template_in_the_record_counts_from_there() {
    let service = Service::generate(&[]);
    std::os::unix::fs::symlink(template(), service.parent.path().join("theirs")).unwrap();
    service.replace("slipway.toml", "template = \"slipway\"", "template = \"../theirs\"");
    commit(&service.folder, "ours");
    for folder in ["", "src", "src/http"] {
        let mut command = slipway();
        let said = said(command.arg("status").current_dir(service.folder.join(folder)), 0);
        assert!(said.contains("nothing to update"), "{said}");
    }
    // A path on the command line is relative to the current folder.
    let mut command = slipway();
    command.args(["status", "--template", "../theirs"]).current_dir(service.folder.join("src"));
    said(&mut command, 2);
    fs::remove_file(service.parent.path().join("theirs")).unwrap();
    let mut command = slipway();
    let wanted = format!("there is no template at {}/../theirs", service.folder.display());
    service.refuses_as(command.arg("update").current_dir(service.folder.join("src")), &wanted);
}

#[test]
fn a_folder_that_git_does_not_know() {
    let service = Service::generate(&[]);
    fs::remove_dir_all(service.folder.join(".git")).unwrap();
    service.refuses(&["set", "redis=true"], "is not in a git work tree, and slipway merges with git");
    git(&service.folder, &["init", "--quiet"]);
    let said = said(&mut service.command(&["set", "redis=true"]), 2);
    assert!(said.contains("nothing is committed yet: `git add .` and `git commit`"), "{said}");
}

#[test]
fn a_repository_of_someone_else() {
    let service = Service::generate(&[]);
    let mut command = service.command(&["set", "redis=true"]);
    // Makes git take every repository for someone else's.
    let said = said(command.env("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1"), 2);
    for wanted in ["detected dubious ownership", "git config --global --add safe.directory"] {
        assert!(said.contains(wanted), "no `{wanted}` in: {said}");
    }
    assert!(!said.contains("git init"), "{said}");
}

#[test]
fn a_template_of_someone_else() {
    let service = Service::generate(&[]);
    let shims = tempfile::tempdir().unwrap();
    let others = "case \"$*\" in *ls-remote*) export GIT_TEST_ASSUME_DIFFERENT_OWNER=1;; esac";
    crate::faults::shim(shims.path(), others);
    let mut command = service.command(&["set", "redis=true"]);
    let said = said(command.env("PATH", shims.path()), 2);
    for wanted in ["error: git can't use the template at /", "git config --global --add safe.directory /"] {
        assert!(said.contains(wanted), "no `{wanted}` in: {said}");
    }
    assert!(!said.contains("check the address") && !said.contains("access rights"), "{said}");
}

#[test]
fn something_that_git_has_not_finished() {
    let service = Service::generate(&[]);
    git(&service.folder, &["checkout", "--quiet", "-b", "other"]);
    commit(&service.folder, "other");
    git(&service.folder, &["checkout", "--quiet", "-"]);
    git(&service.folder, &["merge", "--no-ff", "--no-commit", "--quiet", "other"]);
    service.refuses(&["set", "redis=true"], "a merge is in progress here: finish it or abort it");
    git(&service.folder, &["merge", "--abort"]);
    git(&service.folder, &["bisect", "start"]);
    service.refuses(&["update", "--to", "0.0.1"], "a bisection is in progress here");
    git(&service.folder, &["bisect", "reset"]);
    for (name, what) in [
        ("CHERRY_PICK_HEAD", "a cherry-pick"),
        ("REVERT_HEAD", "a revert"),
        ("rebase-merge", "a rebase"),
        ("rebase-apply", "a rebase"),
    ] {
        let unfinished = service.folder.join(".git").join(name);
        fs::write(&unfinished, "").unwrap();
        service.refuses(&["set", "redis=true"], &format!("{what} is in progress here"));
        fs::remove_file(unfinished).unwrap();
    }
    service.write(".git/index.lock", "");
    service.refuses(&["set", "redis=true"], "another git is running here");
}

#[test]
fn something_that_git_has_not_finished_where_refs_are_no_files() {
    let service = Service::generate(&[]);
    fs::remove_dir_all(service.folder.join(".git")).unwrap();
    let mut init = Command::new("git");
    init.args(["init", "--quiet", "--ref-format=reftable"]).current_dir(&service.folder);
    if !init.status().unwrap().success() {
        return; // git 2.44 and older have no other format.
    }
    commit(&service.folder, "generated");
    for (name, what) in [("CHERRY_PICK_HEAD", "a cherry-pick"), ("REVERT_HEAD", "a revert")] {
        git(&service.folder, &["update-ref", name, "HEAD"]);
        assert!(!service.folder.join(".git").join(name).exists());
        service.refuses(&["set", "redis=true"], &format!("{what} is in progress here"));
        git(&service.folder, &["update-ref", "-d", name]);
    }
    service.run(&["set", "redis=true"], 0);
    service.is_generated(&["redis=true"]);
}

#[test]
fn a_file_in_the_way_that_git_does_not_have() {
    let service = Service::generate(&[]);
    for (path, wanted) in [
        (
            "src/cache/shared.rs",
            "src/cache/shared.rs would take the place of src/cache/shared.rs, which is not in git: move it",
        ),
        ("src/cache", "src/cache/connection.rs would go below src/cache, which is not in git"),
        ("src/cache/shared.rs/mine", "would take the place of src/cache/shared.rs/mine"),
    ] {
        service.write(path, "mine");
        service.refuses(&["set", "redis=true"], wanted);
        // Whether git ignores it or not.
        service.write(".git/info/exclude", "/src/cache\n");
        service.refuses(&["set", "redis=true"], wanted);
        let there = service.folder.join("src/cache");
        if there.is_dir() { fs::remove_dir_all(there) } else { fs::remove_file(there) }.unwrap();
    }
}

#[test]
fn a_repository_of_their_own_in_the_way() {
    let service = Service::generate(&[]);
    let docs = service.folder.join("docs");
    git(&service.folder, &["rm", "--quiet", "-r", "docs"]);
    git(&service.folder, &["init", "--quiet", "docs"]);
    commit(&docs, "theirs");
    commit(&service.folder, "ours");
    service.write("docs/unpushed", "mine");
    service.refuses(
        &["set", "otlp=false"],
        "docs is a repository of its own, which would be removed with all that",
    );
}

#[test]
fn no_cargo_generate() {
    let service = Service::generate(&[]);
    let mut command = service.command(&["set", "redis=true"]);
    service.refuses_as(
        command.env("CARGO_GENERATE", "/nowhere/cargo-generate"),
        "cargo install cargo-generate --version 0.23.14 --locked` (which needs pkg-config and libssl-dev on Linux",
    );
}

#[test]
fn a_git_that_is_too_old_or_missing() {
    let service = Service::generate(&[]);
    let shims = tempfile::tempdir().unwrap();
    let mut command = service.command(&["set", "redis=true"]);
    service.refuses_as(command.env("PATH", shims.path()), "git can't be run: install git 2.38 or newer");
    crate::faults::shim(shims.path(), "case \"$*\" in *version) echo git version 2.30.2; exit;; esac");
    let mut command = service.command(&["set", "redis=true"]);
    service.refuses_as(
        command.env("PATH", shims.path()),
        "git 2.30.2 can't merge trees: install git 2.38 or newer",
    );
}
