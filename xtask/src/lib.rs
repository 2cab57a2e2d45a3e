//! The maintainers' tooling, as a library so that the tests in `tests/` can use it.

pub mod bench;
pub mod children;
pub mod demo;
pub mod generate;
mod http;
pub mod lock;
pub mod machine;
pub mod owner;
pub mod prove;
mod servers;
pub mod tools;
pub mod variant;
pub mod weave;
