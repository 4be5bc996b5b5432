# Needs python3 (3.11 or later), pip and make; everything else is installed into .venv. PYTHON=python3.12 picks another.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
APP    ?= graphs.quickstart:app
# arguments of the app, as in: make run MESH="config=my.toml"
MESH   ?=
# arguments of pytest, as in: make test ARGS="-k caps"
ARGS   ?=
CODE   := mesh nodes budgets graphs
PYTEST := $(BIN)/python -m pytest

.PHONY: help run test test-fast test-ray check format docs bench bench-ledger prove clean
.DEFAULT_GOAL := help

help: ## show this list
	@echo "make COMMAND, where COMMAND is one of"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(VENV)/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is too old: the mesh needs Python 3.11 or later. Try: make PYTHON=python3.12 ..." >&2; exit 1; }
	@echo "[1/3] $(VENV): a virtual environment for $$($(PYTHON) -V)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "[2/3] $(VENV): uv, the installer"
	@test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@echo "[3/3] $(VENV): the packages of constraints.txt (the first time 330 MB to download)"
	@VIRTUAL_ENV=$(abspath $(VENV)) $(BIN)/uv pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

# The flag keeps Ray's own processes on loopback; it is read when ray is imported, so no module can set it in time.
run: $(VENV)/ready ## serve a graph on http://127.0.0.1:8000 (APP=module:app, MESH="key=value ...")
	RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0 $(BIN)/serve run $(APP) $(MESH)

test: test-fast test-ray ## run all tests, the fast ones first

test-fast: $(VENV)/ready ## run the tests that need no Ray
	$(PYTEST) -m "not ray" -n 2 --dist loadfile $(ARGS)

test-ray: $(VENV)/ready ## run the tests that start a local Ray
	$(PYTEST) -m ray $(ARGS)

check: $(VENV)/ready ## formatting, lint, types, import contracts, lengths
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/python .ci/lengths.py $(CODE)

format: $(VENV)/ready ## format the code and mend what ruff can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(VENV)/ready ## make the pages of docs/ that are made from code
	$(BIN)/python -m mesh.config > docs/configuration.md.new
	@mv docs/configuration.md.new docs/configuration.md
	@for graph in $(basename $(notdir $(wildcard graphs/*.py))); do \
		$(BIN)/mesh draw graphs.$$graph --catalogue docs/graphs/mesh.toml --out docs/graphs/$$graph.svg || exit 1; done
	$(BIN)/python -m benchmarks.graph_pages

bench: $(VENV)/ready ## measure the figures of the README (minutes)
	$(BIN)/python -m benchmarks.bench --bare

bench-ledger: $(VENV)/ready ## measure the ledger on both stores, as JSON
	$(BIN)/python -m benchmarks.ledger

prove: $(VENV)/ready ## run the full counts and keep what they print in docs/proof/ (an hour)
	@VIRTUAL_ENV=$(abspath $(VENV)) $(BIN)/uv pip install --quiet --constraint constraints.txt --editable '.[dev,prove]'
	$(BIN)/python -m benchmarks.prove

clean: ## remove what was built and measured; the store .mesh/ stays
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
