#!/usr/bin/env bash
# cargo's compiler of a service's own crates, as clippy has it: one pass finds what there is to mend, and makes the
# program. After `cargo clippy`, each dependency and the service would be compiled once more. (Not sh: dash keeps
# CARGO_BIN_EXE_<name> from what it starts where that name has a dash.)
exec clippy-driver "$@" -D warnings --force-warn unused_crate_dependencies
