# Each target creates the virtual environment .venv on first use and again when pyproject.toml changes.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/installed.stamp
WORKERS ?= 3
# One torch thread per worker; what Python compiles is kept, which the workers and the commands they start share.
TEST_ENV := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1
LOWEST := .venv-lowest
# Rooms whose tests train nothing and start few processes.
QUICK := $(addprefix tests/,settings ops structures data evaluate combine recipe rules)

.DEFAULT_GOAL := help
.PHONY: help demo test quick test-lowest check format bench

help: ## Show this list.
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## /  make \1	/'

demo: $(STAMP) ## Run the whole solution on generated scenes and write runs/demo/report.html (about 6 minutes).
	$(BIN)/scantling demo --out runs/demo

test: $(STAMP) ## Run the whole test suite.
	$(TEST_ENV) $(BIN)/python -m pytest -n $(WORKERS) --dist loadscope

quick: $(STAMP) ## Run the tests that train nothing (under two minutes).
	$(TEST_ENV) $(BIN)/python -m pytest -n $(WORKERS) --dist loadscope -m "not slow" $(QUICK)

test-lowest: $(LOWEST)/installed.stamp ## Run the whole suite with the lowest versions that pyproject.toml allows, in .venv-lowest.
	$(TEST_ENV) $(LOWEST)/bin/python -m pytest -n $(WORKERS) --dist loadscope

format: $(STAMP) ## Format the code and mend what ruff can mend by itself.
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

check: $(STAMP) ## Lint, formatting, types.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(STAMP) ## Run the benchmarks; each prints one table. DATA=FOLDER is a COCO data set for those that need one.
	@for script in bench/*.py; do \
	  data=; if grep -q '"data", type=Path' $$script; then \
	    data="$(DATA)"; [ -n "$$data" ] || { echo "== $$script: left out, needs DATA=FOLDER"; continue; }; fi; \
	  echo "== $$script"; $(BIN)/python $$script $$data || exit 1; \
	done

$(STAMP): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev,semantic]'
	@touch $@

$(LOWEST)/installed.stamp: pyproject.toml
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check uv
	$(LOWEST)/bin/python -m uv pip install --quiet --python $(LOWEST)/bin/python --resolution lowest-direct -e '.[dev]'
	@touch $@
