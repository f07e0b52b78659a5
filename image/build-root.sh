#!/usr/bin/env bash
# Assembles the root of the image in target/image-root, and checks that the program runs with only these files.
#
# CA_BUNDLE=FILE names the certificate authorities of public sites (by default the system's). The check needs curl, and root or
# unprivileged user namespaces.
set -euo pipefail
umask 022
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf '%s\n' "$*" >&2; }
fail() { say "image/build-root.sh: $*"; exit 1; }

bundle=${CA_BUNDLE:-/etc/ssl/certs/ca-certificates.crt}
[[ -s $bundle ]] || fail "$bundle is missing: install ca-certificates, or set CA_BUNDLE=FILE"
command -v curl >/dev/null || fail "curl is missing"

# --- assemble ---------------------------------------------------------------------------------------------------------

# With an explicit target, the flags do not apply to build scripts and procedural macros, which cannot be linked statically (https://doc.rust-lang.org/reference/linkage.html#static-and-dynamic-c-runtimes).
target=$(rustc -vV | sed -n 's/^host: //p')
say "building a static release for $target; this takes some minutes"
RUSTFLAGS="-C target-feature=+crt-static" cargo build --locked --release --target "$target"

root=target/image-root # the Containerfile copies this directory
rm -rf "$root"
mkdir -p "$root/etc/ssl/certs"
install -m 755 "${CARGO_TARGET_DIR:-target}/$target/release/spillway" "$root/spillway"
install -m 644 "$bundle" "$root/etc/ssl/certs/ca-certificates.crt"
echo 'nonroot:x:65532:65532::/:/spillway' >"$root/etc/passwd"
echo 'nonroot:x:65532:' >"$root/etc/group"
chmod 644 "$root/etc/passwd" "$root/etc/group"

# --- check ------------------------------------------------------------------------------------------------------------

tmp=$(mktemp -d "${TMPDIR:-/tmp}/spillway-image.XXXXXX")
webhook=
cleanup() {
  if [[ -n $webhook ]]; then kill "$webhook" 2>/dev/null || true; fi
  rm -rf "$tmp"
}
trap cleanup EXIT
cp -R "$root/." "$tmp/root"
chmod 755 "$tmp" "$tmp/root"
# The webhook needs a cluster. This API server never responds.
cat >"$tmp/root/kubeconfig" <<'KUBECONFIG'
apiVersion: v1
kind: Config
current-context: none
clusters: [{name: none, cluster: {server: "https://127.0.0.1:1"}}]
users: [{name: none, user: {}}]
contexts: [{name: none, context: {cluster: none, user: none}}]
KUBECONFIG

# inside ARGS...: runs the program in the root, as the image's user where that is possible.
if ((EUID == 0)); then
  inside() { exec env -i KUBECONFIG=/kubeconfig "$(command -v chroot)" --userspec=65532:65532 "$tmp/root" /spillway "$@"; }
else
  inside() { exec env -i KUBECONFIG=/kubeconfig "$(command -v unshare)" --user --map-root-user --root="$tmp/root" --wd=/ /spillway "$@"; }
fi

version=$(inside --version) || fail "the program does not run in an empty root"
[[ $version == "spillway "* ]] || fail "--version prints: $version"
(inside config show) | grep -q '^kind: SpillwayConfiguration$' || fail "config show does not show the configuration"

: >"$tmp/log" # grep needs the file
(inside webhook --pod-name image --self-signed --bind 127.0.0.1:0 --admin-bind 127.0.0.1:0 --log-format text) >"$tmp/log" 2>&1 &
webhook=$!
for _ in {1..100}; do
  if grep -q listening "$tmp/log"; then break; fi
  kill -0 "$webhook" 2>/dev/null || fail "the webhook exited: $(cat "$tmp/log")"
  sleep 0.1
done
port=$(sed -E 's/\x1b\[[0-9;]*m//g' "$tmp/log" | sed -n 's/.*listening.*webhook=127\.0\.0\.1:\([0-9]*\).*/\1/p' | head -n 1)
[[ -n $port ]] || fail "the webhook does not listen: $(cat "$tmp/log")"
status=$(curl --silent --show-error --insecure --max-time 10 --output /dev/null --write-out '%{http_code}' "https://127.0.0.1:$port/")
[[ $status == 404 ]] || fail "over TLS, the webhook returns $status for an unknown path, expected 404"

say "$root: $(du -sh "$root" | cut -f1), $version runs and serves TLS"
