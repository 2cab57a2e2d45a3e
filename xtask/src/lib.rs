//! The maintainers' tooling, as a library so that the tests in `tests/` can use it.

pub mod generate;
pub mod lock;
pub mod variant;
pub mod weave;
