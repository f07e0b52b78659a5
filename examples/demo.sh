#!/usr/bin/env bash
# `make demo`: Spillway's webhook in front of a real API server and scheduler on this machine, with fake nodes.
#
# Needs what the build needs: Rust, Go, make, a C compiler, git. Leaves nothing behind; KEEP=1 leaves it all running.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bold='' reset='' colour=never
if [[ -t 1 && -z ${NO_COLOR:-} ]]; then bold=$'\e[1m' reset=$'\e[0m' colour=always; fi
title() { printf '\n%s== %s%s\n\n' "$bold" "$*" "$reset"; }

tmp=$(mktemp -d "${TMPDIR:-/tmp}/spillway-demo.XXXXXX")
doing='' log=''
# step WHAT [LOG]: what is going on, and the log that tells why it failed, beside kubectl's.
step() {
  doing=$1 log=${2:-}
  : >"$tmp/kubectl.log"
}
fail() { echo "$*" >&2; exit 1; }

stop_all() {
  trap - EXIT
  trap '' INT TERM
  exec 3>&- # the lifeline, see below: the control plane and the webhook end
  wait
}
# Ctrl-C goes to the children too, so the command that runs right now may seem to fail: then `finish` has begun already when
# this is called, and ends here.
interrupted() {
  stop_all
  rm -rf "$tmp"
  exit "$1"
}
finish() {
  local code=$?
  stop_all
  if ((code == 0)); then
    rm -rf "$tmp"
    exit
  fi
  {
    printf '\n%sdemo: failed: %s%s\n' "$bold" "$doing" "$reset"
    local file
    for file in "$log" "$tmp/kubectl.log"; do
      if [[ ! -s $file ]]; then continue; fi
      echo "the end of $file:"
      tail -n 15 "$file" | cut -c1-300 | sed 's/^/  /'
    done
    echo "all logs: $tmp/*.log $tmp/controlplane/*.log"
  } >&2
  exit "$code"
}
trap finish EXIT
trap 'interrupted 130' INT
trap 'interrupted 143' TERM

# poll SECONDS PID CMD...: repeat CMD until it succeeds, as long as process PID lives.
poll() {
  local end=$((SECONDS + $1)) pid=$2
  shift 2
  until "$@"; do
    kill -0 "$pid" 2>/dev/null || return 1
    ((SECONDS < end)) || return 1
    sleep 0.1
  done
}

# --- programs ---------------------------------------------------------------------------------------------------------

step "cargo build" "$tmp/cargo.log"
echo "building spillway (cargo build; minutes the first time)"
cargo build --locked --quiet 2>"$log"
spillway=${CARGO_TARGET_DIR:-target}/debug/spillway

step "building the control plane program"
controlplane=$(tests/controlplane/build.sh)
# What kubectl says goes to its log; what it says of a success, such as a warning of the webhook, is shown too.
k() {
  local code=0 words=$tmp/kubectl.$BASHPID
  "$controlplane" kubectl "$@" 2>"$words" 3>&- || code=$?
  cat "$words" >>"$tmp/kubectl.log"
  if ((code == 0)); then cat "$words" >&2; fi
  rm "$words"
  return "$code"
}

# --- control plane ----------------------------------------------------------------------------------------------------

# The lifeline: a pipe that only this script holds open (the children get 3>&-). When the script ends, in whatever way,
# the pipe closes, and the two programs that read from it stop.
mkfifo "$tmp/lifeline"

step "starting the control plane" "$tmp/up.log"
title "A Kubernetes control plane with three VMs and one virtual node"
"$controlplane" up --dir "$tmp/controlplane" --stop-with-stdin <"$tmp/lifeline" >"$tmp/up.json" 2>"$log" &
up=$!
exec 3>"$tmp/lifeline"
poll 120 "$up" test -s "$tmp/up.json"
export KUBECONFIG=$tmp/controlplane/admin.kubeconfig

step "creating the nodes" "$tmp/controlplane/kwok.log"
k apply -f examples/nodes.yaml >/dev/null
# Each node starts with the taint not-ready. If it left the virtual node first, pods would go there for that reason alone.
nodes_ready() {
  local taints
  taints=$(k get nodes -o jsonpath='{.items[*].spec.taints[*].key}') && [[ $taints != *not-ready* ]]
}
poll 30 "$up" nodes_ready
k get nodes -o custom-columns='NODE:.metadata.name,TYPE:.metadata.labels.type,CPU:.status.allocatable.cpu,TAINT:.spec.taints[*].key'

# --- webhook ----------------------------------------------------------------------------------------------------------

step "making a certificate" "$tmp/certs.log"
"$spillway" certs dev --out "$tmp/certs" >"$log" 2>&1

step "starting the webhook" "$tmp/webhook.log"
k create --dry-run=client -f manifests/base/configmap.yaml -o jsonpath='{.data.config\.yaml}' >"$tmp/config.yaml"
"$controlplane" tether -- "$spillway" webhook --config "$tmp/config.yaml" --log-format text --log-level info \
  --bind 127.0.0.1:0 --admin-bind 127.0.0.1:0 \
  --tls-cert-file "$tmp/certs/tls.crt" --tls-key-file "$tmp/certs/tls.key" \
  <"$tmp/lifeline" >"$log" 2>&1 3>&- &
webhook=$!
poll 30 "$webhook" grep -qs listening "$log" # port 0 above: the log tells which one it became
port=$(sed -n 's/.*listening.*webhook=127\.0\.0\.1:\([0-9]*\).*/\1/p' "$log" | head -n 1)
[[ -n $port ]] || fail "the log of the webhook does not tell its port"

