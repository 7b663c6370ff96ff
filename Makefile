# Every target sets up what it needs; `make help` lists them.
.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# The newest supported interpreter that really runs and can make environments; override with PYTHON=...
PYTHON ?= $(shell for p in python3.14 python3.13 python3.12 python3.11 python3.10 python3; do \
	$$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))' 2>/dev/null \
	&& echo $$p && break; done)
# What a board has: the base package, one engine and PyAV, on Python 3.10 (JetPack 6) where that really runs.
BOARD_VENV := .venv-board
BOARD_STAMP := $(BOARD_VENV)/.installed
BOARD_PYTHON ?= $(or $(shell for p in python3.10 $(wildcard $(HOME)/.pyenv/versions/3.10.*/bin/python3.10); do \
	$$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info[:2] != (3, 10))' 2>/dev/null && echo $$p && break; done),$(PYTHON))
SOAK_MINUTES ?= 10
DEVICES ?= 100
# One more than cores, since many tests wait for processes; each makes the shared fixtures anew, so more than four bring little.
TEST_PROCESSES ?= $(shell n=$$(nproc 2>/dev/null || echo 2); echo $$((n < 4 ? n + 1 : 4)))
TESTS ?=
HOST ?= 127.0.0.1
PORT ?= 5000

.PHONY: help install test docs test-docs test-cluster fleet soak lint format demo results ui clean board-wheels test-aarch64 verify-gpu

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP) $(BOARD_STAMP) ## make .venv with all that runs here, and .venv-board with what a board needs

$(STAMP): pyproject.toml
	@test -n "$(PYTHON)" || { echo "error: no Python 3.10 or newer with venv found; name one: make install PYTHON=/path/to/python3"; exit 2; }
	@test -x $(BIN)/python || "$(PYTHON)" -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -e '.[train,video,serve,rtx,dev,docs]'
	@touch $(STAMP)

# The package itself is found by PYTHONPATH, so that tests of the board run the checkout.
$(BOARD_STAMP): pyproject.toml jetson/requirements.py | $(STAMP)
	@test -x $(BOARD_VENV)/bin/python || "$(BOARD_PYTHON)" -m venv $(BOARD_VENV)
	$(BOARD_VENV)/bin/python -m pip install --quiet -r <($(BIN)/python jetson/requirements.py --video)
	@touch $(BOARD_STAMP)

board-wheels: install ## check that a board's requirements have aarch64 wheels (asks the package index)
	@$(BIN)/python jetson/requirements.py --video --check 3.10 3.12

# The bundle is a small one made by hand: what is tested is the path, on another instruction set.
test-aarch64: install ## profile a bundle on an emulated aarch64 processor (Debian; downloads packages and wheels once)
	@test -f .aarch64/bundle/manifest.json || $(BIN)/python -c 'from pathlib import Path; \
		from tests.profiling.bundles import make_bundle; Path(".aarch64").mkdir(exist_ok=True); make_bundle(Path(".aarch64/bundle"))'
	@jetson/emulate.sh .aarch64 .aarch64/bundle

lint: install ## ruff and mypy
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: install ## let ruff rewrite what it can
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

# One thread each: two processes on two cores are faster than threads that wait for each other.
test: install lint ## lint and run every test (no network needed after the install; TESTS=folder for some)
	@OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/pytest -n $(TEST_PROCESSES) --dist worksteal $(TESTS)

# Pages are made anew each time: what Sphinx keeps does not know when a parser or a docstring has changed.
docs: install ## build the site into build/docs; a warning is an error
	@$(BIN)/python -m sphinx -W --keep-going -q -E -b html -d build/docs-made docs build/docs
	@echo "The site: build/docs/index.html (needs no server and no network)"

test-docs: install ## run the commands of the documents as they stand there
	@OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/pytest -m docs

# As root for the namespaces; PostgreSQL's programs (Debian: postgresql) for the store that many write to.
test-cluster: install ## two hosts in namespaces, a Dask cluster with a store in PostgreSQL (what cannot run here is skipped)
	@$(BIN)/python -m pip install --quiet -e '.[cluster]' pg8000
	@OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/pytest -m cluster -rs

fleet: install ## devices behind slow, far and breaking links, two replicas behind nginx (root; DEVICES=100)
	@OMP_NUM_THREADS=1 $(BIN)/python -m lit_mmpg.profiling.benchmarks.fleet --devices $(DEVICES)

soak: install ## long fuzzing and load, left out of make test (SOAK_MINUTES=10 of load on the service)
	@$(BIN)/python -m pip install --quiet --only-binary :all: 'atheris>=3' \
		|| echo "no atheris for this Python: coverage-guided fuzzing will be skipped"
	@LIT_MMPG_SOAK_MINUTES=$(SOAK_MINUTES) $(BIN)/pytest -m soak

# An interpreter that is named is taken as it is, with the torch that it has; otherwise .venv is made.
NAMED_PYTHON := $(filter command environment,$(firstword $(origin PYTHON)))
verify-gpu: $(if $(NAMED_PYTHON),,install) ## what only an NVIDIA GPU shows, in under ten minutes (PYTHON=... takes that one)
	@$(if $(NAMED_PYTHON),"$(PYTHON)",$(BIN)/python) -m lit_mmpg.profiling.benchmarks.verify_gpu

# One thread: the demo's tensors are small, and waiting threads cost more than they bring on 2 cores.
demo: install ## train, compare, export and profile on the embedded data (a few minutes)
	@OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/lit-mmpg compare --config configs/experiment/compare_demo.yaml --output outputs/demo/summary.json
	@ckpt=$$($(BIN)/python -c 'import json; print(json.load(open("outputs/compare/compare_demo/cdc_mmpg-seed0.json"))["checkpoint"])'); \
		$(BIN)/lit-mmpg export --ckpt "$$ckpt" --output outputs/demo/bundle --precisions fp32 int8 \
		|| test -f outputs/demo/bundle/manifest.json # a variant that is not good enough is left out and said
	@OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/lit-mmpg profile run --bundle outputs/demo/bundle \
		--config configs/profile/demo.yaml --output outputs/demo/profile
	@echo "Rows: outputs/demo/summary.json. Runs, configs and plots: make ui  (or $(BIN)/lit-mmpg ui)"

results: install ## make the tables of README.md and docs from docs/results/*.json
	@$(BIN)/python -m lit_mmpg.results

ui: install ## open the recorded runs in MLflow's web page (HOST=..., PORT=...)
	@$(BIN)/lit-mmpg ui --host $(HOST) --port $(PORT)

clean: ## remove everything generated (runs and results included), but not .venv
	@rm -rf outputs build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	@find mlruns -mindepth 1 ! -name .gitkeep -delete
	@find lit_mmpg profiling tests -name __pycache__ -type d -prune -exec rm -rf {} +
