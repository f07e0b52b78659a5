#!/usr/bin/env bash
# Compares the public contract of two revisions byte by byte: decisions, patches, codes of reasons and findings, exit codes, metrics,
# and the configuration file. Prose may differ.
#
# Usage: tests/contract.sh REVISION [REVISION]   (default of the second: the working tree)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

old=${1:?usage: tests/contract.sh REVISION [REVISION]}
new=${2:-}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# Copies the files that define the contract to a directory.
checkout() { # REVISION DIRECTORY
  mkdir -p "$2"
  local paths=(tests/golden tests/golden_identity docs/config.schema.json docs/reasons.md docs/identity.md manifests/monitoring)
  if [[ -n $1 ]]; then git archive "$1" "${paths[@]}" | tar -x -C "$2"; else tar -c "${paths[@]}" | tar -x -C "$2"; fi
}

# Prints the contract without prose.
contract() { # DIRECTORY
  cd "$1"
  for file in tests/golden/*.expected.yaml; do
    echo "== $file"
    # A reason is `- "Code: detail"`, a note `- Code`. The detail is prose.
    sed -E 's/^(- "?[A-Z][A-Za-z0-9]+):.*$/\1/' "$file"
  done
  for file in tests/golden_identity/*/expected.txt; do
    echo "== $file"
    # The table, one line for each finding with its id and object, and the exit code.
    sed -nE '/^  NAMESPACE/,/^$/p; s/^([✗!?✓⚠·i]+ [A-Z][0-9]+ [^:]*):.*$/\1/p; /^exit code/p' "$file"
  done
  echo "== configuration"
  grep -v '"description"' docs/config.schema.json
  echo "== reasons"
  grep '^## ' docs/reasons.md
  echo "== findings"
  grep '^### ' docs/identity.md
  echo "== metrics"
  grep -rhoE 'spillway_[a-z_]+' manifests/monitoring | sort -u
}

checkout "$old" "$scratch/old"
checkout "$new" "$scratch/new"
(contract "$scratch/old") >"$scratch/old.txt"
(contract "$scratch/new") >"$scratch/new.txt"
if diff -u --label "$old" --label "${new:-working tree}" "$scratch/old.txt" "$scratch/new.txt"; then
  echo "$(grep -c '^== ' "$scratch/new.txt") parts, $(wc -l <"$scratch/new.txt") lines: byte-equal"
else
  echo "tests/contract.sh: the contract differs" >&2
  exit 1
fi
