//! What a run has to prove. The plan is made before anything runs, and the result is compared with it, so that
//! nothing is dropped silently.

use anyhow::{Result, bail, ensure};

use crate::variant::Variant;

use super::check::Subject;
use super::drills;
use super::steps::{self, Step};
use super::template;
use super::transitions;

/// A name for each variant's service, in the various forms that people choose, so that not all are proven as `orders`.
const NAMES: [&str; 16] = [
    "orders",
    "billing-api",
    "notes",
    "parcel-tracker",
    "a1",
    "mail-relay",
    "ledger2",
    "event-log",
    "user-directory",
    "stock",
    "search-index",
    "fleet",
    "tickets",
    "x-ray",
    "weather-report",
    "everything-on",
];

/// Which steps a run takes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// The usual ones, or some of them.
    Usual,
    Fuzz,
    Images,
    Features,
    Files,
    Transitions,
}

impl Kind {
    /// `what` with the kind of run, such as `report` or `report-fuzz`.
    pub fn named(self, what: &str) -> String {
        match self {
            Self::Usual => what.to_owned(),
            Self::Fuzz => format!("{what}-fuzz"),
            Self::Images => format!("{what}-images"),
            Self::Features => format!("{what}-features"),
            Self::Files => format!("{what}-files"),
            Self::Transitions => format!("{what}-transitions"),
        }
    }
}

/// What a maintainer asks for.
#[derive(Default)]
pub struct Asked {
    /// All when empty.
    pub variants: Vec<Variant>,
    pub template: bool,
    /// Without the drills.
    pub quick: bool,
    /// All when empty. Otherwise only these run, and the steps that they need.
    pub drills: Vec<String>,
    /// How many times each drill runs.
    pub times: u32,
}

/// The variants and steps of a run.
pub struct Plan {
    /// Names its report and logs, so that they don't replace those of a run of another kind.
    pub kind: Kind,
    pub variants: Vec<Variant>,
    /// The variant that each of `variants` is changed from; empty if they are generated.
    pub from: Vec<Variant>,
    pub steps: Vec<Step>,
    /// Whether the template's own checks run.
    pub template: bool,
    /// The names of the drills to run; empty for all.
    pub drills: Vec<String>,
    pub times: u32,
}

impl Plan {
    /// The template and all variants, unless something else is asked for.
    ///
    /// # Errors
    /// When there is no drill of that name, or none of those asked for runs in a variant that was asked for.
    pub fn new(asked: Asked) -> Result<Self> {
        let Asked { variants, template, quick, drills, times } = asked;
        for name in &drills {
            ensure!(drills::names().any(|known| known == name), "no drill is named `{name}`");
        }
        let all = variants.is_empty() && !template;
        let wanted = |step: &&Step| match (quick, drills.is_empty()) {
            (true, _) => !step.is_drill(),
            (false, true) => true,
            (false, false) => step.is_drill() || step.makes_the_program(),
        };
        let steps = steps::ALL.iter().filter(wanted).copied().collect();
        let drilled = |one: &Variant| drills.is_empty() || drills::any(&drills, *one);
        if let Some(idle) = variants.iter().find(|one| !drilled(one)) {
            bail!("none of these drills runs in {idle}");
        }
        let variants = Variant::all().filter(|one| (all || variants.contains(one)) && drilled(one)).collect();
        let template = (all || template) && drills.is_empty();
        Ok(Self { kind: Kind::Usual, variants, from: Vec::new(), steps, template, drills, times })
    }

    /// The API document only: of the base and the full variant, unless others are asked for.
    #[must_use]
    pub fn fuzz(asked: &[Variant]) -> Self {
        Self::of_extremes(Kind::Fuzz, asked, &steps::FUZZ)
    }

    /// The image and the workflows: of the base and the full variant, unless others are asked for.
    #[must_use]
    pub fn images(asked: &[Variant]) -> Self {
        Self::of_extremes(Kind::Images, asked, &steps::IMAGES)
    }

    /// The features of dependencies: of the base and the full variant, unless others are asked for.
    #[must_use]
    pub fn features(asked: &[Variant]) -> Self {
        Self::of_extremes(Kind::Features, asked, &steps::FEATURES)
    }

    fn of_extremes(kind: Kind, asked: &[Variant], steps: &[Step]) -> Self {
        let wanted = |one: &Variant| if asked.is_empty() { one.is_extreme() } else { asked.contains(one) };
        let variants = Variant::all().filter(wanted).collect();
        Self {
            kind,
            variants,
            from: Vec::new(),
            steps: steps.to_vec(),
            template: false,
            drills: Vec::new(),
            times: 1,
        }
    }

