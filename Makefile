# The ways to build, show and prove Berth. Everything that is made lies under target/.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

tools_dir := target/tools
buf := $(tools_dir)/node_modules/.bin/buf
# Helm's own engine, schemas of Kubernetes, and a linter of Containerfiles.
helm := $(tools_dir)/helm/bin

# The contract as it was last released. A release renews it, together with the tag:
#   target/tools/node_modules/.bin/buf build --exclude-source-info -o proto/released.binpb
released := proto/released.binpb

# Every command spans the whole workspace: with `-p` Cargo would choose other features for what is shared, and build the
# same dependencies again.

# The crash tests need a manager with named places to die at; nothing else enables them.
crash_points := --features berth-sandbox-manager/crash-points

# Tests that run at the same time. Each end-to-end test has a containerd of its own.
TEST_THREADS ?= 2

# Of what is installed and what images are made of: where, and from where. `make install PROGRAMS=target/debug` installs what `make build` made.
PREFIX ?= /usr/local
DESTDIR ?=
PROGRAMS ?= target/dist/bin
# 1: `make uninstall` leaves configuration, store and logs.
KEEP_DATA ?=

# Of the soak.
DURATION ?= 60
INTERLEAVINGS ?= 200
SEED ?=

# Of the images.
REGISTRY ?= berth.local
VERSION ?= $(shell sed -nE '/^version = /{s/.*"(.*)"/\1/p;q}' Cargo.toml)

.PHONY: help build demo telemetry limits test e2e-matrix smoke-v2 smoke-install dist install uninstall images check chart bench bench-gc crash soak soak-logs soak-gc fmt proto tools

help: ## this list
	@sed -nE 's/^([a-z0-9-]+):[^#]*## (.*)/make \1\t\2/p' Makefile | expand -t 20

build: tools ## build every program (debug)
	cargo build --workspace --bins

demo: tools ## show the main job, step by step, on a node of its own
	deploy/dev/demo

test: tools ## build, then run every test, also those on a real containerd
	cargo build --workspace --bins --tests $(crash_points)
	cargo test --workspace $(crash_points) -- --test-threads=$(TEST_THREADS)
	@jq -r '"The manager held \(.full_rss_kib) KiB with \(.sandboxes) sandboxes, \(.idle_rss_kib) KiB with none."' \
		target/e2e/memory.json

e2e-matrix: tools ## run the end-to-end tests on containerd 1.6 and on 2.1
	tests/rig/matrix

smoke-v2: tools ## run a sandbox's life on cgroup v2 and containerd 2.1, in a guest
	tests/rig/smoke

smoke-install: tools ## install Berth in a guest with systemd, use it, reboot, and remove it
	cargo build --workspace --bins
	tests/rig/installed
	tests/rig/installed --driver systemd

dist: ## build a release: static programs, checksums, what they are made of
	deploy/release/dist

install: ## install what `make dist` built (PROGRAMS) below PREFIX (/usr/local), in DESTDIR
	deploy/systemd/install --programs $(PROGRAMS) --prefix $(PREFIX) --destdir "$(DESTDIR)"

uninstall: ## remove what was installed, and all that it made on the node (KEEP_DATA=1: not its data)
	deploy/systemd/uninstall --prefix $(PREFIX) --destdir "$(DESTDIR)" $(if $(KEEP_DATA),--keep-data)

check: tools ## look without running: format, lints, contract, chart, scripts
	cargo fmt --all --check
	cargo clippy --workspace --all-targets $(crash_points) -- -D warnings
	$(buf) lint
	$(buf) format --diff --exit-code
	$(buf) breaking --against $(released)
	$(helm)/python deploy/dev/chart check
	$(helm)/hadolint deploy/images/*/Containerfile
	find .ci deploy tests/rig -type f -exec awk 'FNR == 1 && /^#!.*sh/ { print FILENAME } { nextfile }' {} + \
		| xargs --no-run-if-empty shellcheck --external-sources
	deploy/systemd/verify

chart: tools ## render the chart's golden files anew, and the table of its values
	$(helm)/python deploy/dev/chart write

images: tools ## make the container images from PROGRAMS (target/dist/bin), stripped; the digests are in target/dist/images
	deploy/images/build --bin $(PROGRAMS) --out target/dist/images --strip --registry $(REGISTRY) \
		--version $(VERSION) --revision "$$(git rev-parse HEAD)"

bench: tools ## measure Create against `ctr run`; the numbers are in target/bench
	deploy/dev/bench

bench-gc: tools ## measure one worker of image-gc beside three of them
	cargo build --workspace --bins
	cargo run --package berth-e2e --example collect

crash: tools ## kill the manager at every named point, and write docs/crash-matrix.md
	cargo build --workspace --bins $(crash_points)
	target/debug/berth-crash

soak: tools ## random chaos for DURATION seconds (60), from SEED (a new one)
	cargo build --workspace --bins
	target/debug/berth-soak --duration $(DURATION) $(if $(SEED),--seed $(SEED))

soak-logs: tools ## write 5 MB/s of lines for DURATION seconds (60) while the manager is dead for half of them
	cargo build --workspace --bins
	target/debug/berth-soak-logs --duration $(DURATION)

soak-gc: tools ## INTERLEAVINGS (200) of creates, pulls, the catalog and collectors that are killed, from SEED (a new one)
	cargo build --workspace --bins
	target/debug/berth-soak-gc --interleavings $(INTERLEAVINGS) $(if $(SEED),--seed $(SEED))

fmt: tools ## format the Rust and the contract
	cargo fmt --all
	$(buf) format --write

telemetry: ## write the lists of metrics and spans into docs/telemetry.md
	BERTH_WRITE_DOCUMENTS=1 cargo test --quiet --workspace $(crash_points) --test shown

limits: ## write the tables of every bound into docs/limits.md
	BERTH_WRITE_DOCUMENTS=1 cargo test --quiet --workspace $(crash_points) --test tree -- document_of_limits

proto: tools ## generate again from the contract, and check that it builds
	$(buf) build
	cargo run --quiet --package berth-tidy --bin regenerate

tools: ## install what is missing: Debian packages, and buf into target/tools
	@deploy/dev/tools
