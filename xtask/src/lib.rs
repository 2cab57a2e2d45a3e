//! The maintainers' tooling, as a library so that the tests in `tests/` can use it.

pub mod variant;
