//! Merges `Cargo.lock` by packages, into what cargo would have written: lines that merge cleanly may still give an
//! invalid lockfile, and lines that conflict may have a valid result.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use semver::Version;
use toml_edit::{DocumentMut, Item, Table};

/// The identity of a package.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Id {
    name: String,
    version: Version,
    /// `None` for a crate of the service.
    source: Option<String>,
}

/// Packages of which cargo uses only one: of one name and source, with compatible versions.
type CompatKey = (String, Option<String>, String);

#[derive(Clone, Debug)]
struct Package {
    checksum: Option<String>,
    needs: BTreeSet<CompatKey>,
}

/// A lockfile: its packages by compatibility key.
#[derive(Debug)]
struct Lock {
    head: String,
    packages: BTreeMap<CompatKey, (Id, Package)>,
}

/// Merges what changed from `base` to `theirs` into `ours`. `None` when one of them isn't as cargo writes it, or
/// holds more than packages.
pub fn merge(base: &str, ours: &str, theirs: &str) -> Option<String> {
    let (mut base, ours, mut theirs) = (Lock::parse(base)?, Lock::parse(ours)?, Lock::parse(theirs)?);
    if ours.head != theirs.head {
        return None;
    }
    // The service's crate may have been renamed.
    let only_in = |one: &Lock, other: &Lock| -> Vec<CompatKey> {
        one.crates().filter(|compat_key| !other.packages.contains_key(*compat_key)).cloned().collect()
    };
    if let ([was], [is]) = (&*only_in(&base, &ours), &*only_in(&ours, &base)) {
        (base, theirs) = (base.renamed(was, is), theirs.renamed(was, is));
    }
    let mut packages = BTreeMap::new();
    let mut waiting: Vec<CompatKey> = ours.crates().cloned().collect();
    while let Some(compat_key) = waiting.pop() {
        if packages.contains_key(&compat_key) {
            continue;
        }
        let (id, package) = chosen(&compat_key, &base, &ours, &theirs)?;
        waiting.extend(package.needs.iter().cloned());
        packages.insert(compat_key, (id, package));
    }
    Some(Lock { head: ours.head, packages }.to_text())
}

/// Whether the template's side drops what a package needs that stays in `merged`. If that is for a feature which the
/// owner's side enables as well, cargo would keep it, and only cargo can tell.
pub fn is_uncertain(base: &str, ours: &str, theirs: &str, merged: &str) -> bool {
    let locks = [base, ours, theirs, merged].map(Lock::parse);
    let [Some(base), Some(ours), Some(theirs), Some(merged)] = locks else { return false };
    let needs = |lock: &Lock, compat_key| {
        lock.packages.get(compat_key).map(|(_, package)| package.needs.clone()).unwrap_or_default()
    };
    // What the service's own crates need is in their manifests.
    merged.packages.keys().filter(|(_, source, _)| source.is_some()).any(|compat_key| {
        let [before, ours, theirs] = [&base, &ours, &theirs].map(|lock| needs(lock, compat_key));
        before.intersection(&ours).any(|need| !theirs.contains(need))
    })
}

/// The package that the merged lockfile gets for a key that it needs.
fn chosen(compat_key: &CompatKey, base: &Lock, ours: &Lock, theirs: &Lock) -> Option<(Id, Package)> {
    let [base, ours, theirs] = [base, ours, theirs].map(|lock| lock.packages.get(compat_key));
    let (ours, theirs) = match (ours, theirs) {
        (Some(ours), Some(theirs)) => (ours, theirs),
        (Some(one), None) | (None, Some(one)) => return Some(one.clone()),
        (None, None) => return None,
    };
    // The version of the service itself is up to its owner.
    let take_theirs = compat_key.1.is_some()
        && match base.map(|(id, _)| &id.version) {
            Some(was) if *was == ours.0.version => true,
            Some(was) if *was == theirs.0.version => false,
            _ => ours.0.version < theirs.0.version,
        };
    let (id, package) = if take_theirs { theirs } else { ours };
    // Another version changes the dependencies, and so do other features; either side may have made such a change.
    let nothing = BTreeSet::new();
    let before = base.map_or(&nothing, |(_, package)| &package.needs);
    let (one, other) = (&ours.1.needs, &theirs.1.needs);
    let kept = |compat_key: &&CompatKey| {
        let gone = before.contains(compat_key) && !(one.contains(compat_key) && other.contains(compat_key));
        !gone
    };
    let needs = one.union(other).filter(kept).cloned().collect();
    Some((id.clone(), Package { checksum: package.checksum.clone(), needs }))
}

