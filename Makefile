# Everything runs in .venv, which is made once. A target that has nothing new to install does not touch the network.
PYTHON   ?= python3
PIP_ARGS ?=
VENV     := .venv
BIN      := $(VENV)/bin
RUNTIME  := $(VENV)/.installed-runtime
DEV      := $(VENV)/.installed-dev

.DEFAULT_GOAL := help
.PHONY: help lab test test-all everywhere render bench clean site claims app

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 19

lab: $(RUNTIME) ## Open the course in JupyterLab at the first lesson
	@$(BIN)/python -m moe_lessons lab

test: $(DEV) ## Run the checks that take minutes: format, units, each lesson, and the first one in a browser
	@$(BIN)/python tests/run.py

test-all: $(DEV) ## Run all checks: those of `make test`, then claims, slow units, all of the browser and the site
	@$(BIN)/python tests/run.py all

everywhere: $(DEV) ## Measure all claims as on other processors, with noise and from other seeds (some two hours)
	@$(BIN)/python tests/claims/everywhere.py

render: $(DEV) ## Execute the lessons again and store their static pictures (NOTEBOOKS='notebooks/02*.ipynb' for some)
	@$(BIN)/python -m tools.render $(NOTEBOOKS)

site: $(DEV) ## Make the site of the course in build/site, whose front page trains (ALL=1: with every router)
	@$(BIN)/python -m web.build build/site $(if $(ALL),all)

app: $(RUNTIME) $(if $(wildcard build/site/index.html),,site) ## Open the site; the first time it is made
	@$(BIN)/python -m web.serve

claims: $(DEV) ## Measure every claim again and write build/claims.md (minutes; leave the machine alone)
	@$(BIN)/python -m tools.claims

bench: $(RUNTIME) ## Measure the speed of the layers on this machine
	@$(BIN)/python -m tools.bench

clean: ## Remove the environment, the caches and the build results
	rm -rf $(VENV) build dist tools/node_modules .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -o -name .ipynb_checkpoints | xargs rm -rf

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "The course needs Python 3.10 or newer. Name one: make PYTHON=python3.12 …"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
	  { rm -rf $(VENV); echo "No virtual environment could be made (on Debian or Ubuntu: apt install python3-venv)."; exit 1; }

# The stamps are younger than pyproject.toml exactly when what it asks for is installed.
$(RUNTIME): pyproject.toml | $(BIN)/python
	@echo "Installing the course into $(VENV) (once; PyTorch is large) …"
	@$(BIN)/python -m pip install --quiet $(PIP_ARGS) -e .
	@$(BIN)/jupyter trust notebooks/*.ipynb >/dev/null 2>&1 || true # their live views come back after a reload
	@touch $@

$(DEV): pyproject.toml tools/package-lock.json $(RUNTIME)
	@echo "Installing the tools of the tests into $(VENV) (once) …"
	@$(BIN)/python -m pip install --quiet $(PIP_ARGS) -e '.[dev]'
	@{ command -v npm && npm ci --prefix tools --ignore-scripts --no-audit --no-fund --loglevel=error; } >/dev/null || \
	  echo "Without what npm brings, the site and its page cannot be made or tested (on Debian or Ubuntu: apt install npm)."
	@touch $@
