#!/usr/bin/env bash
# The compiler that cargo uses for a service's own crates: clippy's driver lints and compiles them in one pass. After
# a separate `cargo clippy`, each dependency and the service would be compiled a second time. (Not sh: dash doesn't
# pass CARGO_BIN_EXE_<name> on to the programs that it starts if the name contains a hyphen.)
exec clippy-driver "$@" -D warnings --force-warn unused_crate_dependencies
