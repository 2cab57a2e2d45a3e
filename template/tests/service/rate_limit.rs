//! Rate limits.

use crate::app::Variables;

/// More than any test asks for: most tests are not about limits.
pub const UNLIMITED: Variables = &[
    ("APP__RATE_LIMIT__PER_CLIENT_PER_SECOND", "1000000"),
    ("APP__RATE_LIMIT__PER_CLIENT_BURST", "1000000"),
    ("APP__RATE_LIMIT__WRITES_PER_SECOND", "1000000"),
    ("APP__RATE_LIMIT__WRITES_BURST", "1000000"),
];
