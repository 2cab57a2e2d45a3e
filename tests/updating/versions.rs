//! Updates from one release of a template to another, and back.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::sync::OnceLock;

use tempfile::TempDir;
use xtask::generate;
use xtask::owner::remove_example;

use crate::support::{
    Service, commit, contents, generated, git, release, replace, repository, said, slipway, version,
};

const MIGRATION: &str = "migrations/0003_priorities.sql";
const LISTS: &str = "tests/service/lists.rs";
const REMARK: &str = "`app` wires everything, and only `main` imports it.";

/// A template with three releases and a preview: 0.2.0 changes, renames and removes files, asks a new question and
/// adds a migration and an example file; 0.3.0 changes the renamed file, the README and a comment in the record.
fn releases() -> &'static Path {
    static REPOSITORY: OnceLock<TempDir> = OnceLock::new();
    let make = || {
        let folder = tempfile::tempdir().unwrap();
        let (root, template) = (folder.path(), folder.path().join("template"));
        let version_is = |from: &str, to: &str| {
            for file in ["slipway.toml", "slipway.toml.liquid"] {
                replace(
                    &template.join(file),
                    &format!("version = \"{from}\""),
                    &format!("version = \"{to}\""),
                );
            }
        };
        generate::snapshot(repository(), root).unwrap();
        git(root, &["init", "--quiet"]);
        version_is(&version(), "0.1.0");
        release(root, "0.1.0");

        version_is("0.1.0", "0.2.0");
        for file in ["src/lifecycle.rs", "src/lifecycle.rs.liquid"] {
            replace(&template.join(file), "//! The state machine", "//! The one state machine");
        }
        fs::rename(template.join("src/http/client.rs"), template.join("src/http/sender.rs")).unwrap();
        fs::remove_file(template.join("deny.toml")).unwrap();
        fs::write(template.join(MIGRATION), "ALTER TABLE tasks ADD COLUMN priority integer;\n").unwrap();
        let task = template.join("src/task.rs");
        let text = fs::read_to_string(&task).unwrap();
        fs::write(&task, format!("// Better.\n{text}")).unwrap();
        fs::write(template.join(LISTS), "//! More of the example.\n").unwrap();
        replace(&root.join("ownership.toml"), "example = [\n", &format!("example = [\n    \"{LISTS}\",\n"));
        let question = "region = { type = \"string\", default = \"eu\", prompt = \"Where it runs\" }\n";
        replace(
            &root.join("cargo-generate.toml"),
            "[placeholders]\n",
            &format!("[placeholders]\n{question}"),
        );
        replace(&template.join("slipway.toml.liquid"), "[values]\n", "[values]\nregion = \"{{region}}\"\n");
        release(root, "0.2.0");

        version_is("0.2.0", "0.3.0");
        replace(&template.join("slipway.toml.liquid"), "# How this service was", "# How the service was");
        replace(&template.join("src/http/sender.rs"), "//! Who sent a request", "//! Who has sent a request");
        let reworded = "`app` wires everything, and `main` alone imports it.";
        replace(&template.join("README.md.liquid"), REMARK, reworded);
        release(root, "0.3.0");
        release(root, "0.4.0-preview.1");
        folder
    };
    REPOSITORY.get_or_init(make).path()
}

/// The files that a release generates.
fn fresh(version: &str, answers: &[&str]) -> BTreeMap<String, (String, bool)> {
    let (clone, parent) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let tag = format!("v{version}");
    let from = releases().to_str().unwrap();
    git(clone.path(), &["clone", "--quiet", "--depth=1", "--branch", &tag, &format!("file://{from}"), "."]);
    contents(&generated(clone.path(), parent.path(), answers))
}

/// A service that was generated from 0.1.0.
fn service(answers: &[&str]) -> Service {
    let parent = tempfile::tempdir().unwrap();
    let service = Service { folder: parent.path().join("orders"), parent, template: releases().to_owned() };
    for (path, (text, _)) in fresh("0.1.0", answers) {
        service.write(&path, &text);
    }
    git(&service.folder, &["init", "--quiet"]);
    commit(&service.folder, "generated");
    service
}

fn is(service: &Service, wanted: &BTreeMap<String, (String, bool)>) {
    let found = contents(&service.folder);
    assert!(found.keys().eq(wanted.keys()), "{:?}\nis not\n{:?}", found.keys(), wanted.keys());
    for (path, content) in wanted {
        assert_eq!(&found[path], content, "{path}");
    }
}

