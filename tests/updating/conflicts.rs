//! What happens where the owner's changes and the template's meet.

use xtask::owner::{LAST_DEPENDENCY, edit, lines, lost, own, remove_example};
use xtask::variant::Variant;

use crate::support::{Service, commit, git};

#[test]
fn what_is_theirs_stays_where_lines_do_not_meet() {
    let service = Service::generate(&["postgres=true"]);
    let generated = lines(&service.folder).unwrap();
    edit(&service.folder, "postgres+rate_limit+otlp".parse::<Variant>().unwrap()).unwrap();
    remove_example(&service.folder).unwrap();
    commit(&service.folder, "ours");
    let own = own(&generated, &lines(&service.folder).unwrap());
    for (answers, has_redis) in
        [(&["redis=true", "otlp=false"][..], true), (&["redis=false", "rate_limit=false"], false)]
    {
        service.run(&[&["set"], answers].concat(), 0);
        assert_eq!(lost(&own, &lines(&service.folder).unwrap()), Vec::<String>::new());
        assert_eq!(service.folder.join("src/cache/shared.rs").exists(), has_redis);
        assert!(!service.folder.join("tests/service/process.rs").exists(), "it was renamed");
        assert!(!service.folder.join("src/tasks.rs").exists(), "it was removed");
        assert_eq!(
            service.read("tests/service/binary.rs").contains("REDIS_URL"),
            has_redis,
            "and merged there"
        );
        commit(&service.folder, "set");
    }
}

/// `cargo add` puts a dependency in the same place in which the template puts those of a toggle.
#[test]
fn dependencies_are_no_conflict_for_being_neighbours() {
    let service = Service::generate(&[]);
    let last = LAST_DEPENDENCY;
    service.replace("Cargo.toml", last, &format!("{last}itoa = \"1\"\n"));
    commit(&service.folder, "ours");
    service.run(&["set", "redis=true", "rate_limit=false"], 0);
    let manifest = service.read("Cargo.toml");
    assert!(manifest.contains("\nitoa = \"1\"\n") && manifest.contains("\nredis = {"), "{manifest}");
    assert!(!manifest.contains("governor"), "{manifest}");
}

/// The two lines are far enough apart for git to see no conflict, but a manifest with both of them is invalid.
#[test]
fn a_dependency_that_both_add_is_there_once() {
    let service = Service::generate(&[]);
    service.run(&["set", "redis=true"], 0);
    let manifest = service.read("Cargo.toml");
    let theirs = manifest.lines().find(|line| line.starts_with("redis = ")).unwrap().to_owned();
    git(&service.folder, &["reset", "--quiet", "--merge"]);
    for (ours, code) in [("redis = \"1\"", 1), (&theirs, 0)] {
        service.replace("Cargo.toml", "[dependencies]\n", &format!("[dependencies]\n{ours}\n"));
        commit(&service.folder, "ours");
        let said = service.run(&["set", "redis=true"], code);
        let open = git(&service.folder, &["diff", "--name-only", "--diff-filter=U"]);
        if code == 1 {
            let cause = "Cargo.toml has lines from both sides and can't be parsed (line ";
            assert!(
                said.contains(cause) && said.contains(": duplicate key): keep only one side's"),
                "{said}"
            );
            assert_eq!(open, "Cargo.toml");
            assert!(
                service.read("Cargo.toml").contains(&format!("[dependencies]\n{ours}\n")),
                "ours is there"
            );
        } else {
            assert_eq!(open, "");
        }
        assert_eq!(service.read("Cargo.toml").matches("\nredis = ").count(), 1 + usize::from(code == 1));
        git(&service.folder, &["reset", "--quiet", "--hard", "HEAD~"]);
    }
}

#[test]
fn a_remark_of_theirs_outlives_the_dependency_that_it_stood_above() {
    let service = Service::generate(&["redis=true"]);
    service.replace("Cargo.toml", "\nredis = ", "\n# Pinned by us.\nredis = ");
    service.replace("Cargo.toml", "\ngovernor = ", "\nitoa = \"1\"\ngovernor = ");
    commit(&service.folder, "ours");
    service.run(&["set", "redis=false"], 0);
    let manifest = service.read("Cargo.toml");
    assert!(manifest.contains("\n# Pinned by us.\nitoa = \"1\"\n"), "{manifest}");
}

#[test]
fn a_crate_by_a_name_of_theirs_has_the_packages_that_it_needs() {
    let service = Service::generate(&[]);
    for (path, table) in [("Cargo.toml", "[package]"), ("Cargo.lock", "[[package]]")] {
        let named = |name| format!("{table}\nname = \"{name}\"");
        service.replace(path, &named("orders"), &named("berths"));
    }
    commit(&service.folder, "ours");
    service.run(&["set", "redis=true"], 0);
    let lock = service.read("Cargo.lock");
    assert!(lock.contains("name = \"redis\"") && lock.contains("name = \"berths\""), "{lock}");
}

