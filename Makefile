# make demo, make test: everything is set up on first use, in .venv, from the pinned set in requirements/dev.txt.
# The first supported Python on the path.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3.14 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
WORKERS ?= 2

.PHONY: demo test test-slow lint format docs bench clean

$(READY): requirements/dev.txt pyproject.toml
	@test -n "$(PYTHON)" || { echo "ddeq needs Python 3.11 or later: none is on the path" >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { rm -rf $(VENV) && $(PYTHON) -m venv $(VENV); } || { rm -rf $(VENV); \
		echo "$(PYTHON) makes no environments: install its package venv (Debian: $(notdir $(PYTHON))-venv)" >&2; exit 1; }
	$(BIN)/python -m pip install --quiet --requirement requirements/dev.txt
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $(READY)

demo: $(READY)
	$(BIN)/python -m ddeq demo

test: $(READY)
	$(BIN)/python -m pytest -m "not slow" -n $(WORKERS) --durations 15 --durations-min 5

test-slow: $(READY)
	HYPOTHESIS_PROFILE=thorough $(BIN)/python -m pytest -n $(WORKERS)

lint: $(READY)
	$(BIN)/ruff check --output-format concise .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python tests/support/house.py

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The gallery's scripts run, which takes some minutes; without them: make docs GALLERY=0.
GALLERY ?= 1
docs: $(READY)
	$(BIN)/python -m sphinx --fail-on-warning --keep-going -D plot_gallery=$(GALLERY) docs docs/_build/html

# All benchmarks in a short form, and one report; in full: $(BIN)/python benchmarks/suite.py
bench: $(READY)
	$(BIN)/python benchmarks/suite.py --short

clean:
	rm -rf $(VENV) outputs docs/_build docs/api/generated docs/examples .pytest_cache .mypy_cache .ruff_cache .hypothesis