#[test]
fn an_untouched_service_becomes_what_the_release_generates() {
    let answers = ["postgres=true", "owner=harbour"];
    for to in ["0.2.0", "0.3.0"] {
        let service = service(&answers);
        let said = service.run(&["update", "--to", &format!("v{to}")], 0);
        assert!(said.contains("new question `region`"), "{said}");
        is(&service, &fresh(to, &answers));
    }
}

#[test]
fn a_new_service_is_of_the_newest_release_unless_told() {
    for (arguments, version) in [(&[][..], "0.3.0"), (&["--version", "v0.2.0"], "0.2.0")] {
        let parent = tempfile::tempdir().unwrap();
        let mut command = slipway();
        command.args(["new", "orders", "--template"]).arg(releases()).args(arguments);
        said(command.current_dir(parent.path()).stdin(Stdio::null()), 0);
        assert!(contents(&parent.path().join("orders")) == fresh(version, &[]), "{version}");
    }
}

#[test]
fn it_goes_to_the_newest_release_but_to_no_preview() {
    let service = service(&[]);
    let said = service.run(&["status"], 0);
    let renamed = "src/http/client.rs  src/http/sender.rs";
    for wanted in ["0.3.0 is the newest version", renamed, "D  deny.toml", "new question: region"] {
        assert!(said.contains(wanted), "no `{wanted}` in: {said}");
    }
    service.run(&["update"], 0);
    is(&service, &fresh("0.3.0", &[]));
    assert_eq!(service.read(".git/MERGE_MSG"), "Update to slipway 0.3.0\n");
    // Nor does it go back from a preview.
    commit(&service.folder, "update");
    service.replace("slipway.toml", "version = \"0.3.0\"", "version = \"0.4.0-preview.1\"");
    commit(&service.folder, "preview");
    let said = service.run(&["update"], 0);
    assert!(said.contains("orders is already at version 0.4.0-preview.1"), "{said}");
}

#[test]
fn the_record_keeps_what_its_owner_wrote_into_it() {
    let service = service(&[]);
    let (theirs, ours) = ("template = \"slipway\"", "template = \"https://example.com/slipway\"");
    service.replace("slipway.toml", theirs, ours);
    commit(&service.folder, "ours");
    service.run(&["update"], 0);
    let mut wanted = fresh("0.3.0", &[]);
    let (record, _) = wanted.get_mut("slipway.toml").unwrap();
    *record = record.replace(theirs, ours);
    is(&service, &wanted);
    // A line that the template knows nothing of.
    let service = self::service(&[]);
    service.write("slipway.toml", &(service.read("slipway.toml") + "# Ours.\n"));
    commit(&service.folder, "ours");
    service.run(&["update"], 0);
    *wanted.get_mut("slipway.toml").unwrap() =
        (fresh("0.3.0", &[])["slipway.toml"].0.clone() + "# Ours.\n", false);
    is(&service, &wanted);
}

#[test]
fn one_release_after_the_other_is_as_both_at_once_and_leads_back() {
    let service = service(&[]);
    for to in ["0.2.0", "0.3.0", "0.2.0", "0.1.0", "0.3.0", "0.1.0"] {
        service.run(&["update", "--to", to], 0);
        is(&service, &fresh(to, &[]));
        commit(&service.folder, to);
    }
}

#[test]
fn a_toggle_of_an_older_release_is_that_release_s() {
    let service = service(&[]);
    service.run(&["set", "postgres=true"], 0);
    is(&service, &fresh("0.1.0", &["postgres=true"]));
    commit(&service.folder, "set");
    service.run(&["update"], 0);
    is(&service, &fresh("0.3.0", &["postgres=true"]));
}

#[test]
fn a_new_question_can_be_answered_later() {
    let service = service(&[]);
    service.refuses(&["set", "region=us"], "there is no question \"region\"");
    service.run(&["update"], 0);
    commit(&service.folder, "update");
    service.run(&["set", "region=us"], 0);
    is(&service, &fresh("0.3.0", &["region=us"]));
}

#[test]
fn a_migration_that_may_have_run_stays_when_the_release_goes_back() {
    let service = service(&["postgres=true"]);
    service.run(&["update"], 0);
    commit(&service.folder, "update");
    let said = service.run(&["update", "--to", "0.1.0"], 0);
    assert!(said.contains(&format!("{MIGRATION} stays")), "{said}");
    let mut wanted = fresh("0.1.0", &["postgres=true"]);
    wanted.insert(MIGRATION.into(), (service.read(MIGRATION), false));
    is(&service, &wanted);
}

