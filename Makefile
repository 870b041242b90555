# Two commands matter: `make run` and `make test`. Both start from nothing but Python 3.11+, make and the package index.
.DEFAULT_GOAL := help
# Without compiled bytecode every command would compile torch and scipy anew.
unexport PYTHONDONTWRITEBYTECODE
.PHONY: help run test lint types contracts bench lock docs site clean

# The first interpreter that runs and is new enough; override with `make PYTHON=...`.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
SHOWCASE := build/showcase

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: $(READY) ## Run the showcase studies at scale small and write the report (minutes)
	$(BIN)/transfuse run --showcase --scale small --results $(SHOWCASE)
	$(BIN)/transfuse report --results $(SHOWCASE) --out $(SHOWCASE)/report

test: $(READY) lint types contracts ## Lint, types, import contracts, and all tests
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: $(READY) ## Style and likely mistakes
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY) ## Static types
	$(BIN)/mypy

contracts: $(READY) ## Which part may import which
	$(BIN)/lint-imports --no-cache

bench: $(READY) ## Ours against peers, as ratios in one run
	@for script in bench/*.py; do echo "== $$script"; OMP_NUM_THREADS=1 $(BIN)/python $$script || exit 1; done

docs: $(READY) ## Renew the tables in README.md and the pages of the methods from cards and results/
	$(BIN)/python docs/renew_tables.py
	$(BIN)/python docs/generate_pages.py

site: $(READY) ## Build the documentation into build/site; a broken link fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

lock: $(READY) ## Resolve requirements.lock anew from pyproject.toml (add UPGRADE=--upgrade for newer versions)
	$(BIN)/uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 --generate-hashes --no-header \
		--no-emit-index-url --no-emit-find-links $(UPGRADE) --quiet --output-file requirements.lock

clean: ## Remove the environment and everything built
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache

$(READY): requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "transfuse needs Python 3.11, 3.12 or 3.13; none was found" >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "uv==$$(sed -n 's/^uv==\([^ ]*\).*/\1/p' requirements.lock)"
	$(BIN)/uv pip sync --quiet --python $(BIN)/python --require-hashes requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $@
