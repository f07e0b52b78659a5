#!/usr/bin/env bash
# Runs all tests, and prints how long each part took.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Tests on the control plane mostly wait, so more of them run at the same time than the machine has cores.
cluster_threads=6
# Property tests try the same values each time, so that only a change of the code can make a test fail.
# `make fuzz` tries other values.
export PROPTEST_RNG_SEED=1

durations=()
part() { # NAME COMMAND...
  local name=$1 start=$SECONDS code=0
  shift
  "$@" || code=$?
  durations+=("$(printf '%5d s  %s' $((SECONDS - start)) "$name")")
  return "$code"
}
print_durations() { printf '%s\n' '' 'Time taken:' "${durations[@]}" "$(printf '%5d s  total' "$SECONDS")" >&2; }
trap print_durations EXIT

control_plane() {
  SPILLWAY_CONTROLPLANE=$(tests/controlplane/build.sh)
  export SPILLWAY_CONTROLPLANE
}
compilation() {
  cargo test --locked --workspace --no-run && cargo test --locked --test cluster --no-run
}

part 'build of the control plane' control_plane
part 'compilation' compilation
part 'unit, offline and documentation tests' cargo test --locked --workspace
part 'tests on the control plane (tests/cluster)' cargo test --locked --test cluster -- --test-threads="$cluster_threads"
