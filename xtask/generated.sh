#!/usr/bin/env bash
# Stands in for cargo-generate ($PROVE_GENERATOR) in the transitions between variants, which repeat the same calls
# hundreds of times: the output of a call is cached in $PROVE_GENERATED, and copied for each call that differs only in
# its destination. The cache can't go stale: the template is the snapshot of the run, which nobody edits.
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
    # A concurrent call may have cached the same output meanwhile, which is just as good.
    mv --no-target-directory "$made" "$kept" || [ -d "$kept" ]
fi
cp --archive "$kept/." "$to"