step "installing manifests/overlays/local" "$tmp/webhook.log"
k kustomize manifests/overlays/local |
  sed -e "s|127.0.0.1:9443|127.0.0.1:$port|" -e "s|caBundle: Cg==|caBundle: $(base64 -w0 "$tmp/certs/ca.crt")|" |
  k apply -f - >/dev/null
for namespace in plain shop shop-peak; do
  k create namespace "$namespace" >/dev/null
  k -n "$namespace" apply -f examples/serviceaccount.yaml >/dev/null
done
k label namespace shop spillway.dev/burst=enabled >/dev/null
k label namespace shop-peak spillway.dev/burst=high-scale >/dev/null

step "waiting for the webhook's first decision" "$tmp/webhook.log"
decided() {
  local decision
  decision=$(k -n "$1" apply --dry-run=server -f examples/pod.yaml -o jsonpath='{.metadata.annotations.spillway\.dev/decision}') &&
    [[ -n $decision ]]
}
poll 20 "$webhook" decided shop
poll 20 "$webhook" decided shop-peak

# --- pods -------------------------------------------------------------------------------------------------------------

# admitted NAMESPACE FILE: the pod as the API server would store it, less what is different each time or kubectl's own.
admitted() {
  mkdir -p "$tmp/$1"
  k -n "$1" apply --dry-run=server -o yaml -f "examples/$2" |
    sed -E -e '/kubectl\.kubernetes\.io\/last-applied-configuration: \|/,+1d' \
      -e '/^  (creationTimestamp|generation|namespace|resourceVersion|uid):/d' \
      -e 's/kube-api-access-[a-z0-9]+/kube-api-access/' >"$tmp/$1/$2"
}
# compare NAMESPACE FILE: what Spillway does to the pod in NAMESPACE.
compare() {
  local code=0
  step "comparing $2 with and without Spillway" "$tmp/webhook.log"
  admitted plain "$2"
  admitted "$1" "$2"
  (cd "$tmp" && GIT_CONFIG_GLOBAL=/dev/null GIT_CONFIG_NOSYSTEM=1 \
    git --no-pager diff --no-index --no-prefix --color="$colour" "plain/$2" "$1/$2") >"$tmp/diff" || code=$?
  ((code == 1)) || fail "the webhook did not change $2 in namespace $1"
  sed 1,2d "$tmp/diff" # git's own two lines
}

title "A pod as its owner writes it: examples/pod.yaml"
cat examples/pod.yaml
title "The same pod in a namespace labelled spillway.dev/burst=enabled (dry run; - without, + with Spillway)"
compare shop pod.yaml
title "... and with spillway.dev/burst=high-scale"
compare shop-peak pod.yaml
title "What the owner wrote stays: examples/pod-own-toleration.yaml"
compare shop pod-own-toleration.yaml
title "A pod that would not run on a virtual node stays on VMs: examples/pod-windows.yaml"
compare shop pod-windows.yaml

step "spillway explain" "$tmp/explain.log"
title "The same answer without a cluster: spillway explain"
echo "\$ spillway explain -f examples/deployment.yaml -f examples/nodes.yaml --service-account examples/serviceaccount.yaml --profile high-scale"
"$spillway" explain -f examples/deployment.yaml -f examples/nodes.yaml --service-account examples/serviceaccount.yaml --profile high-scale 2>"$log"

# --- overflow ---------------------------------------------------------------------------------------------------------

step "running examples/deployment.yaml" "$tmp/webhook.log"
title "30 pods of 500m CPU on VMs with room for 24 (really created and scheduled)"
k -n shop apply -f examples/deployment.yaml >/dev/null
k -n shop rollout status deployment/web --timeout=60s | tail -n 1
echo

step "counting the pods" "$tmp/controlplane/kube-scheduler.log"
k -n shop get pods -o jsonpath='{range .items[*]}{.spec.nodeName}{"\n"}{end}' >"$tmp/placed"
# count KIND SELECTOR: one line for each node that the label selector matches.
count() {
  local node
  for node in $(k get nodes -l "$2" -o jsonpath='{.items[*].metadata.name}'); do
    printf '%-16s %-14s %4d\n' "$node" "$1" "$(grep -cx "$node" "$tmp/placed")"
  done
}
printf '%-16s %-14s %s\n' NODE KIND PODS
count VM 'type!=virtual-kubelet'
count 'virtual node' type=virtual-kubelet
bound=$(grep -c . "$tmp/placed" || true)
virtual=$(grep -c '^virtualnode-0$' "$tmp/placed" || true)
echo
((bound == 30)) || fail "$bound pods are bound to nodes, not 30"
((virtual >= 6)) || fail "$virtual pods are on the virtual node, but the VMs have no room for 6 of them"
if ((virtual == 6)); then
  echo "The VMs are full, and only the other 6 pods are on the virtual node. A preference alone does not promise this: it can leak."
else
  echo "A preference alone can leak: $((virtual - 6)) of these pods went to the virtual node although a VM had room."
fi

# --- end --------------------------------------------------------------------------------------------------------------

if [[ ${KEEP:-} == 1 ]]; then
  # From here on the lifeline is in the hands of a process that does nothing else.
  sleep infinity >"$tmp/lifeline" 2>/dev/null 3>&- &
  title "Left running (KEEP=1)"
  echo "export KUBECONFIG=$KUBECONFIG"
  echo "alias kubectl='$controlplane kubectl'    # if you have none"
  echo "logs: $tmp/webhook.log $tmp/controlplane/*.log"
  echo "stop: kill $! && sleep 1 && rm -r $tmp"
  trap - EXIT
  exit
fi
printf '\ndone in %d s, everything is stopped and removed\n' "$SECONDS"
