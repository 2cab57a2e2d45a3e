//! Merges lockfiles line by line.

use anyhow::{Context as _, Result, ensure};

use crate::variant::Variant;
use crate::weave::names;

/// A `Cargo.lock`, split but not interpreted: rendering must reproduce its bytes exactly.
#[derive(Debug, PartialEq, Eq)]
pub struct Lock<'a> {
    head: &'a str,
    pub packages: Vec<Package<'a>>,
}

/// The lines of a package, starting with the empty line before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Package<'a>(Vec<&'a str>);

impl<'a> Package<'a> {
    fn value(&self, key: &str) -> &'a str {
        let line = self
            .0
            .iter()
            .find_map(|line| line.strip_prefix(key)?.strip_prefix(" = \"")?.strip_suffix("\"\n"));
        line.unwrap_or_default()
    }

    pub fn name(&self) -> &'a str {
        self.value("name")
    }

    /// What distinguishes it from the other packages.
    fn id(&self) -> (&'a str, &'a str, &'a str) {
        (self.name(), self.value("version"), self.value("source"))
    }
}

impl<'a> Lock<'a> {
    pub fn parse(text: &'a str) -> Result<Self> {
        const START: &str = "\n[[package]]\n";
        let starts: Vec<usize> = text.match_indices(START).map(|(at, _)| at).collect();
        let ends = starts.iter().skip(1).copied().chain([text.len()]);
        let packages = starts
            .iter()
            .zip(ends)
            .map(|(from, to)| Package(text[*from..to].split_inclusive('\n').collect()))
            .collect();
        let lock = Self { head: &text[..starts.first().copied().unwrap_or(text.len())], packages };
        ensure!(
            lock.packages.iter().all(|package| !package.name().is_empty()),
            "a lock has a package without a name"
        );
        Ok(lock)
    }
}

/// The lockfiles of all variants in one.
#[derive(Debug)]
pub struct Merged<'a> {
    head: &'a str,
    packages: Vec<MergedPackage<'a>>,
}

#[derive(Debug)]
struct MergedPackage<'a> {
    name: &'a str,
    in_variants: Variants,
    lines: Vec<(Variants, &'a str)>,
}

/// A set of variants, each represented by its position in [`Variant::all`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Variants(u64);

impl Variants {
    const NONE: Self = Self(0);
    const ALL: Self = Self(u64::MAX);

    fn add(&mut self, place: usize) {
        self.0 |= 1 << place;
    }

    fn contains(self, place: usize) -> bool {
        self.0 & (1 << place) != 0
    }

    /// Puts a condition around `text`, unless `known` already implies it.
    fn guard(self, known: Self, text: &str) -> String {
        let mut places = Variant::all().enumerate();
        if places.all(|(place, _)| self.contains(place) || !known.contains(place)) {
            return text.to_owned();
        }
        let places = Variant::all().enumerate().filter(|(place, _)| self.contains(*place));
        let letters: String = places.map(|(_, variant)| variant.letter()).collect();
        format!("{{% if \"{letters}\" contains variant %}}{text}{{% endif %}}")
    }
}

/// Merges the lockfiles of all variants, given in the order of [`Variant::all`]: the last one has all packages.
///
/// # Errors
/// When the result would not reproduce each of them.
pub fn merge(texts: &[String]) -> Result<Merged<'_>> {
    let locks = texts.iter().map(|text| Lock::parse(text)).collect::<Result<Vec<_>>>()?;
    let full = locks.last().context("no lock to merge")?;
    let packages = full.packages.iter().map(|package| merge_package(package, &locks)).collect();
    let merged = Merged { head: full.head, packages };
    for (place, (text, variant)) in texts.iter().zip(Variant::all()).enumerate() {
        ensure!(
            merged.of(place) == *text,
            "the lock of `{variant}` has an entry that the full one lacks, or a different order"
        );
    }
    Ok(merged)
}

fn merge_package<'a>(package: &Package<'a>, locks: &[Lock<'a>]) -> MergedPackage<'a> {
    let mut in_variants = Variants::NONE;
    let mut lines: Vec<(Variants, &str)> = package.0.iter().map(|line| (Variants::NONE, *line)).collect();
    for (place, lock) in locks.iter().enumerate() {
        let Some(same) = lock.packages.iter().find(|other| other.id() == package.id()) else { continue };
        in_variants.add(place);
        let mut next = 0;
        for line in &same.0 {
            // A line that is new (a dependency that needs no version in this variant) goes where this variant has it.
            let at = lines.iter().position(|(_, known)| known == line).unwrap_or_else(|| {
                lines.insert(next, (Variants::NONE, line));
                next
            });
            lines[at].0.add(place);
            next = at + 1;
        }
    }
    MergedPackage { name: package.name(), in_variants, lines }
}

impl Merged<'_> {
    /// The lockfile of the variant at `place`.
    fn of(&self, place: usize) -> String {
        let lines = self.packages.iter().flat_map(|package| &package.lines);
        let lines = lines.filter(|(variants, _)| variants.contains(place)).map(|(_, line)| *line);
        std::iter::once(self.head).chain(lines).collect()
    }

    /// A Liquid template that renders the lockfile of any variant, given `variant` (its letter), `project-name` and
    /// `predecessor` (the crate that the service sorts after, or an empty string).
    pub fn liquid(&self) -> String {
        let (own, others): (Vec<_>, Vec<_>) =
            self.packages.iter().partition(|package| package.name == names::NAME);
        let own: String = own.iter().map(|package| package.liquid(names::liquid)).collect();
        let mut out = format!("{{% capture own %}}{own}{{% endcapture %}}{}", self.head);
        let own_after = |name: &str| format!("{{% if predecessor == \"{name}\" %}}{{{{own}}}}{{% endif %}}");
        out += &own_after("");
        for (at, package) in others.iter().enumerate() {
            out += &package.liquid(str::to_owned);
            if others.get(at + 1).is_none_or(|next| next.name != package.name) {
                out += &own_after(package.name);
            }
        }
        out
    }
}

impl MergedPackage<'_> {
    fn liquid(&self, escape: impl Fn(&str) -> String) -> String {
        let runs = self.lines.chunk_by(|(one, _), (other, _)| one == other);
        let lines = |run: &[(Variants, &str)]| escape(&run.iter().map(|(_, line)| *line).collect::<String>());
        let text: String = runs.map(|run| run[0].0.guard(self.in_variants, &lines(run))).collect();
        self.in_variants.guard(Variants::ALL, &text)
    }
}
