//! Tests of updating a service and changing its answers, with the real `slipway`, cargo-generate and git.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "updating/support.rs"]
mod support;

#[path = "updating/conflicts.rs"]
mod conflicts;
#[path = "updating/faults.rs"]
mod faults;
#[path = "updating/refusals.rs"]
mod refusals;
#[path = "updating/surroundings.rs"]
mod surroundings;
#[path = "updating/versions.rs"]
mod versions;
#[path = "updating/ways.rs"]
mod ways;
