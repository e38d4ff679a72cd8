# Every target sets up .venv first, once; only Python 3.11+, pip, venv and make are needed before.
# ARGS is passed on: make quickstart ARGS="seed=1", make test ARGS="-k hawk".

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed
PIP_INSTALL := $(PY) -m pip install --disable-pip-version-check --no-compile --require-hashes
RUNS := $(or $(INTERNAL_RL_RUNS),runs)

.DEFAULT_GOAL := help
.PHONY: help setup quickstart reproduce-grid held-out ant ant-expert grid-paper smoke test \
  test-faults test-slow lint types docs lock clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-15s %s\n", $$1, $$2}' Makefile

setup: $(INSTALLED)  ## create .venv with the pinned packages, and internal_rl and envs importable

# The .pth file puts this directory on the path of .venv: an editable install without a build
# backend.
$(INSTALLED): requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "error: Python 3.11 or newer is needed; $(PYTHON) is $$($(PYTHON) --version 2>/dev/null || echo missing)." >&2; \
	  echo "Name a newer one: PYTHON=python3.12 make $(or $(MAKECMDGOALS),setup)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) -r requirements.txt
	@$(PY) -c 'import os, sysconfig; site = sysconfig.get_path("purelib"); \
	  open(os.path.join(site, "internal_rl.pth"), "w").write(os.path.relpath(".", site) + "\n")'
	@touch $@

quickstart: setup  ## the whole pipeline on the small grid world
	$(PY) scripts/pipeline.py experiment=quickstart $(ARGS)

# $(call runs,experiment,seeds,folder): one run per seed, each resumed where it stopped.
runs = @for seed in $(2); do \
	  echo "== $(1), seed $$seed"; \
	  $(PY) scripts/pipeline.py experiment=$(1) seed=$$seed run_dir="$(RUNS)/$(3)/$(1)-$$seed" $(ARGS) || exit 1; \
	done

# Pages come last: they change the tree, and what is made from a changed tree cannot be published.
reproduce-grid: setup  ## one map and random layouts on unused seeds, and their pages; resumes
	$(call runs,one_map,200 201 202,one_map)
	$(call runs,random,300,random)
	$(call runs,random_walls,313,random)
	$(PY) scripts/aggregate.py "$(RUNS)/one_map" --page docs/results/one_map --title "One map"
	$(PY) scripts/aggregate.py "$(RUNS)/random" --page docs/results/random --title "Random layouts"

held-out: setup  ## the quickstart on five held-out maps, and their table; call again to resume
	$(call runs,quickstart,100 101 102 103 104,held_out)
	$(PY) scripts/aggregate.py "$(RUNS)/held_out"

ant: setup  ## the whole pipeline on the ant (two to three hours of two cores); call again to resume
	$(PY) scripts/pipeline.py experiment=ant_small $(ARGS)

ant-expert: setup  ## train the ant's expert anew (forty minutes of two cores); resumes
	$(PY) scripts/expert.py $(ARGS)

grid-paper: setup  ## nine minutes of the paper's full-size run (for a GPU); call again to go on
	$(PY) scripts/pipeline.py experiment=grid_paper time_limit=540 $(ARGS)

smoke: setup  ## every stage of the pipeline for a few steps, in a temporary directory
	@dir=$$(mktemp -d) && trap 'rm -rf "$$dir"' EXIT INT TERM && \
	  $(PY) scripts/pipeline.py experiment=smoke run_dir="$$dir/smoke" $(ARGS)

test: setup  ## the tests that take seconds
	$(PY) -m pytest --numprocesses auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder $(ARGS)

test-faults: setup  ## the tests that break runs: kills, full disks, damaged files
	$(PY) -m pytest -m "not slow" --numprocesses auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder \
	  tests/faults tests/internal_rl/training tests/internal_rl/stages/test_reinforce.py $(ARGS)

test-slow: setup  ## the tests that take minutes
	JAX_DISABLE_MOST_OPTIMIZATIONS=0 $(PY) -m pytest -m slow $(ARGS)

lint: setup  ## style and formatting
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

types: setup  ## static types
	$(PY) -m basedpyright

docs: $(VENV)/.docs  ## the documentation as a site, in build/site; a dead link is an error
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict $(ARGS)
	@echo "build/site/index.html"

# What makes the site is as large as the rest of the tools: nothing else installs it.
$(VENV)/.docs: $(INSTALLED) docs/site/requirements.txt
	$(PIP_INSTALL) -r docs/site/requirements.txt
	@touch $@

COMPILE := uv pip compile --universal --python-version 3.11 --generate-hashes --no-header --quiet

lock:  ## pin pyproject.toml and the site's tools (needs uv; newer versions: ARGS=--upgrade)
	@command -v uv >/dev/null || { echo "error: uv is not installed: pip install uv" >&2; exit 1; }
	$(COMPILE) pyproject.toml --extra dev --extra search --output-file requirements.txt $(ARGS)
	$(COMPILE) docs/site/requirements.in --constraint requirements.txt \
	  --output-file docs/site/requirements.txt $(ARGS)

clean:  ## remove .venv and caches; keeps runs
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