#[test]
fn a_new_migration_takes_no_number_of_theirs() {
    let service = service(&["postgres=true"]);
    let theirs = "migrations/0003_berths.sql";
    service.write(theirs, "CREATE TABLE berths ();\n");
    commit(&service.folder, "ours");
    // Under its new number, it also stays when the release goes back, and is not added again.
    for to in ["0.2.0", "0.3.0", "0.1.0", "0.3.0"] {
        let said = service.run(&["update", "--to", to], 0);
        assert_eq!(said.contains("migrations/0004_priorities.sql stays"), to == "0.1.0", "{said}");
        assert_eq!(service.read(theirs), "CREATE TABLE berths ();\n");
        assert!(service.read("migrations/0004_priorities.sql").contains("priority"));
        assert_eq!(fs::read_dir(service.folder.join("migrations")).unwrap().count(), 4);
        commit(&service.folder, to);
    }
    service.run(&["set", "postgres=false"], 0);
    let mut wanted = fresh("0.3.0", &[]);
    wanted.insert(theirs.into(), (service.read(theirs), false));
    is(&service, &wanted);
}

/// Nobody knows whether it ran before or after they edited it.
#[test]
fn a_migration_that_they_edited_is_neither_lost_nor_added_again() {
    let service = service(&["postgres=true"]);
    service.run(&["update"], 0);
    service.write(MIGRATION, &format!("-- Ours.\n{}", service.read(MIGRATION)));
    commit(&service.folder, "ours");
    service.refuses(&["update", "--to", "0.1.0"], MIGRATION);
}

#[test]
fn a_release_that_edits_a_migration_is_refused() {
    let clone = tempfile::tempdir().unwrap();
    git(clone.path(), &["clone", "--quiet", releases().to_str().unwrap(), "."]);
    let template = clone.path().join("template");
    replace(&template.join("migrations/0001_tasks_and_jobs.sql"), "CREATE TABLE jobs", "CREATE TABLE work");
    for file in ["slipway.toml", "slipway.toml.liquid"] {
        replace(&template.join(file), "version = \"0.3.0\"", "version = \"0.5.0\"");
    }
    release(clone.path(), "0.5.0");
    let service = Service { template: clone.path().to_owned(), ..service(&["postgres=true"]) };
    service.refuses(&["update"], "edits migrations/0001_tasks_and_jobs.sql, which may have run");
}

#[test]
fn what_they_changed_renamed_or_removed_takes_part() {
    let service = service(&[]);
    let client = service.read("src/http/client.rs");
    service.write("src/http/client.rs", &format!("{client}// Ours.\n"));
    git(&service.folder, &["mv", "src/lifecycle.rs", "src/states.rs"]);
    // An example file under a new name: where both sides changed the same lines, the owner's stay.
    git(&service.folder, &["mv", "src/task.rs", "src/berth.rs"]);
    let berth = format!("// Ours.\n{}", service.read("src/berth.rs"));
    service.write("src/berth.rs", &berth);
    git(&service.folder, &["rm", "--quiet", "clippy.toml", "deny.toml"]);
    commit(&service.folder, "ours");
    service.run(&["update"], 0);
    let sender = service.read("src/http/sender.rs");
    assert!(
        sender.ends_with("// Ours.\n") && sender.starts_with("//! Who has sent"),
        "both changes, under the new name"
    );
    assert!(service.read("src/states.rs").starts_with("//! The one state machine"), "new, under their name");
    assert_eq!(service.read("src/berth.rs"), berth);
    for gone in ["src/lifecycle.rs", "src/http/client.rs", "clippy.toml", "deny.toml"] {
        assert!(!service.folder.join(gone).exists(), "{gone} is back");
    }
}

#[test]
fn a_conflict_is_told_before_it_is_made() {
    let service = service(&[]);
    service.replace("src/lifecycle.rs", "//! The state machine", "//! Our state machine");
    commit(&service.folder, "ours");
    let before = service.state();
    let said = service.run(&["status"], 0);
    assert!(said.contains("  conflict in src/lifecycle.rs\n"), "{said}");
    let said = service.run(&["update", "--dry-run"], 1);
    assert!(said.contains("this would conflict in 1 file."), "{said}");
    assert_eq!(service.state(), before);
}

#[test]
fn a_removed_example_is_not_brought_back() {
    let service = service(&["postgres=true"]);
    remove_example(&service.folder).unwrap();
    commit(&service.folder, "ours");
    let said = service.run(&["update"], 0);
    assert!(said.contains("src/task.rs stays removed"), "{said}");
    assert!(said.contains(&format!("{LISTS} is not added")), "{said}");
    for gone in ["src/http/tasks.rs", "src/task.rs", "src/tasks.rs", "tests/service/api.rs", LISTS] {
        assert!(!service.folder.join(gone).exists(), "{gone} is back");
    }
}

