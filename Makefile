# make demo, make test: everything is set up on first use, in .venv, from the pinned set in requirements/dev.txt.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
WORKERS ?= 2

.PHONY: demo test test-slow lint format docs bench clean

$(READY): requirements/dev.txt pyproject.toml
	$(if $(wildcard $(BIN)/python),,$(shell command -v $(PYTHON) || command -v python3) -m venv $(VENV))
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
