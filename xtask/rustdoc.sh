#!/bin/sh
# `cargo test --doc` calls this in place of rustdoc, with everything that the library's examples are linked with. It
# builds the documentation of the library and of the program instead: `cargo doc` would compile each dependency again.
set -eu

pages() {
    file=$1 crate=$2 kind=$3
    shift 3
    left=$#
    while [ "$left" -gt 0 ]; do
        case $1 in
            --test) ;;
            src/lib.rs) set -- "$@" "$file" ;;
            service) set -- "$@" "$crate" ;;
            lib) set -- "$@" "$kind" ;;
            *) set -- "$@" "$1" ;;
        esac
        shift
        left=$((left - 1))
    done
    rustdoc "$@" --document-private-items --deny warnings --out-dir "$CARGO_TARGET_DIR/doc"
}

pages src/lib.rs service lib "$@"
pages src/main.rs program bin "$@"
