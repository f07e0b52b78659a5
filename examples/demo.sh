#!/usr/bin/env bash
# `make demo`: runs webhook and controller with a real API server and scheduler on this machine. The nodes are fake.
#
# Needs what the build needs: Rust, Go, make, a C compiler, git. Removes everything at the end. KEEP=1 keeps it running.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bold='' reset='' colour=never
if [[ -t 1 && -z ${NO_COLOR:-} ]]; then bold=$'\e[1m' reset=$'\e[0m' colour=always; fi
title() { printf '\n%s== %s%s\n\n' "$bold" "$*" "$reset"; }

tmp=$(mktemp -d "${TMPDIR:-/tmp}/spillway-demo.XXXXXX")
doing='' log=''
# step WHAT [LOG]: sets the current step, and the log to show if it fails (in addition to kubectl's).
step() {
  doing=$1 log=${2:-}
  : >"$tmp/kubectl.log"
}
fail() { echo "$*" >&2; exit 1; }

stop_all() {
  trap - EXIT
  trap '' INT TERM
  exec 3>&- # closes the lifeline (see below): the control plane and the webhook stop
  wait
}
# Ctrl-C also reaches the children, so the current command may fail. In this case `finish` has already started, and this function stops it.
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
      echo "last lines of $file:"
      tail -n 15 "$file" | cut -c1-300 | sed 's/^/  /'
    done
    echo "all logs: $tmp/*.log $tmp/controlplane/*.log"
  } >&2
  exit "$code"
}
trap finish EXIT
trap 'interrupted 130' INT
trap 'interrupted 143' TERM

# poll SECONDS PID CMD...: repeats CMD until it succeeds, while process PID runs.
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
echo "Building spillway with cargo (the first build takes minutes)"
cargo build --locked --quiet 2>"$log"
spillway=${CARGO_TARGET_DIR:-target}/debug/spillway

step "building the control plane program"
controlplane=$(tests/controlplane/build.sh)
# Writes kubectl's messages to its log. Also prints the messages of successful commands, such as warnings of the webhook.
k() {
  local code=0 words=$tmp/kubectl.$BASHPID
  "$controlplane" kubectl "$@" 2>"$words" 3>&- || code=$?
  cat "$words" >>"$tmp/kubectl.log"
  if ((code == 0)); then cat "$words" >&2; fi
  rm "$words"
  return "$code"
}

# --- control plane ----------------------------------------------------------------------------------------------------

# The lifeline is a pipe that only this script keeps open (the children get 3>&-). When the script ends, the pipe closes.
# Then the programs that read from the pipe stop.
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
# Each node starts with the taint not-ready. If the virtual node lost the taint first, the scheduler would prefer the virtual node.
nodes_ready() {
  local taints
  taints=$(k get nodes -o jsonpath='{.items[*].spec.taints[*].key}') && [[ $taints != *not-ready* ]]
}
poll 30 "$up" nodes_ready
k get nodes -o custom-columns='NODE:.metadata.name,TYPE:.metadata.labels.type,CPU:.status.allocatable.cpu,TAINT:.spec.taints[*].key'

# --- Spillway -----------------------------------------------------------------------------------------------------------

# Same installation as in a cluster, except for the webhook's address: there is no Service here.
k create --dry-run=client -f manifests/base/configmap.yaml -o jsonpath='{.data.config\.yaml}' >"$tmp/config.yaml"
k kustomize manifests/overlays/local >"$tmp/install.yaml"
step "installing manifests/overlays/local" "$tmp/controlplane/kube-apiserver.log"
k create namespace spillway-system >/dev/null

# start PART FLAGS...: starts the webhook or the controller. It stops when the lifeline closes.
start() {
  local part=$1
  shift
  step "starting the $part" "$tmp/$part.log"
  "$controlplane" tether -- "$spillway" "$part" --config "$tmp/config.yaml" --pod-name "$part" --log-format text --log-level info \
    --admin-bind 127.0.0.1:0 --health-probe-bind 127.0.0.1:0 "$@" <"$tmp/lifeline" >"$log" 2>&1 3>&- &
  pid=$!
  poll 30 "$pid" grep -qs listening "$log"
}
start controller
start webhook --bind 127.0.0.1:0
webhook=$pid
port=$(sed -n 's/.*listening.*webhook=127\.0\.0\.1:\([0-9]*\).*/\1/p' "$log" | head -n 1) # the log has the port that the system chose
[[ -n $port ]] || fail "the log of the webhook does not contain its port"

step "installing manifests/overlays/local" "$tmp/webhook.log"
sed "s|127.0.0.1:9443|127.0.0.1:$port|" "$tmp/install.yaml" | k apply -f - >/dev/null
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

