//! Invalid answers: each is refused with a message that says what is allowed, and no file is left on disk.

use std::ffi::OsStr;
use std::path::Path;
use std::process::Command;

use crate::support::{contents, repository, silent, succeed, template, text_of};

/// Runs `command`, which must fail, print a line that contains `wanted`, and leave no file in `parent`.
fn refusal(command: &mut Command, parent: &Path, wanted: &str) {
    let output = command.output().unwrap();
    let said = text_of(&output.stdout) + &text_of(&output.stderr);
    assert!(!output.status.success(), "{command:?} went through:\n{said}");
    assert!(said.lines().any(|line| line.contains(wanted)), "no line says `{wanted}`:\n{said}");
    let left = contents(parent).into_keys().filter(|path| !path.ends_with('/')).collect::<Vec<_>>();
    assert_eq!(left, Vec::<String>::new(), "left behind by {command:?}");
}

#[test]
fn a_name_that_cannot_be_used_is_refused() {
    let cases = [
        ("fn", "is a Rust keyword"),
        ("Async", "is a Rust keyword"),
        ("std", "is a built-in Rust crate"),
        ("core", "is a built-in Rust crate"),
        ("test", "is a built-in Rust crate"),
        ("proc-macro", "is a built-in Rust crate"),
        ("deps", "is a folder that cargo uses for its output"),
        ("build", "is a folder that cargo uses for its output"),
        ("examples", "is a folder that cargo uses for its output"),
        ("incremental", "is a folder that cargo uses for its output"),
        ("on", "is a reserved word in YAML or PostgreSQL"),
        ("yes", "is a reserved word in YAML or PostgreSQL"),
        ("template1", "is a reserved word in YAML or PostgreSQL"),
        ("tokio", "is a crate that the service depends on"),
        ("zürich", "is not ASCII"),
        ("9-lives", "doesn't start with a letter"),
        ("order_desk", "has a \"_\""),
        ("order/desk", ""),
        (&"x".repeat(51), "has 51 characters"),
        ("-", "doesn't start with a letter"),
    ];
    for (name, reason) in cases {
        let folder = tempfile::tempdir().unwrap();
        let wanted = format!("the name \"{name}\" {reason}");
        if reason.is_empty() {
            // cargo-generate turns it into a valid name.
            succeed(&mut silent(folder.path(), name));
            continue;
        }
        refusal(&mut silent(folder.path(), name), folder.path(), &wanted);
        refusal(&mut silent(folder.path(), name), folder.path(), "allowed are a-z, 0-9 and single hyphens");
    }
}

#[test]
fn a_name_that_is_forced_is_checked_too() {
    let folder = tempfile::tempdir().unwrap();
    refusal(
        silent(folder.path(), "OrderDesk").arg("--force"),
        folder.path(),
        "doesn't start with a letter; allowed",
    );
}

#[test]
fn an_answer_that_cannot_be_used_is_refused() {
    let long = format!("description={}", "x".repeat(121));
    let long_owner = format!("owner={}", "x".repeat(40));
    let cases = [
        ("postgres=maybe", "was not `true` or `false`"),
        ("otlp=1", "was not `true` or `false`"),
        (
            "owner=two words",
            "the owner \"two words\" is not a valid GitHub organisation or user; allowed are letters, digits",
        ),
        ("owner=-acme", "no hyphen first"),
        ("owner=acme-", "no hyphen first or last"),
        ("owner=", "the owner \"\" is not a valid"),
        ("description=", "the description \"\" is not valid"),
        ("description=Says \"hi\"", "that it goes into; allowed are ASCII letters"),
        ("description=a: b", "is not valid in every file"),
        ("description={{owner}}", "is not valid in every file"),
        ("description=back\\slash", "is not valid in every file"),
        ("description=- a", "is not valid in every file"),
        ("description=a $b", "is not valid in every file"),
        ("description=a #b", "is not valid in every file"),
        ("description=a & b", "is not valid in every file"),
        (&long, "at most 120 characters"),
        (&long_owner, "at most 39 characters"),
    ];
    for (answer, wanted) in cases {
        let folder = tempfile::tempdir().unwrap();
        refusal(silent(folder.path(), "order-desk").args(["-d", answer]), folder.path(), wanted);
    }
}

