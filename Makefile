# The commands of this project. Every one sets up what it needs first; `make setup` returns at once when nothing changed.

PYTHON ?= python3
BIN := .venv/bin
COMITY := $(BIN)/comity
# Options for pytest, as in: make test PYTEST="-k revocation"
PYTEST ?=
# Folder with the RankLens events, for the demo on real input.
RANKLENS ?=
# Folder with IAB's consent strings, for the proof that reads them (bench/prove/consent_vectors.py says which files).
VECTORS ?=

UV_COMPILE := uv pip compile pyproject.toml --quiet --universal --python-version 3.11 --generate-hashes \
	--no-annotate --no-header --no-emit-index-url --no-emit-find-links

.DEFAULT_GOAL := help
.PHONY: help setup install protos check test demo up down status bench prove lock baseline

help: ## Show this list
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: ## Make .venv from the hashed lock; returns at once when it is up to date
	@sh .ci/setup "$(PYTHON)"

install: ## As setup, with what runs alone: no developer tools
	@sh .ci/setup "$(PYTHON)" runtime

protos: setup ## Generate protos/gen from protos/comity
	$(BIN)/python protos/generate.py

check: setup ## Format, lint, types, import contracts, protos: everything but the tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/python -m mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/buf lint
	$(BIN)/buf breaking --against protos/baseline.binpb
	$(BIN)/python protos/generate.py --check

test: setup check ## Every check and every test
	$(BIN)/python -m pytest -n 2 --dist loadgroup $(PYTEST)

demo: install ## The main job on embedded servers, with a page to read; RANKLENS=DIR adds real input
	@$(COMITY) demo $(if $(RANKLENS),--ranklens "$(RANKLENS)")

up: install ## Start servers and services; data under .comity/
	@$(COMITY) up

down: install ## Stop them; the data stays
	@$(COMITY) down

status: install ## What runs
	@$(COMITY) status

bench: setup ## Measure P1 and P2; the last line is JSON
	@$(COMITY) bench

prove: setup ## Try the guarantees at full size; the last line is JSON; VECTORS=DIR adds IAB's consent strings
	@$(BIN)/python -m bench.prove $(if $(VECTORS),--vectors "$(VECTORS)")

lock: ## Resolve the locks anew from pyproject.toml (the only thing that needs uv)
	$(UV_COMPILE) --all-extras -o locks/dev.txt
	for service in identity consent feedback; do $(UV_COMPILE) -c locks/dev.txt -o locks/$$service.txt || exit 1; done
	$(UV_COMPILE) --extra features -c locks/dev.txt -o locks/features.txt
	$(UV_COMPILE) --extra decision -c locks/dev.txt -o locks/decision.txt
	$(UV_COMPILE) --extra runtime -c locks/dev.txt -o locks/runtime.txt

baseline: setup ## At a release: what protos must stay compatible with from now on
	$(BIN)/buf build --exclude-source-info -o protos/baseline.binpb
