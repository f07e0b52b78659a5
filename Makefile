# Needs: Rust, Go 1.26 (another Go downloads it), make, a C compiler, git. CONTRIBUTING.md lists the rest.
.DEFAULT_GOAL := help
.PHONY: help demo test test-core prove check generate fuzz bench-decide bench-identity bench-controller image-root bench

FUZZ_SECONDS ?= 120
OHA_VERSION = 1.16.0
CARGO_DENY_VERSION = 0.20.2
# A cargo-deny in PATH is used as it is. Otherwise `make check` installs one.
CARGO_DENY ?= $(or $(shell command -v cargo-deny),target/tools/bin/cargo-deny)

GENERATED = docs/config.schema.json docs/reasons.md docs/identity.md manifests/install.yaml
# The directory for the generated files.
INTO ?= .

help: ## print this list
	@sed -n 's/^\([a-z-]*\):.*## /make \1	/p' $(MAKEFILE_LIST)

demo: ## run Spillway on a real control plane with fake nodes (KEEP=1 keeps it running)
	@examples/demo.sh

test: ## run all tests; tests/cluster uses a real control plane; about 6 minutes on two cores
	@tests/run.sh

test-core: ## run only the tests of the decision; some seconds
	cargo test --locked -p spillway-core

# STORIES="A D" runs only these, and writes to target/proof.
prove: ## run scenarios on the real scheduler with a control group, and write tables and charts to docs/proof; about 3 minutes
	controlplane=$$(tests/controlplane/build.sh) && SPILLWAY_CONTROLPLANE="$$controlplane" cargo test --locked --test prove -- $(STORIES)

# `--all-targets` omits the targets with `test = false`, so the second clippy names them.
# Go's vet reads the dependencies too. With the flags of build.sh it does not compile them again, but the first run takes 2 CPU-minutes.
check: ## check formatting, lints, documentation, generated files, and licences and versions of dependencies
	cargo fmt --all --check
	cargo fmt --check --manifest-path fuzz/Cargo.toml
	cargo clippy --locked --workspace --all-targets -- -D warnings
	cargo clippy --locked --test cluster --test prove -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --workspace --no-deps
	@$(MAKE) --no-print-directory generate INTO=target/generated
	@for file in $(GENERATED); do \
	  git --no-pager diff --no-index $$file target/generated/$$file || { echo "$$file is out of date: run make generate" >&2; exit 1; }; \
	done
	command -v $(CARGO_DENY) >/dev/null || \
	  cargo install --locked --root $(patsubst %/bin/cargo-deny,%,$(CARGO_DENY)) cargo-deny@$(CARGO_DENY_VERSION)
	$(CARGO_DENY) --locked check licenses bans sources
	unformatted=$$(gofmt -l tests/controlplane) && test -z "$$unformatted" || { echo "gofmt: $$unformatted" >&2; exit 1; }
	cd tests/controlplane && CGO_ENABLED=0 GOWORK=off go vet -trimpath -tags notest,grpcnotrace .
	bash -n examples/demo.sh && bash -n tests/controlplane/build.sh && bash -n tests/run.sh && bash -n .ci/run && bash -n image/build-root.sh

# A command that fails leaves the file unchanged.
generate: ## write the files that are generated from Rust sources and manifests
	@mkdir -p $(INTO)/docs $(INTO)/manifests
	@write() { file=$(INTO)/$$1; shift; if "$$@" >$$file.new; then mv $$file.new $$file; else rm $$file.new; return 1; fi; }; \
	  spillway() { cargo run --locked --quiet -- "$$@"; }; \
	  write docs/config.schema.json spillway config schema && \
	  write docs/reasons.md spillway explain --reasons && \
	  write docs/identity.md spillway identity check --findings && \
	  controlplane=$$(tests/controlplane/build.sh) && \
	  write manifests/install.yaml "$$controlplane" kubectl kustomize manifests/base

# Without a sanitizer, because Spillway has no unsafe code and runs faster.
fuzz: ## fuzz each target for FUZZ_SECONDS (120); needs Rust's nightly toolchain and a C++ compiler, installs cargo-fuzz
	command -v cargo-fuzz >/dev/null || cargo install --locked cargo-fuzz
	cargo +nightly fuzz build --sanitizer none
	for target in review quantity patch cost; do \
	  mkdir -p fuzz/corpus/$$target; \
	  case $$target in patch|cost) seeds=fuzz/corpus/review ;; *) seeds= ;; esac; \
	  case $$target in cost) size=-max_len=262144 ;; *) size= ;; esac; \
	  cargo +nightly fuzz run --sanitizer none $$target fuzz/corpus/$$target $$seeds -- -max_total_time=$(FUZZ_SECONDS) $$size || exit 1; \
	done

# These flags build the same static binary as image/build-root.sh.
bench: bench-decide bench-identity ## measure the cost of a request and the rate of pod creation, with baselines; about 25 minutes, needs valgrind, installs oha
	target/tools/bin/oha --version 2>/dev/null | grep -qx 'oha $(OHA_VERSION)' || \
	  cargo install --locked --root target/tools oha@$(OHA_VERSION)
	controlplane=$$(tests/controlplane/build.sh) && SPILLWAY_CONTROLPLANE="$$controlplane" RUSTFLAGS="-C target-feature=+crt-static" \
	  cargo bench --locked --profile release --target $$(rustc -vV | sed -n 's/^host: //p') --bench end_to_end

bench-decide: ## count instructions and allocations of one decision, with the baseline; needs valgrind
	cargo bench --locked --bench decide

bench-identity: ## time all identity checks on 5,000 service accounts
	cargo bench --locked --bench identity

bench-controller: ## measure the controller's memory with 500 nodes and 10,000 pods; some minutes
	controlplane=$$(tests/controlplane/build.sh) && SPILLWAY_CONTROLPLANE="$$controlplane" \
	  cargo bench --locked --profile release --bench controller

image-root: ## build a static release for the Containerfile in target/image-root, and run it in an empty root; needs curl
	@image/build-root.sh