# admitted NAMESPACE FILE: the pod as the API server would store it, without fields that differ each time and kubectl's own.
admitted() {
  mkdir -p "$tmp/$1"
  k -n "$1" apply --dry-run=server -o yaml -f "examples/$2" |
    sed -E -e '/kubectl\.kubernetes\.io\/last-applied-configuration: \|/,+1d' \
      -e '/^  (creationTimestamp|generation|namespace|resourceVersion|uid):/d' \
      -e 's/kube-api-access-[a-z0-9]+/kube-api-access/' >"$tmp/$1/$2"
}
# compare NAMESPACE FILE: shows Spillway's changes to the pod in NAMESPACE.
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

title "The pod that a user writes: examples/pod.yaml"
cat examples/pod.yaml
title "The same pod in a namespace labelled spillway.dev/burst=enabled (dry run: - without, + with Spillway)"
compare shop pod.yaml
title "... and with spillway.dev/burst=high-scale"
compare shop-peak pod.yaml
title "Spillway keeps what the user wrote: examples/pod-own-toleration.yaml"
compare shop pod-own-toleration.yaml
title "A pod that cannot run on a virtual node stays on VMs: examples/pod-windows.yaml"
compare shop pod-windows.yaml

step "spillway explain" "$tmp/explain.log"
title "The same decision without a cluster: spillway explain"
echo "\$ spillway explain -f examples/deployment.yaml -f examples/nodes.yaml --service-account examples/serviceaccount.yaml --profile high-scale"
"$spillway" explain -f examples/deployment.yaml -f examples/nodes.yaml --service-account examples/serviceaccount.yaml --profile high-scale 2>"$log"

# --- overflow ---------------------------------------------------------------------------------------------------------

step "waiting for the last-resort taint" "$tmp/controller.log"
is_last_resort() { [[ $(k get node virtualnode-0 -o jsonpath='{.spec.taints[*].key}') == *spillway.dev/last-resort* ]]; }
poll 30 "$webhook" is_last_resort

title "Scaling a Deployment 1 → 30 → 20: each pod requests 500m CPU, and the VMs have room for 24 (real pods, real scheduler)"
placed() { k -n shop get pods -l app=web -o jsonpath='{range .items[*]}{.spec.nodeName}{"\n"}{end}' >"$tmp/placed"; }
# all_placed N: succeeds if N pods exist and each pod has a node.
all_placed() { placed && (($(grep -c . "$tmp/placed") == $1 && $(wc -l <"$tmp/placed") == $1)); }
on() { grep -cx "$1" "$tmp/placed" || true; }
# show N: waits for N pods and prints the number on each node.
show() {
  local node row
  step "waiting for $1 pods" "$tmp/controlplane/kube-scheduler.log"
  poll 60 "$webhook" all_placed "$1"
  row=$(printf '%-10s' "$1")
  for node in vm-1 vm-2 vm-3; do row+=$(printf '%-8s' "$(on "$node")"); done
  echo "$row$(on virtualnode-0)"
}
printf '%-10s%-8s%-8s%-8s%s\n' PODS vm-1 vm-2 vm-3 virtualnode-0
sed 's/replicas: 30/replicas: 1/' examples/deployment.yaml | k -n shop apply -f - >/dev/null
show 1
k -n shop scale deployment/web --replicas=30 >/dev/null
show 30
(($(on virtualnode-0) == 6)) || fail "the VMs have room for 24 pods, so the virtual node must have 6, but it has $(on virtualnode-0)"
pod=$(k -n shop get pods --field-selector spec.nodeName=virtualnode-0 -o jsonpath='{.items[0].metadata.name}')
"$spillway" explain "pod/$pod" -n shop >"$tmp/explained" 2>"$tmp/explain.log"
k -n shop scale deployment/web --replicas=20 >/dev/null
show 20
(($(on virtualnode-0) == 0)) || fail "the virtual node still has $(on virtualnode-0) pods after the scale-in"
echo
echo "The scheduler filled the VMs first. The scale-in removed the pods on the virtual node first."
title "Why one of the 30 pods ran on the virtual node: spillway explain pod/$pod -n shop"
head -n 2 "$tmp/explained"

# --- end --------------------------------------------------------------------------------------------------------------

if [[ ${KEEP:-} == 1 ]]; then
  # An idle process keeps the lifeline open from now on.
  sleep infinity >"$tmp/lifeline" 2>/dev/null 3>&- &
  title "Still running (KEEP=1)"
  echo "export KUBECONFIG=$KUBECONFIG"
  echo "alias kubectl='$controlplane kubectl'    # if kubectl is not installed"
  echo "logs: $tmp/webhook.log $tmp/controlplane/*.log"
  echo "stop: kill $! && sleep 1 && rm -r $tmp"
  trap - EXIT
  exit
fi
printf '\ndone in %d s, everything is stopped and removed\n' "$SECONDS"
