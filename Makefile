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
	$(BIN)/python -m pytest -m "not slow" -n $(WORKERS)

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

bench: $(READY)
	$(BIN)/python benchmarks/equilibrium.py
	$(BIN)/python benchmarks/overhead.py
	$(BIN)/python benchmarks/starts.py
	$(BIN)/python benchmarks/flows.py --points 1000 --many 10000 --racing 100 --steps 20 --repeats 2 --seconds 3
	$(BIN)/python benchmarks/reductions.py --sizes 1000 10000 --dims 3 --repeats 3
	$(BIN)/python benchmarks/throughput.py --clouds 4 --points 128 --repeats 2
	$(BIN)/python benchmarks/sliced.py --sizes 10000 100000 --repeats 3

clean:
	rm -rf $(VENV) outputs docs/_build docs/api/generated docs/examples .pytest_cache .mypy_cache .ruff_cache .hypothesis
