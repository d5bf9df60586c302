# `make` alone lists the targets. Everything is installed into this folder; nothing needs root, Docker or a key.

PYTHON ?= python3
BIN    := .venv/bin
READY  := .venv/.ready
UV     := .uv/bin/uv

.DEFAULT_GOAL := help
.PHONY: help install demo serve worker migrate doctor test test-fast check format bench torture lock clean

help: ## list the targets
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(READY) ## install what is pinned into .venv

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

test: $(READY) ## run the whole suite (browser tests are skipped where there is no Chromium)
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --durations=10

test-fast: $(READY) ## run the suite without browser, model and slow tests
	$(BIN)/python -m pytest -q -n 2 --dist loadfile -m "not browser and not model and not slow"

check: $(READY) ## lint, format, types and layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: $(READY) ## mend what can be mended by itself
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

torture: $(READY) ## kill, restart and cut at random instants, and check every promise (ARGS="--seconds 600 --seed 2")
	$(BIN)/python -m torture $(ARGS)

bench: $(READY) ## measure against the usual way, in one run (ARGS="--quick" for a short one)
	$(BIN)/python -m bench $(ARGS)

lock: $(UV) ## pin the newest versions that fit pyproject.toml
	$(UV) pip compile -q --upgrade --universal --generate-hashes --no-emit-index-url --no-header \
		--all-extras pyproject.toml -o requirements/runtime.txt
	$(UV) pip compile -q --upgrade --universal --generate-hashes --no-emit-index-url --no-header \
		--all-extras --group dev pyproject.toml -o requirements/dev.txt
	echo uv | $(UV) pip compile -q --upgrade --universal --generate-hashes --no-emit-index-url --no-header \
		- -o requirements/uv.txt

clean: ## remove what was installed and built (the data in .turnstone stays)
	rm -rf .venv .uv .pytest_cache .mypy_cache .ruff_cache .import_linter_cache

$(UV): requirements/uv.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is needed: make PYTHON=python3.11 …"; exit 1; }
	@echo "installing uv"
	@$(PYTHON) -m venv --clear .uv
	@.uv/bin/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements/uv.txt
	@touch $@

$(READY): $(UV) requirements/dev.txt pyproject.toml
	@echo "installing Turnstone into .venv"
	@test -x $(BIN)/python || $(PYTHON) -m venv --without-pip .venv
	@VIRTUAL_ENV=.venv $(UV) pip sync -q --require-hashes requirements/dev.txt
	@VIRTUAL_ENV=.venv $(UV) pip install -q --no-deps --no-build-isolation --editable .
	@touch $@
