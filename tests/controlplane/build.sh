#!/usr/bin/env bash
# Builds the control plane program if it does not exist, and prints its path as the only line on standard output.
#
# The program is cached in ${XDG_CACHE_HOME:-~/.cache}/spillway. Its name contains a hash of the sources in this folder, so
# that a change builds another one. With SPILLWAY_CONTROLPLANE=FILE the script prints FILE and builds nothing.
set -euo pipefail
shopt -s inherit_errexit # a failing command ends $(...) too

say() { printf '%s\n' "$*" >&2; }
fail() { say "tests/controlplane/build.sh: $*"; exit 1; }

if [[ -n ${SPILLWAY_CONTROLPLANE:-} ]]; then
  [[ -f $SPILLWAY_CONTROLPLANE && -x $SPILLWAY_CONTROLPLANE ]] ||
    fail "SPILLWAY_CONTROLPLANE=$SPILLWAY_CONTROLPLANE is not an executable file"
  realpath "$SPILLWAY_CONTROLPLANE"
  exit
fi

cd "$(dirname "${BASH_SOURCE[0]}")"
cache=${XDG_CACHE_HOME:-$HOME/.cache}/spillway
hash=$(cat -- *.go go.mod go.sum build.sh | sha256sum | cut -c1-12)
program=$cache/controlplane-$hash
# Marks the program as used, and removes programs that were not used for a week. Tests of another checkout may use a
# younger one.
tidy() {
  touch -c "$program" || true # a read-only cache is fine
  find "$cache" -maxdepth 1 -type f -name 'controlplane-*' -mtime +6 -delete || true
}
if [[ -x $program ]]; then
  tidy
  printf '%s\n' "$program"
  exit
fi

command -v go >/dev/null || fail "go is not in PATH. The control plane is a Go program: install Go 1.26 (https://go.dev/dl/)"
export CGO_ENABLED=0 GOWORK=off GOTOOLCHAIN=local
# Kubernetes 1.36 needs Go 1.26. With Go 1.27 it builds, but the API server serves a malformed OpenAPI document, and
# kubectl cannot validate objects (piraeusdatastore/piraeus-operator#1051). Other versions of Go download Go 1.26.8.
found=$(cd / && go env GOVERSION) # outside the module, which an older Go refuses
if [[ $found != go1.26* ]]; then
  export GOTOOLCHAIN=go1.26.8
  say "found $found, which downloads Go 1.26.8 for this build"
fi

mkdir -p "$cache"
log=$(mktemp "$cache/build-XXXXXX.log")
temporary=$cache/build-$hash.$$ # in the same directory, so that the final mv is atomic and concurrent builds are safe
pid=
cleanup() {
  if [[ -n $pid ]]; then kill "$pid" 2>/dev/null || true; fi
  rm -f "$temporary"
}
trap cleanup EXIT
trap 'rm -f "$log"; exit 130' INT
trap 'rm -f "$log"; exit 143' TERM

say "building etcd, kube-apiserver, kube-scheduler, kube-controller-manager, kubectl, helm and kwok into one program"
say "the first build takes some minutes (about 6 CPU-minutes and 2.5 GiB of memory), later ones take seconds"

# Kubernetes as a module does not contain its version, which kubectl and the feature gates need.
stamp() {
  local version minor package flags="-s -w"
  version=$(go list -m -f '{{.Version}}' k8s.io/kubernetes)
  minor=$(cut -d. -f2 <<<"$version")
  for package in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
    flags+=" -X $package.gitVersion=$version -X $package.gitMajor=1 -X $package.gitMinor=$minor -X $package.gitTreeState=clean"
  done
  printf '%s' "$flags"
}
build() {
  local flags
  flags=$(stamp)
  # -v prints each compiled package, for the progress lines. -buildvcs=false: commits of this repository do not matter.
  exec go build -v -trimpath -buildvcs=false -tags notest,grpcnotrace -ldflags "$flags" -o "$temporary" .
}
SECONDS=0
next=10
build >"$log" 2>&1 &
pid=$!
while kill -0 "$pid" 2>/dev/null; do
  sleep 1
  if ((SECONDS >= next)); then
    next=$((SECONDS + 10))
    downloads=$(grep -c '^go: downloading ' "$log" || true)
    say "  ${SECONDS}s: $downloads modules downloaded, $(($(wc -l <"$log") - downloads)) packages compiled"
  fi
done
code=0
wait "$pid" || code=$?
pid=
if ((code != 0)); then
  say "--- end of $log"
  tail -n 20 "$log" >&2
  fail "go build failed with exit code $code after ${SECONDS}s; the whole log: $log"
fi

mv "$temporary" "$program"
rm -f "$log"
tidy
say "built $program in ${SECONDS}s"
printf '%s\n' "$program"
