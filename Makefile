# Everything from a clean clone: only git, make, Python 3.11+ and the package registries are needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Idle OpenMP threads must sleep: spinning ones slow the readers beside them by an order of magnitude.
export OMP_WAIT_POLICY := PASSIVE
# One cheap pass over a small picture is no work for a pool of threads beside the readers.
export OPENCV_FOR_THREADS_NUM := 1
export NO_ALBUMENTATIONS_UPDATE := 1

.PHONY: help setup demo test lint format bench clean

help: ## this list
	@grep -E '^[a-z]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(VENV)/installed ## make the virtual environment and install histotl with its tools

$(VENV)/installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("histotl needs Python 3.11 or newer, this is " + sys.version) if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

demo: setup ## the whole way on painted slides; prints where the report page is
	$(BIN)/histotl demo demo_out

test: setup ## all tests; no network, no GPU
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist worksteal

lint: setup ## ruff and mypy --strict
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/python -m mypy

format: setup ## put the code in order
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: setup ## timed ratios; writes benchmarks/speed/results.json
	$(BIN)/python -m benchmarks.speed

clean: ## remove what the targets above made
	rm -rf $(VENV) demo_out .mypy_cache .ruff_cache .pytest_cache .hypothesis