/// With otlp, `futures-util` has what its feature `io` needs anyway.
#[test]
fn a_lock_that_only_cargo_can_complete_is_told() {
    let note =
        "note: Cargo.lock: run `cargo check`, which brings it up to date where your dependencies share";
    let service = Service::generate(&[]);
    let (version, newer) =
        ("name = \"orders\"\nversion = \"0.1.0\"\n", "name = \"orders\"\nversion = \"0.2.0\"\n");
    service.replace("Cargo.lock", version, newer);
    service.replace("Cargo.toml", "\nversion = \"0.1.0\"\n", "\nversion = \"0.2.0\"\n");
    commit(&service.folder, "a version");
    let said = service.run(&["set", "otlp=false", "--dry-run"], 0);
    assert!(!said.contains(note), "{said}");
    let std = "futures-util = { version = \"0.3\", default-features = false, features = [\"std\"";
    service.replace("Cargo.toml", std, &std.replace("\"std\"", "\"io\", \"std\""));
    commit(&service.folder, "a feature");
    let said = service.run(&["set", "redis=true", "--dry-run"], 0);
    assert!(!said.contains(note), "{said}");
    let said = service.run(&["set", "otlp=false"], 0);
    assert!(said.contains(note), "{said}");
    assert!(service.read("Cargo.toml").contains("[\"io\", \"std\"]"));
}

/// The lockfile holds more than packages, so slipway can't merge it by its entries: git's merge of its lines has to do.
#[test]
fn a_lock_that_is_not_understood_is_no_conflict_either() {
    let service = Service::generate(&[]);
    let unused = "\n[[patch.unused]]\nname = \"zzz\"\nversion = \"1.0.0\"\n";
    service.write("Cargo.lock", &(service.read("Cargo.lock") + unused));
    commit(&service.folder, "ours");
    service.run(&["set", "redis=true"], 0);
    let lock = service.read("Cargo.lock");
    assert!(lock.ends_with(unused) && lock.contains("name = \"redis\""), "{lock}");
}

#[test]
fn lines_that_both_changed_are_marked_and_none_is_lost() {
    let service = Service::generate(&[]);
    let generated = lines(&service.folder).unwrap();
    service.replace(
        "src/app.rs",
        "        let checks = store.checks().into_iter().chain(webhook.as_ref().map(Webhook::check));\n",
        "        let checks = store.checks().into_iter().rev().collect();\n",
    );
    service.replace("config/default.toml", "# Tasks kept in memory.", "# Berths kept in memory.");
    // The owner's file, but their lines win on `update` only: what `set` changes must not be dropped silently.
    service.replace("README.md", "| `src/cache.rs` |", "| our `src/cache.rs` |");
    service.replace(
        "src/app.rs",
        "        let writes = TaskTracker::new();\n",
        "        let ours = TaskTracker::new();\n        let writes = ours;\n",
    );
    commit(&service.folder, "ours");
    let own = own(&generated, &lines(&service.folder).unwrap());
    assert!(own.values().map(std::collections::BTreeMap::len).sum::<usize>() >= 4, "{own:?}");
    let before = service.state();

    git(&service.folder, &["config", "core.commentChar", ";"]);
    let said = service.run(&["set", "redis=true"], 1);
    for wanted in [
        "CONFLICT (content): Merge conflict in src/app.rs",
        "CONFLICT (content): Merge conflict in README.md",
        "<<<<<<<",
        "git add",
        "git commit",
        "git reset --merge",
    ] {
        assert!(said.contains(wanted), "no `{wanted}` in: {said}");
    }
    let found = lines(&service.folder).unwrap();
    assert_eq!(lost(&own, &found), Vec::<String>::new());
    let app = service.read("src/app.rs");
    assert!(app.contains("<<<<<<< yours\n") && app.contains(">>>>>>> slipway-"), "{app}");
    assert!(
        app.contains("cache.clone().follow().map(|()| \"cache follower\")"),
        "the template's side is there too"
    );
    assert_eq!(git(&service.folder, &["ls-files", "--unmerged", "src/app.rs"]).lines().count(), 3);
    assert!(git(&service.folder, &["show", ":2:src/app.rs"]).contains("let ours"), "stage 2 should be ours");
    assert!(service.read(".git/MERGE_MSG").contains("; Conflicts:\n;\tREADME.md\n;\tsrc/app.rs\n"));
    // Everything else is merged and staged.
    assert!(service.folder.join("src/cache/shared.rs").exists());
    service.refuses(&["set", "otlp=false"], "changed since the last commit");

    git(&service.folder, &["reset", "--quiet", "--merge"]);
    let (files, known, _) = service.state();
    assert_eq!((&files, &known), (&before.0, &before.1), "after git reset --merge");
}

#[test]
fn a_file_that_they_changed_and_a_toggle_removes_is_theirs_to_decide() {
    let service = Service::generate(&["redis=true"]);
    let text = service.read("src/cache/missed.rs");
    service.write("src/cache/missed.rs", &format!("{text}// Ours.\n"));
    commit(&service.folder, "ours");
    let said = service.run(&["set", "redis=false"], 1);
    assert!(said.contains("CONFLICT (modify/delete): src/cache/missed.rs"), "{said}");
    assert!(service.read("src/cache/missed.rs").ends_with("// Ours.\n"), "what they wrote is there");
}
