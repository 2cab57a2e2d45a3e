//! What a run has to prove. The plan is made before anything runs, and the result is held
//! against it, so that nothing drops out in silence.

use std::collections::VecDeque;

use crate::variant::Variant;

use super::check::Subject;
use super::steps::{self, Step};
use super::template;

/// A name for each variant's service: of the shapes that people choose, so that none of them is
/// only ever proven as `orders`.
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

/// The variants and steps of a run.
pub struct Plan {
    pub variants: Vec<Variant>,
    pub steps: Vec<Step>,
    /// Whether the template's own checks run.
    pub template: bool,
}

impl Plan {
    /// The template and all variants when nothing else is asked for.
    #[must_use]
    pub fn new(asked: &[Variant], template: bool, quick: bool) -> Self {
        let all = asked.is_empty() && !template;
        let variants = Variant::all().filter(|one| all || asked.contains(one)).collect();
        let steps = steps::ALL.iter().filter(|step| !(quick && step.is_drill())).copied().collect();
        Self { variants, steps, template: all || template }
    }

    #[must_use]
    pub fn names_as_json(&self) -> String {
        let names: Vec<String> = self.variants.iter().map(ToString::to_string).collect();
        serde_json::json!(names).to_string()
    }

    /// How many checks must have passed at the end.
    pub(super) fn checks(&self) -> usize {
        let own = if self.template { template::STEPS.len() } else { 0 };
        self.variants.len() * self.steps.len() + own
    }

    /// What there is to prove: the variants, the costliest first so that no lane ends long after
    /// the other, then the template itself, whose build the full variant's has prepared.
    pub(super) fn subjects(&self) -> VecDeque<Subject> {
        let named = Variant::all().zip(NAMES).enumerate();
        let planned = named.filter(|(_, (variant, _))| self.variants.contains(variant));
        let mut subjects: VecDeque<Subject> = planned
            .map(|(place, (variant, name))| Subject::variant(place, variant, name, &self.steps))
            .collect();
        subjects.make_contiguous().reverse();
        if self.template {
            subjects.push_back(Subject::template(NAMES.len(), template::STEPS));
        }
        subjects
    }
}
