#!/usr/bin/env bash
# Stands in for cargo-generate ($PROVE_GENERATOR) where services become one another, hundreds of times: what a call has
# made is kept ($PROVE_GENERATED), and copied for each call that differs only in where that goes. The template is the
# snapshot of the run, which nobody edits.
set -euo pipefail

call=()
while [ $# -gt 0 ]; do
    case $1 in
        --destination) to=$2 && shift ;;
        *) call+=("$1") ;;
    esac
    shift
done
kept=$PROVE_GENERATED/$(printf '%s\0' "${call[@]}" | sha256sum | cut -d ' ' -f 1)
if [ ! -d "$kept" ]; then
    made=$(mktemp -d "$PROVE_GENERATED/XXXXXX")
    "$PROVE_GENERATOR" "${call[@]}" --destination "$made"
    # The same from somebody else, meanwhile, is as good.
    mv --no-target-directory "$made" "$kept" || [ -d "$kept" ]
fi
cp --archive "$kept/." "$to"
