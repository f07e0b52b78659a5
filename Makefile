# Needs: Rust, Go 1.26 (another Go fetches it), make, a C compiler, git.
.DEFAULT_GOAL := help
.PHONY: help demo test test-core prove check fuzz bench-decide bench-identity bench-controller image-root bench

FUZZ_SECONDS ?= 120
OHA_VERSION = 1.16.0

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /make \1	/p' $(MAKEFILE_LIST)

demo: ## see Spillway work on a real control plane with fake nodes (KEEP=1 leaves it running)
	@examples/demo.sh

test: ## all tests; those in tests/cluster use a real control plane; some 8 minutes on two cores
	@tests/run.sh

test-core: ## the tests of the decision alone; some seconds
	cargo test --locked -p spillway-core

# STORIES="A D" plays these alone, and writes to target/proof.
prove: ## stories on the real scheduler beside a control group, written to docs/proof: tables and charts; some 3 minutes
	controlplane=$$(tests/controlplane/build.sh) && SPILLWAY_CONTROLPLANE="$$controlplane" cargo test --locked --test prove -- $(STORIES)

# `--all-targets` leaves out those that `cargo test` leaves out.
# Go's vet looks at the dependencies too: with the flags of build.sh they need no second compilation, but some 2 CPU-minutes once.
check: ## formatting, lints, documentation, generated files
	cargo fmt --all --check
	cargo fmt --check --manifest-path fuzz/Cargo.toml
	cargo clippy --locked --workspace --all-targets -- -D warnings
	cargo clippy --locked --test cluster --test prove -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --workspace --no-deps
	@echo "docs/config.schema.json is what 'spillway config schema' prints"
	@mkdir -p target && cargo run --locked --quiet -- config schema >target/config.schema.json
	@git --no-pager diff --no-index docs/config.schema.json target/config.schema.json || \
	  { echo "fix with: cargo run -- config schema >docs/config.schema.json" >&2; exit 1; }
	@echo "docs/reasons.md is what 'spillway explain --reasons' prints"
	@cargo run --locked --quiet -- explain --reasons >target/reasons.md
	@git --no-pager diff --no-index docs/reasons.md target/reasons.md || \
	  { echo "fix with: cargo run -- explain --reasons >docs/reasons.md" >&2; exit 1; }
	@echo "docs/identity.md is what 'spillway identity check --findings' prints"
	@cargo run --locked --quiet -- identity check --findings >target/identity.md
	@git --no-pager diff --no-index docs/identity.md target/identity.md || \
	  { echo "fix with: cargo run -- identity check --findings >docs/identity.md" >&2; exit 1; }
	@tests/controlplane/build.sh >/dev/null
	@echo "manifests/install.yaml is what kustomize makes of manifests/base"
	@$$(tests/controlplane/build.sh) kubectl kustomize manifests/base >target/install.yaml
	@git --no-pager diff --no-index manifests/install.yaml target/install.yaml || \
	  { echo "fix with: kubectl kustomize manifests/base >manifests/install.yaml" >&2; exit 1; }
	unformatted=$$(gofmt -l tests/controlplane) && test -z "$$unformatted" || { echo "gofmt: $$unformatted" >&2; exit 1; }
	cd tests/controlplane && CGO_ENABLED=0 GOWORK=off go vet -trimpath -tags notest,grpcnotrace .
	bash -n examples/demo.sh && bash -n tests/controlplane/build.sh && bash -n tests/run.sh && bash -n .ci/run && bash -n image/build-root.sh

# Without a sanitizer: the program has no unsafe code for one to watch, and is faster without.
fuzz: ## fuzz each target for FUZZ_SECONDS (120); needs Rust's nightly toolchain and a C++ compiler, fetches cargo-fuzz
	command -v cargo-fuzz >/dev/null || cargo install --locked cargo-fuzz
	cargo +nightly fuzz build --sanitizer none
	for target in review quantity patch; do \
	  mkdir -p fuzz/corpus/$$target; \
	  case $$target in patch) seeds=fuzz/corpus/review ;; *) seeds= ;; esac; \
	  cargo +nightly fuzz run --sanitizer none $$target fuzz/corpus/$$target $$seeds -- -max_total_time=$(FUZZ_SECONDS) || exit 1; \
	done

# The flags and the target make the static binary that the image has: see image/build-root.sh.
bench: bench-decide bench-identity ## what a request costs and how fast pods are created, beside baselines; some 25 minutes, needs valgrind, fetches oha
	target/tools/bin/oha --version 2>/dev/null | grep -qx 'oha $(OHA_VERSION)' || \
	  cargo install --locked --root target/tools oha@$(OHA_VERSION)
	controlplane=$$(tests/controlplane/build.sh) && SPILLWAY_CONTROLPLANE="$$controlplane" RUSTFLAGS="-C target-feature=+crt-static" \
	  cargo bench --locked --profile release --target $$(rustc -vV | sed -n 's/^host: //p') --bench end_to_end

bench-decide: ## instructions and allocations of one decision, beside the baseline; needs valgrind
	cargo bench --locked --bench decide

bench-identity: ## a full pass of the identity checks over 5,000 service accounts
	cargo bench --locked --bench identity

bench-controller: ## the controller's memory with 500 nodes and 10,000 pods; some minutes
	controlplane=$$(tests/controlplane/build.sh) && SPILLWAY_CONTROLPLANE="$$controlplane" \
	  cargo bench --locked --profile release --bench controller

image-root: ## a static release in target/image-root, tried in an empty root, for the Containerfile; needs curl
	@image/build-root.sh