#[test]
fn answers_of_the_maximum_length_are_accepted() {
    let folder = tempfile::tempdir().unwrap();
    let [description, owner] = [("description", 120), ("owner", 39)]
        .map(|(question, length)| format!("{question}={}", "x".repeat(length)));
    succeed(silent(folder.path(), &"x".repeat(50)).args(["-d", &description, "-d", &owner]));
}

/// Only misspellings that the hook looks for: it can query a variable by its name, but not list those that are set.
#[test]
fn an_answer_to_a_question_that_is_nearly_one_is_refused() {
    let slips =
        ["postgress", "postgre", "psotgres", "rate-limit", "ratelimit", "RateLimit", "REDIS", "descriptoin"];
    for name in slips.into_iter().chain(["postgresql", "db", "otel", "governor"]) {
        let folder = tempfile::tempdir().unwrap();
        let wanted = format!(
            "there is no question \"{name}\"; allowed are postgres, redis, rate_limit, otlp, description, owner"
        );
        refusal(
            silent(folder.path(), "order-desk").args(["-d", &format!("{name}=true")]),
            folder.path(),
            &wanted,
        );
    }
}

/// Who gave no answer at all would look for the fault in the wrong place.
#[test]
fn a_value_for_other_templates_that_is_nearly_an_answer_is_refused_with_its_source() {
    let (folder, home) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let config = home.path().join("cargo-generate.toml");
    std::fs::write(&config, "[values]\ndatabase = \"sqlite\"\n").unwrap();
    let given = silent(folder.path(), "order-desk");
    let own = |argument: &OsStr| argument == "--config" || argument == "/dev/null";
    let mut command = Command::new(given.get_program());
    command.args(given.get_args().filter(|argument| !own(argument))).env("CARGO_HOME", home.path());
    command.envs(given.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let wanted = "otlp, description, owner; if you gave no such answer, it comes from cargo-generate.toml in CARGO_HOME: \
                  call cargo generate with --config /dev/null";
    refusal(&mut command, folder.path(), wanted);
    std::fs::remove_dir(folder.path().join("order-desk")).unwrap();
    succeed(command.args(["--config", "/dev/null"]));
}

/// cargo-generate passes the values in its own configuration to every template.
#[test]
fn a_value_for_other_templates_does_no_harm() {
    let folder = tempfile::tempdir().unwrap();
    succeed(silent(folder.path(), "order-desk").args([
        "-d",
        "author=x",
        "-d",
        "organization=y",
        "-d",
        "foo=1",
    ]));
}

#[test]
fn a_folder_that_exists_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("order-desk")).unwrap();
    let wanted = "Target directory already exists, aborting!";
    refusal(&mut silent(folder.path(), "order-desk"), folder.path(), wanted);
}

#[test]
fn an_older_cargo_generate_is_refused() {
    let config = std::fs::read_to_string(repository().join("cargo-generate.toml")).unwrap();
    let required = config.lines().find_map(|line| line.strip_prefix("cargo_generate_version = ")).unwrap();
    let newer = tempfile::tempdir().unwrap();
    xtask::generate::snapshot(template(), newer.path()).unwrap();
    std::fs::write(newer.path().join("cargo-generate.toml"), config.replace(required, "\">=99\"")).unwrap();

    let folder = tempfile::tempdir().unwrap();
    let mut command = xtask::generate::command(&crate::support::generator());
    command.arg("--path").arg(newer.path()).arg("--destination").arg(folder.path());
    refusal(
        command.args(["--name", "order-desk", "--silent"]),
        folder.path(),
        "version not met. Required: >=99",
    );
}
