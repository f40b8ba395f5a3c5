# Two commands for a newcomer: `make quickstart` and `make test`. The rest is for those who work on tlkd.
PYTHON ?= python3
BIN := .venv/bin
QUICK := .venv/.quickstart
STAMP := .venv/.installed
PROOFS := kills survival calibration power flips faults safety truth selection
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: quickstart test test-slow test-full-size lint docs benchmarks proofs proofs-short clean

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "tlkd needs Python 3.11 or newer; found " + sys.version.split()[0] + ". Try: make PYTHON=python3.12 quickstart")'
	$(PYTHON) -m venv .venv

$(QUICK): $(BIN)/python pyproject.toml
	$(PIP) -e '.[quickstart]'
	touch $@

$(STAMP): $(QUICK) pyproject.toml
	$(PIP) -e '.[dev]'
	touch $@

quickstart: $(QUICK)
	$(BIN)/tlkd run quickstart

test: $(STAMP)
	$(BIN)/python -m pytest -q -m 'not slow and not full_size' -n auto --dist loadfile

test-slow: $(STAMP)
	$(BIN)/python -m pytest -q -m slow -n auto --dist worksteal

test-full-size: $(STAMP)
	$(BIN)/python -m pytest -q -m full_size -n auto --dist worksteal

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: $(STAMP)
	$(BIN)/python -m sphinx -q -n -W --keep-going -j auto docs out/docs

benchmarks: $(STAMP)
	$(BIN)/python benchmarks/run.py

proofs: $(STAMP)
	for proof in $(PROOFS); do $(BIN)/python proofs/$$proof.py --write || exit 1; done

proofs-short: $(STAMP)
	for proof in $(PROOFS); do $(BIN)/python proofs/$$proof.py --short || exit 1; done

clean:
	rm -rf .venv out .pytest_cache .mypy_cache .ruff_cache
