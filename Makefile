# The commands that people type. The gate, .ci/run, sets up its own environments and uses none of these.
.DEFAULT_GOAL := help
.PHONY: help setup test lint bench docs

BIN = $(if $(wildcard .venv/bin/python),.venv/bin/,)
PYTHON = $(if $(BIN),$(BIN)python,python3)

help: ## List the targets.
	@sed -n 's/^\([a-z]*\): ## /  \1\t/p' Makefile

setup: ## Create .venv and install ckptsync with the test tools, editable.
	python3 -m venv .venv
	.venv/bin/pip install -e ".[test]"

test: ## Run the default tests.
	$(PYTHON) -m pytest

lint: ## Check style, formatting, types and imports.
	$(BIN)ruff check .
	$(BIN)ruff format --check .
	$(BIN)mypy
	$(BIN)lint-imports

bench: ## Measure what ckptsync costs (35 minutes, on an idle machine).
	$(PYTHON) -m tests.bench

docs: ## Check that the documents match the code.
	$(PYTHON) -m pytest tests/docs
