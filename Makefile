# make demo    two commands' worth of proof: installs, tests every claim at a small size, writes report/index.html
# make test    everything that is installed with [all,dev]: format, lint, types, docs, tests
# make check   format, lint and types alone          make bench   every comparison with a peer
# make docs    the site, strict                      make clean   what the others made
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help demo test check bench docs clean paper

PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.13 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
export OMP_NUM_THREADS := 1
export OPENBLAS_NUM_THREADS := 1
export MKL_NUM_THREADS := 1
export TOKENIZERS_PARALLELISM := false
ifeq ($(origin SANOV_DATA), undefined)
ifneq ($(wildcard ../shared/data),)
export SANOV_DATA := $(abspath ../shared/data)
endif
endif

help:
	@grep '^# make' Makefile | cut -c3-

$(VENV)/pip:
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/demo: $(VENV)/pip pyproject.toml constraints.txt
	$(PIP) torch==2.13.0
	$(PIP) --editable '.[demo]'
	@touch $@

$(VENV)/dev: $(VENV)/demo embedded.txt
	$(PIP) --editable '.[all,dev]'
	$(PIP) --no-deps --requirement embedded.txt
	@touch $@

demo: $(VENV)/demo
	$(BIN)/sanov demo --jobs 2

check: $(VENV)/dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy src
	$(BIN)/sanov report --check

docs: $(VENV)/dev
	$(BIN)/mkdocs build --strict --quiet --site-dir build/site

test: check docs
	$(BIN)/python -m pytest --numprocesses 2

paper: $(VENV)/dev
	$(BIN)/sanov reproduce all --preset paper --jobs 2

bench: $(VENV)/dev
	@for file in benchmarks/*.py; do echo "== $$file"; $(BIN)/python $$file || exit 1; done

clean:
	rm -rf $(VENV) build dist site report .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
