# Whimbrel's commands. `make demo` and `make test` do all of their own set-up on Debian 12, as root.
SHELL := /bin/bash
VENV := .venv
PY := $(VENV)/bin/python
BIN := $(VENV)/bin

.PHONY: help setup demo lab test sim proof mutants lint fuzz bench bench-transfer lock clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup:  ## install what is missing: Debian's packages, uv, the locked Python packages
	@tools/setup.sh

demo: setup  ## two hosts on this machine, a real guest, moved there and back, with the proof that nothing was lost
	@$(BIN)/whimbrel lab demo

lab: setup  ## start a lab of two hosts in ./.lab and leave it running
	@$(BIN)/whimbrel lab up --dir .lab

lint: setup  ## ruff, mypy --strict, import-linter
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint  ## everything that must hold, on real guests too
	$(PY) -m pytest -n 3 --dist loadfile $(ARGS)

fuzz: setup  ## bad input for as long as you like: make fuzz EXAMPLES=1000
	EXAMPLES=$(or $(EXAMPLES),1000) $(PY) -m pytest tests/fuzz -n 2 $(ARGS)

SEEDS ?= 2000
FIRST ?= 1
sim: setup  ## simulate SEEDS seeds from FIRST on: every kind of fault, every promise audited
	$(PY) -m tests.sim.run --seeds $(SEEDS) --first $(FIRST) --processes $(shell nproc)

SEED ?= 1
MINUTES ?= 600
EVERY := cold resize confirm revert build delete power
proof: sim  ## prove it at length: SEEDS=20000; every pair of crashes; each fault at each step, resumable (CELLS="cold revert" MINUTES=60)
	WHIMBREL_EXHAUSTIVE=1 $(PY) -m pytest tests/protocol -n 2 --timeout 0
	$(PY) -m tests.fault.proof fake $(or $(CELLS),$(EVERY)) --seed $(SEED) --minutes $(MINUTES)
	$(PY) -m tests.fault.proof real $(CELLS) --seed $(SEED) --minutes $(MINUTES)

mutants: setup  ## change the heart one thing at a time and see whether a test notices: make mutants ARGS="--sample 10"
	nice -n 10 $(PY) tools/mutants.py $(ARGS)

bench: setup  ## measure; raw rows go to benchmarks/results
	$(PY) -m benchmarks $(ARGS)

bench-transfer: setup  ## downtime by size of disk, and the copy beside scp and rsync; writes docs/transfer.md
	$(PY) -m benchmarks.transfer $(ARGS)

lock: setup  ## write the hashed locks anew
	tools/lock.sh

clean:  ## stop labs of this checkout and remove what was built
	@if [ -x $(BIN)/whimbrel ]; then for d in .lab .demo; do [ ! -d $$d ] || $(BIN)/whimbrel lab down --dir $$d; done; fi
	rm -rf $(VENV) .cache .lab .demo .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
