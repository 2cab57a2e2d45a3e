//! The maintainers' commands: see CONTRIBUTING.md.

fn main() {}
