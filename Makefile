# Each target creates the virtual environment .venv on first use and again when pyproject.toml changes.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/installed.stamp
WORKERS ?= 2

.DEFAULT_GOAL := help
.PHONY: help demo test check bench

help: ## Show this list.
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):[^#]*## /  make \1	/'

demo: $(STAMP) ## Run the whole solution on generated scenes and write runs/demo/report.html (about 6 minutes).
	$(BIN)/scantling demo --out runs/demo

test: $(STAMP) ## Run the whole test suite.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

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
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@
