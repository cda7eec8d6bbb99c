# What people and CI run. `make test` needs git, Rust and, where packages are missing, apt-get.

CARGO ?= cargo
SHELL := /bin/bash

.PHONY: help test check fmt lint unit deny fuzz demo bench screenshot deps deps-bench deps-fuzz clean

help:
	@echo "make test    everything CI checks: format, lints, all tests against real Postgres and drivers"
	@echo "make check   format and lints only"
	@echo "make fmt     format the code"
	@echo "make fuzz    hostile bytes for every parser, FUZZ_SECONDS each (60)"
	@echo "make demo    a Postgres, pgweir in front of it, what it does, and the incident that it is for"
	@echo "make screenshot  takes docs/status-page.png anew"
	@echo "make bench   CPU, memory and throughput next to PgBouncer (BENCH=quick for a short one)"

test: deps check unit deny

check: lint
	$(CARGO) fmt --check

fmt:
	$(CARGO) fmt

lint:
	$(CARGO) clippy --locked --all-targets -- -D warnings

unit: deps
	@CARGO=$(CARGO) scripts/test.sh

deny:
	@if ! [ -f deny.toml ]; then :; \
	elif command -v cargo-deny >/dev/null; then $(CARGO) deny check; \
	else echo "cargo-deny is not installed: licences and advisories were not checked"; fi

fuzz: deps-fuzz
	@fuzz/run.sh

demo: deps
	$(CARGO) build --locked --release
	target/release/pgweir demo --report target/incident.md

bench: deps-bench
	$(CARGO) build --locked --release
	benches/pgbench.sh $(BENCH)

screenshot: deps
	$(CARGO) test --locked --test page -- --ignored --exact the_picture_in_the_docs

deps:
	@scripts/install-deps.sh

deps-bench:
	@scripts/install-deps.sh --bench

deps-fuzz:
	@scripts/install-deps.sh --fuzz

clean:
	$(CARGO) clean
	rm -rf .venv fuzz/target fuzz/corpus fuzz/artifacts
