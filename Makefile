# make demo | test | test-long | check | format | bench | clean.   Everything runs from .venv, which is made here when missing.

VENV   := .venv
BIN    := $(VENV)/bin
# Any Python from 3.11 up. Each candidate is run, since a name on PATH may be a shim without an interpreter behind it.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3.14 python3; do \
	"$$p" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$p" && break; done)
STAMP  := $(VENV)/.stamp
PYTEST := $(BIN)/python -m pytest

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-long check format bench clean

help:
	@echo "make demo       the shop on three nodes, start to finish"
	@echo "make test       all tests but the long ones, on every core"
	@echo "make test-long  the long ones too"
	@echo "make check      ruff, formatting, mypy --strict"
	@echo "make format     let ruff lay out the code"
	@echo "make bench      the benchmarks, as tables"

$(STAMP): pyproject.toml
	@test -n "$(PYTHON)" || { echo "podwire needs Python 3.11 or later (with venv); set PYTHON=/path/to/python3" >&2; exit 1; }
	@test -x $(BIN)/python || "$(PYTHON)" -m venv $(VENV)
	@echo "setting up $(VENV), once: half a minute or two"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -e '.[test,dev]'
	@$(BIN)/python -m compileall -q emu launcher  # where bytecode is not kept, every node process would compile them anew
	@touch $@

setup: $(STAMP)

demo: $(STAMP)
	@$(BIN)/podwire demo

test: $(STAMP)
	@.ci/install-oracles
	$(PYTEST) -n auto --dist worksteal -m "not long" $(ARGS)

test-long: $(STAMP)
	@.ci/install-oracles
	$(PYTEST) -n auto --dist worksteal $(ARGS)

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

bench: $(STAMP)
	$(BIN)/python -m benchmarks.bench_rtt
	$(BIN)/python -m benchmarks.bench_pps
	$(BIN)/python -m benchmarks.bench_stream
	$(BIN)/python -m benchmarks.bench_weather
	$(BIN)/python -m benchmarks.bench_first
	$(BIN)/python -m benchmarks.bench_nodes
	$(BIN)/python -m benchmarks.bench_walk
	$(BIN)/python -m benchmarks.bench_programming

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