#[test]
fn their_readme_wins_where_an_update_meets_it() {
    let latin_1 = |text: &str| text.chars().map(|letter| u8::try_from(letter).unwrap_or(b'?')).collect();
    // Git takes it for binary.
    let utf_16 = |text: &str| text.encode_utf16().flat_map(u16::to_le_bytes).collect();
    for encoded in [&latin_1 as &dyn Fn(&str) -> Vec<u8>, &utf_16] {
        let service = service(&[]);
        let path = service.folder.join("README.md");
        let text = encoded(&service.read("README.md").replace(REMARK, "Our imports point \u{fc}."));
        fs::write(&path, &text).unwrap();
        commit(&service.folder, "ours");
        let said = service.run(&["update"], 0);
        assert!(said.contains("README.md: where the template changed your lines, yours stay"), "{said}");
        assert!(fs::read(&path).unwrap() == text);
        assert!(
            service.read(".git/MERGE_MSG").contains("\n\n- README.md: where"),
            "the commit message should have it as well"
        );
    }
}

#[test]
fn what_was_no_release_is_named_by_its_branch() {
    let clone = tempfile::tempdir().unwrap();
    git(clone.path(), &["clone", "--quiet", releases().to_str().unwrap(), "."]);
    git(clone.path(), &["checkout", "--quiet", "-b", "early", "v0.2.0"]);
    let version_is = |from: &str, to: &str| {
        for file in ["slipway.toml", "slipway.toml.liquid"] {
            replace(&clone.path().join("template").join(file), from, to);
        }
        commit(clone.path(), to);
    };
    version_is("version = \"0.2.0\"", "version = \"0.3.0-early\"");
    let parent = tempfile::tempdir().unwrap();
    let folder = generated(clone.path(), parent.path(), &[]);
    git(&folder, &["init", "--quiet"]);
    commit(&folder, "generated");
    let service = Service { parent, folder, template: clone.path().to_owned() };
    let cause = "has no version 0.3.0-early; it has 0.1.0, 0.2.0, 0.3.0, 0.4.0-preview.1; name the branch or tag that the \
                 service was generated from: `slipway update --from NAME`";
    for command in [&["update"][..], &["set", "redis=true"]] {
        service.refuses(command, cause);
    }
    assert!(said(&mut service.command(&["status"]), 2).contains(cause));
    service.run(&["update", "--from", "early", "--dry-run"], 0);
    // Or by its commit, once the branch has another version.
    let from = git(clone.path(), &["rev-parse", "early"]);
    version_is("version = \"0.3.0-early\"", "version = \"0.3.1-early\"");
    let cause = "early is version 0.3.1-early of the template, but slipway.toml records 0.3.0-early: name the commit that \
                 the service was generated from: --from COMMIT";
    for command in [&["update", "--from", "early"][..], &["set", "redis=true", "--from", "early"]] {
        service.refuses(command, cause);
    }
    service.run(&["update", "--from", &from], 0);
    is(&service, &fresh("0.3.0", &[]));
    // Also when the record already has the newest version.
    commit(&service.folder, "update");
    let said = service.run(&["update", "--from", "v0.3.0", "--to", "0.3.0"], 0);
    assert!(said.contains("Update to slipway 0.3.0: nothing changes"), "{said}");
    service.refuses(&["update", "--from", "early"], "slipway.toml records 0.3.0: leave out --from if");
}

#[test]
fn a_branch_between_two_releases_does_not_go_back_to_the_older_one() {
    for version in ["0.3.0", "0.4.0-early"] {
        let clone = tempfile::tempdir().unwrap();
        git(clone.path(), &["clone", "--quiet", releases().to_str().unwrap(), "."]);
        git(clone.path(), &["checkout", "--quiet", "-b", "early", "v0.3.0"]);
        let template = clone.path().join("template");
        for file in ["slipway.toml", "slipway.toml.liquid"] {
            replace(&template.join(file), "version = \"0.3.0\"", &format!("version = \"{version}\""));
        }
        replace(&template.join("src/http/sender.rs"), "//! Who has sent", "//! Whoever has sent");
        commit(clone.path(), "better");
        let service = Service::of(clone.path(), &[]);
        let before = service.state();
        let said = service.run(&["update", "--from", "early"], 0);
        let wanted = format!("orders is at version {version}, and no release is newer");
        assert!(said.contains(&wanted) && said.contains("name it: --to 0.3.0\n"), "{said}");
        assert_eq!(service.state(), before);
        // Unless that is what they ask for.
        service.run(&["update", "--from", "early", "--to", "0.3.0"], 0);
        is(&service, &fresh("0.3.0", &[]));
    }
}
