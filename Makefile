# The only list of developer commands: people, hooks, CI and the workflow file call these targets.
SHELL := /bin/bash -eu -o pipefail
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
RECIPE ?= quickstart
# What needs neither a server nor long trainings: a few minutes.
QUICK := -m 'not slow' tests/kd tests/contracts tests/serving/test_served_student.py tests/versioning/test_versioning.py tests/registry/test_registry.py --ignore tests/kd/cache --ignore tests/contracts/test_servers.py

# Nobody is told about a run, by any of the engines.
export DO_NOT_TRACK := true
export MLFLOW_DISABLE_TELEMETRY := true
export DVC_NO_ANALYTICS := 1
export HF_HUB_DISABLE_TELEMETRY := 1
export PREFECT_SERVER_ANALYTICS_ENABLED := false

.PHONY: help setup check test lowest demo bench study goldens docs ui clean

help: # print this list
	@echo "stillhouse: make demo runs everything, make test checks everything"
	@sed -n -E 's/^([a-z]+):[^#=]*## (.+)$$/\1\t\2/p' $(firstword $(MAKEFILE_LIST)) | while IFS=$$'\t' read -r name text; do printf '  make %-8s %s\n' "$$name" "$$text"; done

$(STAMP): pyproject.toml constraints.txt
	@echo "Installing into $(VENV): a few minutes the first time."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

setup: $(STAMP) ## create .venv and install into it what constraints.txt pins

demo: $(STAMP) ## distil the quickstart recipe from source text to champion (RECIPE=name for another)
	$(BIN)/stillhouse run $(RECIPE)

test: $(STAMP) ## run the tests (ARGS="tests/kd -k cache" for some of them)
	$(BIN)/python -m pytest $(ARGS)

# uv, since pip knows no lowest versions; its own settings (UV_FIND_LINKS) say where wheels are.
lowest: ## run the quick tests on the lowest versions that pyproject.toml allows, in .work/lowest
	$(PYTHON) -m venv --clear .work/lowest
	.work/lowest/bin/python -m pip install --quiet uv
	.work/lowest/bin/uv pip compile pyproject.toml --extra dev --resolution lowest-direct --python-version 3.11 --index-strategy unsafe-best-match --quiet --output-file .work/lowest/lowest.txt
	.work/lowest/bin/uv pip install --python .work/lowest/bin/python --index-strategy unsafe-best-match --quiet --requirement .work/lowest/lowest.txt
	.work/lowest/bin/python -m pytest $(or $(ARGS),$(QUICK))

check: $(STAMP) ## format, lint, types, import rules, recipes, generated docs
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/stillhouse check
	$(BIN)/python -m docs.generate --check

ui: $(STAMP) ## start the Prefect server and the MLflow UI on 127.0.0.1 and print their addresses
	$(BIN)/stillhouse ui

docs: $(STAMP) ## write the pages that are generated from the code: params/README.md, docs/cli.md
	$(BIN)/python -m docs.generate

goldens: $(STAMP) ## compute the golden numbers and the golden cache again
	$(BIN)/python -m tests.golden.make
	$(BIN)/python -m tests.golden.make_cache

bench: $(STAMP) ## measure cache and training (ARGS="writing steps" for some parts); results are files in bench
	$(BIN)/python -m bench $(ARGS)

study: $(STAMP) ## find which levels pay, at equal steps: hours, and goes on where it stopped (ARGS="--data r52 --arm hidden_kept")
	$(BIN)/python -m study run $(ARGS)
	$(BIN)/python -m study report

clean: ## delete artifacts, work in progress and tool caches; keep all that is costly to make again
	rm -rf artifacts .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	! test -d .work || find .work -mindepth 1 -maxdepth 1 ! -name study ! -name bench -exec rm -rf {} +
	find flows tasks tests study bench docs -type d -name __pycache__ -prune -exec rm -rf {} +
	@echo "Kept: .venv, data, .work/study and .work/bench (tuned teachers, runs), .store (teacher caches), .mlflow (runs, models), .dvc/cache (every version of the artifacts)."