impl Lock {
    fn parse(text: &str) -> Option<Self> {
        let document: DocumentMut = text.parse().ok()?;
        if document.iter().any(|(key, _)| !["version", "package"].contains(&key)) {
            return None;
        }
        let tables: Vec<&Table> = document.get("package")?.as_array_of_tables()?.iter().collect();
        let ids = tables.iter().map(|table| id(table)).collect::<Option<Vec<Id>>>()?;
        let mut packages = BTreeMap::new();
        for (table, id) in tables.into_iter().zip(&ids) {
            if table.contains_key("replace") {
                return None;
            }
            let named = table.get("dependencies").and_then(Item::as_array);
            let needs = named
                .into_iter()
                .flatten()
                .map(|name| found(name.as_str()?, &ids).map(compat_key))
                .collect::<Option<_>>()?;
            let checksum = table.get("checksum").and_then(Item::as_str).map(str::to_owned);
            if packages.insert(compat_key(id), (id.clone(), Package { checksum, needs })).is_some() {
                return None;
            }
        }
        Some(Self { head: text.split("[[package]]").next()?.to_owned(), packages })
    }

    /// The crates of the service.
    fn crates(&self) -> impl Iterator<Item = &CompatKey> {
        self.packages.keys().filter(|(_, source, _)| source.is_none())
    }

    /// The same with the crate `was` renamed to `is`.
    fn renamed(mut self, was: &CompatKey, is: &CompatKey) -> Self {
        if let Some((id, package)) = self.packages.remove(was) {
            self.packages.insert(is.clone(), (Id { name: is.0.clone(), ..id }, package));
        }
        self
    }

    fn to_text(&self) -> String {
        let mut sorted: Vec<&(Id, Package)> = self.packages.values().collect();
        sorted.sort_by(|(one, _), (other, _)| one.cmp(other));
        let mut text = self.head.clone();
        for (at, (id, package)) in sorted.into_iter().enumerate() {
            let gap = if at == 0 { "" } else { "\n" };
            let _ = write!(text, "{gap}[[package]]\nname = \"{}\"\nversion = \"{}\"\n", id.name, id.version);
            for (key, value) in [("source", &id.source), ("checksum", &package.checksum)] {
                if let Some(value) = value {
                    let _ = writeln!(text, "{key} = \"{value}\"");
                }
            }
            // As text, like cargo: `rand 0.10.4` comes before `rand 0.9.5` here, though not among the packages.
            let mut needs: Vec<String> =
                package.needs.iter().map(|compat_key| self.named(&self.packages[compat_key].0)).collect();
            needs.sort();
            if !needs.is_empty() {
                text += "dependencies = [\n";
                for name in needs {
                    let _ = writeln!(text, " \"{name}\",");
                }
                text += "]\n";
            }
        }
        text
    }

    /// The shortest unambiguous name.
    fn named(&self, id: &Id) -> String {
        let alike = |same: fn(&Id, &Id) -> bool| {
            self.packages.values().filter(|(other, _)| other.name == id.name && same(other, id)).count()
        };
        match &id.source {
            _ if alike(|_, _| true) == 1 => id.name.clone(),
            Some(source) if alike(|one, other| one.version == other.version) > 1 => {
                format!("{} {} ({source})", id.name, id.version)
            }
            _ => format!("{} {}", id.name, id.version),
        }
    }
}

fn id(table: &Table) -> Option<Id> {
    let text = |key: &str| table.get(key).and_then(Item::as_str).map(str::to_owned);
    Some(Id { name: text("name")?, version: Version::parse(&text("version")?).ok()?, source: text("source") })
}

