# Sluice: the front door. `make help` lists what is here.
SHELL := /bin/bash
.DEFAULT_GOAL := help
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
PYTHON ?= python3
ENV ?=
STACK ?=
ARGS ?=
ONLY ?=
CHAOS_SCALE ?= 1
SEED ?=
LIMIT ?=
CHECK ?=
JOBS ?= 3
E2E_JOBS ?= 2

.PHONY: help setup lock demo demo-down test e2e environments bench chaos lint format lock-providers stack-docs plan apply destroy output drift configure roll clean

help: ## list the targets
	@awk -F':.*## ' '/^[a-z0-9-]+:.*## /{printf "  %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## create .venv with everything (uv if present, else venv + pip)

$(STAMP): pyproject.toml requirements.lock scripts/setup
	@PYTHON=$(PYTHON) scripts/setup $(VENV)
	@touch $@

lock: ## re-resolve requirements.lock from pyproject.toml (needs uv)
	uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 --generate-hashes \
	  --no-header --no-annotate --no-emit-index-url --no-emit-find-links -o requirements.lock

demo: $(STAMP) ## bring up a whole fleet on this machine, run pipelines, roll every worker
	@$(BIN)/deployctl local demo $(ARGS)

demo-down: $(STAMP) ## stop and remove what `make demo` left running
	@$(BIN)/deployctl local down

test: $(STAMP) ## [JOBS=3 ARGS=]: all tests, on real engines, so many files at a time
	@$(BIN)/pytest -n $(JOBS) --dist loadfile $(ARGS)

e2e: $(STAMP) ## [E2E_JOBS=2 ARGS=]: a fleet of machines in containers: boots, works, drains, breaks, goes (root on Debian or Ubuntu)
	@scripts/e2e-setup
	@$(BIN)/pytest -m "e2e or podman" -n $(E2E_JOBS) --dist loadfile -rP tests/e2e $(ARGS)

environments: $(STAMP) ## [ARGS="-k prod"]: every Terraform environment from nothing to everything and back (20 minutes)
	@$(BIN)/pytest -m environments -s tests $(ARGS)

bench: $(STAMP) ## [CASES="chain4 fan200"] [N=5]: measure the hot path, one JSON line a case (ARGS=--help lists them)
	@scripts/bench $(if $(N),-n $(N)) $(CASES) $(ARGS)

chaos: $(STAMP) ## [ONLY="name …" CHAOS_SCALE=1 SEED=]: break everything that may break, and judge what really ran
	@scripts/chaos $(ONLY) --scale $(CHAOS_SCALE) $(if $(SEED),--seed $(SEED)) $(ARGS)

lint: $(STAMP) $(VENV)/.roles-linted ## format, lint, types, terraform fmt and validate, checkov, ansible-lint
	@$(BIN)/ruff format --check . && $(BIN)/ruff check . && $(BIN)/mypy && $(BIN)/python terraform/lint.py

# Half a minute: only where a role has changed.
$(VENV)/.roles-linted: $(STAMP) $(shell find ansible -type f -not -path '*/.ansible/*')
	@cd ansible && PATH="$(CURDIR)/$(BIN):$$PATH" $(CURDIR)/$(BIN)/ansible-lint -q --nocolor
	@touch $@

format: $(STAMP) ## rewrite the sources as `make lint` wants them
	@$(BIN)/ruff format . && $(BIN)/ruff check --fix .

lock-providers: $(STAMP) ## checksums of the Terraform provider for every platform, from the registry, into each stack's lock
	@$(BIN)/python terraform/lock.py

stack-docs: $(STAMP) ## rewrite the tables in docs/stacks/ from the stacks' variables and outputs
	@$(BIN)/python terraform/docs.py

define need_env
	@test -n "$(ENV)" || { echo "error: which environment? e.g. make $@ ENV=prod" >&2; exit 2; }
endef

plan apply destroy output: $(STAMP) ## ENV= [STACK=]: Terraform, stacks in dependency order
	$(need_env)
	@$(BIN)/deployctl infra $@ --env $(ENV) $(if $(STACK),--stack $(STACK)) $(ARGS)

drift: $(STAMP) ## ENV= [STACK=]: what is not any more as Terraform left it
	$(need_env)
	@$(BIN)/deployctl infra drift --env $(ENV) $(if $(STACK),--stack $(STACK)) $(ARGS)

configure: $(STAMP) ## ENV= [LIMIT=] [CHECK=1]: the roles of ansible/ over the running hosts, or what would change
	$(need_env)
	@$(BIN)/deployctl configure --env $(ENV) $(if $(LIMIT),--limit '$(LIMIT)') $(if $(CHECK),--check) $(ARGS)

roll: $(STAMP) ## ENV=: roll every worker to the newest release, losing nothing
	$(need_env)
	@$(BIN)/deployctl roll --workers --env $(ENV) $(ARGS)

clean: ## remove the virtualenv and caches (not a running local cloud: `make demo-down` first)
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
