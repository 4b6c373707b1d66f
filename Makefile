# Every target sets up what it needs; the only requirements are python3 (3.11+, with venv) and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test test-engines check bench lint clean

$(READY): pyproject.toml
	@echo "Setting up $(VENV): installing the package and what it needs, about a minute or two without a word ..."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --editable ".[all]" --group test
	touch $(READY)

demo: $(READY)
	$(BIN)/mlbalance demo

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check: lint
	$(BIN)/pytest -q -n 2 --dist worksteal -m "not slow and not sdk and not alone"

test: lint
	$(BIN)/pytest -q -m alone
	$(BIN)/pytest -n 2 --dist worksteal -m "not alone"

# Real engines: installs and compiles them in .tools/engines at first (4 GB, a quarter of an hour).
test-engines: $(READY)
	$(BIN)/pytest -m engines -rA tests/engines

bench: $(READY)
	$(BIN)/python -m pip install --quiet --group bench
	$(BIN)/python -m tests.bench

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .tools
