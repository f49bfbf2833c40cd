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
# Processes that share the tests out; 0 for none, which a debugger needs.
LANES ?= 2
PYTEST := $(BIN)/python -m pytest --numprocesses $(LANES) --dist loadgroup
# What needs neither a server, nor a repository of DVC's, nor a training: under three minutes on two cores.
QUICK := -m 'not slow' tests/kd tests/contracts tests/serving --ignore tests/kd/cache --ignore tests/kd/training --ignore tests/contracts/test_servers.py
# The same with the libraries whose lowest versions matter most.
LOWEST := $(subst --ignore tests/kd/training,,$(QUICK)) tests/versioning tests/registry

# Nobody is told about a run, by any of the engines.
export DO_NOT_TRACK := true
export MLFLOW_DISABLE_TELEMETRY := true
export DVC_NO_ANALYTICS := 1
export HF_HUB_DISABLE_TELEMETRY := 1
export PREFECT_SERVER_ANALYTICS_ENABLED := false

.PHONY: help setup format check quick test durations lowest demo bench study goldens docs ui clean

help: # print this list
	@echo "stillhouse: make demo runs everything, make test checks everything"
	@sed -n -E 's/^([a-z]+):[^#=]*## (.+)$$/\1\t\2/p' $(firstword $(MAKEFILE_LIST)) | while IFS=$$'\t' read -r name text; do printf '  make %-9s %s\n' "$$name" "$$text"; done

$(STAMP): pyproject.toml constraints.txt
	@echo "Installing into $(VENV): a few minutes the first time."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

setup: $(STAMP) ## create .venv and install into it what constraints.txt pins

demo: $(STAMP) ## distil the quickstart recipe from source text to champion (RECIPE=name for another)
	$(BIN)/stillhouse run $(RECIPE)

quick: $(STAMP) ## run the tests that need neither a server nor a training: under three minutes
	$(PYTEST) $(QUICK) $(ARGS)

test: $(STAMP) ## run the tests in two processes (ARGS="tests/kd -k cache" for some, LANES=0 for one process)
	$(PYTEST) $(ARGS)

durations: $(STAMP) ## run all tests and note their time in tests/durations.json, which orders them
	$(PYTEST) --junitxml .work/tests.xml
	$(BIN)/python -m tests.schedule .work/tests.xml

# uv, since pip knows no lowest versions; its own settings (UV_FIND_LINKS) say where wheels are.
lowest: ## run the quick tests, DVC's and MLflow's on the lowest versions that pyproject.toml allows, in .work/lowest
	$(PYTHON) -m venv --clear .work/lowest
	.work/lowest/bin/python -m pip install --quiet uv
	.work/lowest/bin/uv pip compile pyproject.toml --extra dev --resolution lowest-direct --python-version 3.11 --index-strategy unsafe-best-match --quiet --output-file .work/lowest/lowest.txt
	.work/lowest/bin/uv pip install --python .work/lowest/bin/python --index-strategy unsafe-best-match --quiet --requirement .work/lowest/lowest.txt
	.work/lowest/bin/python -m pytest $(or $(ARGS),$(LOWEST))

format: $(STAMP) ## format the code, and mend what the linter can mend
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

check: $(STAMP) ## format, lint, spelling, types, import rules, recipes, generated docs
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pre-commit run --all-files
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