    /// What needs no build, including the files that no compiler reads: of all variants, unless some are asked for.
    #[must_use]
    pub fn files(asked: &[Variant]) -> Self {
        let variants = Variant::all().filter(|one| asked.is_empty() || asked.contains(one)).collect();
        let steps = steps::ALL.iter().take_while(|step| !step.lints());
        Self {
            kind: Kind::Files,
            variants,
            from: Vec::new(),
            steps: steps.copied().collect(),
            template: false,
            drills: Vec::new(),
            times: 1,
        }
    }

    /// Services with their owners' edits, changed from one variant to another.
    #[must_use]
    pub fn transitions() -> Self {
        let (from, variants) = transitions::compiled().unzip();
        let steps = steps::TRANSITIONS.to_vec();
        Self { kind: Kind::Transitions, variants, from, steps, template: false, drills: Vec::new(), times: 1 }
    }

    /// Whether the run needs the fuzzer.
    pub(super) fn fuzzes(&self) -> bool {
        self.steps.iter().any(Step::is_fuzz)
    }

    /// Whether the run needs a collector.
    pub(super) fn traces(&self) -> bool {
        let asked = self.drills.is_empty()
            || self.drills.iter().any(|name| drills::COLLECTOR.contains(&name.as_str()));
        asked && self.steps.iter().any(Step::is_drill) && self.variants.contains(&Variant::FULL)
    }

    /// Whether the run counts instructions.
    pub(super) fn counts(&self) -> bool {
        let asked = self.drills.is_empty() || self.drills.iter().any(|name| name == drills::BUDGET);
        asked
            && self.steps.iter().any(Step::is_drill)
            && self.variants.iter().any(|variant| variant.is_extreme())
    }

    /// Whether the run needs the tools that build images.
    pub(super) fn makes_images(&self) -> bool {
        self.steps.iter().any(Step::makes_images)
    }

    /// Whether the run needs the linters for files that no compiler reads, or the Node.js that comes with them.
    pub(super) fn looks_at_files(&self) -> bool {
        let runs_scripts = self.drills.iter().any(|name| name == drills::DOCS);
        self.template || runs_scripts || self.steps.iter().any(Step::looks_at_files)
    }

    #[must_use]
    pub fn names_as_json(&self) -> String {
        let names: Vec<String> = self.variants.iter().map(ToString::to_string).collect();
        serde_json::json!(names).to_string()
    }

    /// How many checks must have passed at the end.
    #[must_use]
    pub fn checks(&self) -> usize {
        let own = if self.template { template::STEPS.len() } else { 0 };
        self.variants.len() * self.steps.len() + own
    }

    /// What to prove, in order: the full variant first, the template itself last, when its dependencies are built.
    pub(super) fn subjects(&self) -> Vec<Subject> {
        if !self.from.is_empty() {
            let pairs = self.from.iter().zip(&self.variants).enumerate();
            return pairs
                .map(|(place, (from, to))| Subject::transition(place, *from, *to, &self.steps))
                .collect();
        }
        let named = Variant::all().zip(NAMES).enumerate();
        let planned = named.filter(|(_, (variant, _))| self.variants.contains(variant));
        let mut subjects: Vec<Subject> = planned
            .map(|(place, (variant, name))| Subject::variant(place, variant, name, &self.steps))
            .collect();
        subjects.reverse();
        if self.template {
            subjects.push(Subject::template(NAMES.len(), template::STEPS));
        }
        subjects
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
mod tests {
    use super::{Asked, Plan, Variant, drills};

    /// Counting needs an optimised build of its own, which takes long.
    #[test]
    fn instructions_are_counted_only_where_their_drill_runs() {
        let counts = |variants: &[&str], quick, drills: &[&str]| {
            let variants = variants.iter().map(|name| name.parse::<Variant>().unwrap()).collect();
            let drills = drills.iter().map(|name| (*name).to_owned()).collect();
            Plan::new(Asked { variants, quick, drills, times: 1, template: false }).unwrap().counts()
        };
        assert!(counts(&[], false, &[]) && counts(&["base"], false, &[]));
        assert!(counts(&["base"], false, &[drills::BUDGET]));
        assert!(!counts(&["base"], true, &[]));
        assert!(!counts(&["base"], false, &["logs only JSON"]));
        assert!(!counts(&["redis"], false, &[]));
        assert!(!Plan::fuzz(&[]).counts() && !Plan::transitions().counts());
    }
}
