//! Generation tests: the real cargo-generate, run on the template as it stands, in every way that people call it.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "generation/support.rs"]
mod support;

#[path = "generation/answers.rs"]
mod answers;
#[path = "generation/release.rs"]
mod release;
#[path = "generation/ways.rs"]
mod ways;

use std::fs;
use std::process::Command;

use support::{contents, expected, generator, paths, silent, template, text_of};
use xtask::generate::{self, Request};
use xtask::variant::Variant;
use xtask::weave::names::Names;

fn request(variant: Variant, parent: &std::path::Path) -> Request {
    Request {
        cargo_generate: generator(),
        template: template().to_owned(),
        variant,
        name: "order-desk".into(),
        parent: parent.to_owned(),
    }
}

#[test]
fn each_variant_comes_out_as_the_living_service_says() {
    let names = Names { name: "order-desk".into(), owner: "acme".into(), ..Names::living() };
    for variant in Variant::all() {
        let folder = tempfile::tempdir().unwrap();
        let service = generate::generate(&request(variant, folder.path())).unwrap();
        let (mut found, wanted) = (contents(&service), expected(variant, &names));
        assert!(found.remove("Cargo.lock").is_some(), "`{variant}` has no lock");
        assert_eq!(paths(&found), paths(&wanted), "the files of `{variant}`");
        for (path, bytes) in &wanted {
            assert_eq!(text_of(&found[path]), text_of(bytes), "{path} of `{variant}`");
        }
    }
}

#[test]
fn the_full_variant_is_the_living_service_less_its_fences() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = silent(folder.path(), "skiff");
    for toggle in xtask::variant::TOGGLES {
        command.args(["-d", &format!("{toggle}=true")]);
    }
    support::succeed(command.args(["-d", "owner=skiff-owner"]));

    // Computed without the weaving code.
    let mut living = contents(&template().join("template"));
    living.retain(|path, _| !path.ends_with(".liquid") && !path.starts_with("without/"));
    let found = contents(&folder.path().join("skiff"));
    assert_eq!(paths(&found), paths(&living));
    for (path, bytes) in living {
        let fence =
            |line: &str| ["//@ ", "#@ ", "<!--@ ", "--@ "].iter().any(|mark| line.trim().starts_with(mark));
        let wanted: String = text_of(&bytes).split_inclusive('\n').filter(|line| !fence(line)).collect();
        assert_eq!(text_of(&found[&path]), wanted, "{path}");
    }
}

/// Otherwise `--locked` would reject it, and the first build would change it.
#[test]
fn each_lock_is_the_one_that_cargo_would_write() {
    for (variant, name) in Variant::all().zip(["aardvark", "order-desk", "zzz"].into_iter().cycle()) {
        let folder = tempfile::tempdir().unwrap();
        let request = Request { name: name.into(), ..request(variant, folder.path()) };
        let service = generate::generate(&request).unwrap();
        let shipped = fs::read_to_string(service.join("Cargo.lock")).unwrap();
        let mut cargo = Command::new(env!("CARGO"));
        // `cargo update` queries the registry, which may fail transiently.
        cargo.args(["update", "--workspace", "--quiet"]).current_dir(&service).env("CARGO_NET_RETRY", "10");
        let output = cargo.output().unwrap();
        assert!(output.status.success(), "`{variant}`: {}", text_of(&output.stderr));
        let written = fs::read_to_string(service.join("Cargo.lock")).unwrap();
        assert_eq!(shipped, written, "the lock of `{variant}` as `{name}`");
    }
}

#[test]
fn nothing_of_the_template_or_of_an_absent_toggle_is_left() {
    let mut scans = Vec::new();
    let mut left = Vec::new();
    for variant in Variant::all() {
        let folder = tempfile::tempdir().unwrap();
        let service = generate::generate(&request(variant, folder.path())).unwrap();
        let scan = generate::scan(&service, variant).unwrap();
        left.extend(scan.leftovers.iter().map(|leftover| format!("{variant}: {leftover}")));
        scans.push(scan);
    }
    assert!(left.is_empty(), "left over:\n{}", left.join("\n"));
    assert_eq!(generate::unused_exceptions(&scans), Vec::<String>::new(), "exceptions that nothing needs");
}

#[test]
fn each_checklist_has_every_requirement_of_its_variant() {
    let of_a_toggle = [(11, "otlp"), (16, "otlp"), (26, "rate_limit"), (31, "postgres"), (32, "postgres")];
    for variant in Variant::all() {
        let absent = of_a_toggle.iter().filter(|(_, toggle)| !variant.has(toggle));
        let absent: Vec<u32> = absent.map(|(number, _)| *number).collect();
        let wanted: Vec<u32> = (1..=40).filter(|number| !absent.contains(number)).collect();
        let files = expected(variant, &Names::living());
        let checklist = text_of(&files["docs/production-checklist.md"]);
        let cells = checklist.lines().filter_map(|line| line.strip_prefix("| ")?.split(' ').next());
        let mut rows: Vec<u32> = cells.filter_map(|number| number.parse().ok()).collect();
        rows.dedup();
        assert_eq!(rows, wanted, "the requirements of `{variant}`");
    }
}
