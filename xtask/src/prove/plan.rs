//! What a run has to prove. The plan is made before anything runs, and the result is held
//! against it, so that nothing drops out in silence.

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
    /// The template's own checks run only with all variants: they say nothing about a single one.
    pub template: bool,
}

impl Plan {
    /// All variants when `asked` is empty.
    #[must_use]
    pub fn new(asked: &[Variant], quick: bool) -> Self {
        let variants = Variant::all().filter(|one| asked.is_empty() || asked.contains(one)).collect();
        let steps = steps::ALL.iter().filter(|step| !(quick && step.is_drill())).copied().collect();
        Self { variants, steps, template: asked.is_empty() }
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

    /// The `place`-th thing to prove: the variants, the costliest first so that no lane ends long
    /// after the other, then the template itself, whose build the full variant's has prepared.
    pub(super) fn subject(&self, place: usize) -> Option<Subject> {
        let count = self.variants.len();
        if place < count {
            let variant = self.variants[count - 1 - place];
            let name = Variant::all().zip(NAMES).find(|(one, _)| *one == variant)?.1;
            return Some(Subject::variant(count - 1 - place, variant, name, &self.steps));
        }
        (self.template && place == count).then(|| Subject::template(place, template::STEPS))
    }
}