/// The one of `ids` that `name`, `name version` or `name version (source)` refers to.
fn found<'a>(named: &str, ids: &'a [Id]) -> Option<&'a Id> {
    let mut words = named.splitn(3, ' ');
    let name = words.next()?;
    let version = words.next();
    let source = words.next().map(|source| source.trim_matches(['(', ')']));
    let mut fitting = ids.iter().filter(|id| {
        id.name == name
            && version.is_none_or(|version| id.version.to_string() == version)
            && source.is_none_or(|source| id.source.as_deref() == Some(source))
    });
    let found = fitting.next()?;
    fitting.next().is_none().then_some(found)
}

fn compat_key(id: &Id) -> CompatKey {
    let Version { major, minor, patch, .. } = id.version;
    let compatible = match (major, minor) {
        // The service has one crate of a name, whatever its version.
        _ if id.source.is_none() => String::new(),
        _ if !id.version.pre.is_empty() => id.version.to_string(),
        (0, 0) => format!("0.0.{patch}"),
        (0, minor) => format!("0.{minor}"),
        (major, _) => major.to_string(),
    };
    (id.name.clone(), id.source.clone(), compatible)
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use super::{is_uncertain, merge};

    /// A lockfile of packages, each with its dependencies.
    fn lock(packages: &[(&str, &str, &[&str])]) -> String {
        let mut text = "# @generated\nversion = 4\n".to_owned();
        for (name, version, needs) in packages {
            let _ = write!(text, "\n[[package]]\nname = \"{name}\"\nversion = \"{version}\"\n");
            if *name != "orders" {
                text += "source = \"registry\"\nchecksum = \"00\"\n";
            }
            if !needs.is_empty() {
                let _ = writeln!(text, "dependencies = [\n \"{}\",\n]", needs.join("\",\n \""));
            }
        }
        text
    }

    #[test]
    fn both_sides_may_bring_packages() {
        let base = lock(&[("a", "1.0.0", &[]), ("orders", "0.1.0", &["a"])]);
        let ours = lock(&[("a", "1.0.0", &[]), ("mine", "1.0.0", &[]), ("orders", "0.2.0", &["a", "mine"])]);
        let theirs = lock(&[("a", "1.0.0", &[]), ("b", "1.0.0", &["a"]), ("orders", "0.1.0", &["a", "b"])]);
        let wanted = lock(&[
            ("a", "1.0.0", &[]),
            ("b", "1.0.0", &["a"]),
            ("mine", "1.0.0", &[]),
            ("orders", "0.2.0", &["a", "b", "mine"]),
        ]);
        assert_eq!(merge(&base, &ours, &theirs).as_deref(), Some(wanted.as_str()));
        assert_eq!(merge(&theirs, &wanted, &base).as_deref(), Some(ours.as_str()));
    }

    #[test]
    fn of_compatible_versions_one_stays() {
        let of = |version| lock(&[("a", version, &[]), ("orders", "0.1.0", &["a"])]);
        let merged = |base, ours, theirs| merge(&of(base), &of(ours), &of(theirs));
        assert_eq!(merged("1.0.0", "1.0.1", "1.0.2"), Some(of("1.0.2")));
        assert_eq!(merged("1.0.0", "1.0.2", "1.0.1"), Some(of("1.0.2")));
        assert_eq!(merged("1.0.1", "1.0.1", "1.0.0"), Some(of("1.0.0")));
    }

    #[test]
    fn a_version_of_one_side_has_the_features_of_the_other() {
        let of = |version, needs: &[&str]| {
            lock(&[
                ("a", version, needs),
                ("log", "1.0.0", &[]),
                ("new", "1.0.0", &[]),
                ("old", "1.0.0", &[]),
                ("orders", "0.1.0", &["a", "log", "new", "old"]),
            ])
        };
        let (base, bumped) = (of("1.0.0", &["old"]), of("1.0.1", &["new"]));
        let (with_feature, wanted) = (of("1.0.0", &["log", "old"]), of("1.0.1", &["log", "new"]));
        assert_eq!(merge(&base, &bumped, &with_feature).as_deref(), Some(wanted.as_str()));
        assert_eq!(merge(&base, &with_feature, &bumped).as_deref(), Some(wanted.as_str()));
        assert_eq!(merge(&with_feature, &wanted, &base).as_deref(), Some(bumped.as_str()));
    }

    #[test]
    fn what_has_one_name_is_told_apart() {
        let base = lock(&[("orders", "0.1.0", &[])]);
        let ours = lock(&[("a", "1.0.0", &[]), ("orders", "0.1.0", &["a"])]);
        let theirs = lock(&[("a", "2.0.0", &[]), ("orders", "0.1.0", &["a"])]);
        let wanted =
            lock(&[("a", "1.0.0", &[]), ("a", "2.0.0", &[]), ("orders", "0.1.0", &["a 1.0.0", "a 2.0.0"])]);
        assert_eq!(merge(&base, &ours, &theirs).as_deref(), Some(wanted.as_str()));
    }

    #[test]
    fn dependencies_of_one_name_are_ordered_as_cargo_does_it() {
        let base = lock(&[("orders", "0.1.0", &[])]);
        let ours = lock(&[("a", "0.9.5", &[]), ("orders", "0.1.0", &["a"])]);
        let theirs = lock(&[("a", "0.10.4", &[]), ("orders", "0.1.0", &["a"])]);
        let needs = ["a 0.10.4", "a 0.9.5"];
        let wanted = lock(&[("a", "0.9.5", &[]), ("a", "0.10.4", &[]), ("orders", "0.1.0", &needs)]);
        assert_eq!(merge(&base, &ours, &theirs).as_deref(), Some(wanted.as_str()));
    }

    /// The owner dropped the package that needed `b`; the template adds one that needs it again.
    #[test]
    fn what_is_needed_is_there_and_no_more() {
        let base = lock(&[("a", "1.0.0", &["b"]), ("b", "1.0.0", &[]), ("orders", "0.1.0", &["a"])]);
        let ours = lock(&[("orders", "0.1.0", &[])]);
        let theirs = lock(&[
            ("a", "1.0.0", &["b"]),
            ("b", "1.0.0", &[]),
            ("c", "1.0.0", &["b"]),
            ("orders", "0.1.0", &["a", "c"]),
        ]);
        let wanted = lock(&[("b", "1.0.0", &[]), ("c", "1.0.0", &["b"]), ("orders", "0.1.0", &["c"])]);
        assert_eq!(merge(&base, &ours, &theirs).as_deref(), Some(wanted.as_str()));
    }

    /// `a` needs `io` only with a feature.
    #[test]
    fn what_a_package_of_both_sides_no_longer_needs_is_uncertain() {
        let crates = [("a", "1.0.0", &["io", "log"][..]), ("io", "1.0.0", &[]), ("log", "1.0.0", &[])];
        let with = lock(&[&crates[..], &[("orders", "0.1.0", &["a"])]].concat());
        let without = lock(&[("a", "1.0.0", &["log"]), ("log", "1.0.0", &[]), ("orders", "0.1.0", &["a"])]);
        let gone = lock(&[("orders", "0.1.0", &[])]);
        assert!(is_uncertain(&with, &with, &without, &without));
        assert!(is_uncertain(&with, &with, &gone, &with), "only the owner's side needs it now");
        for (base, ours, theirs, merged) in [
            (&without, &without, &with, &with),
            (&with, &without, &without, &without),
            (&with, &with, &gone, &gone),
        ] {
            assert!(!is_uncertain(base, ours, theirs, merged));
        }
    }

    #[test]
    fn what_is_no_lock_is_left_to_its_owner() {
        let lock = lock(&[("orders", "0.1.0", &[])]);
        assert_eq!(merge(&lock, &format!("<<<<<<< yours\n{lock}"), &lock), None);
        assert_eq!(merge(&lock, &format!("{lock}\n[metadata]\nx = \"y\"\n"), &lock), None);
    }
}
