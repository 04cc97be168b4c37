# tradenb: `make daily` runs one day on real prices, `make test` runs everything that guards it. `make help` lists the rest.
VENV    ?= .venv
RECIPE  ?= recipes/baseline.yml
SESSION ?=
BIN     := $(VENV)/bin
PYTHON  ?= $(shell command -v python3.11 || command -v python3)
PIP     := $(BIN)/python -m pip --disable-pip-version-check install -c constraints.txt
EVERYTHING := demo,dev,vendors,postgres,oracles,dask,ray,nets,catboost,search,onnx
NEEDS   := settings.ini setup.py constraints.txt
export PYTHONDONTWRITEBYTECODE ?=

.DEFAULT_GOAL := help
.PHONY: help daily backtest test sync lint lessons suite site lab hooks coverage bench execute clean readme

help: ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):[^#]*## /  make \1\t/' | expand -t 20

# --- environments: one virtual environment, grown as it is asked for -------------------------------------------------------------
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info[:2] >= (3, 11) else "tradenb needs Python 3.11 or newer, found "+sys.version.split()[0]+"; install it, or say PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)
$(VENV)/.demo: $(BIN)/python $(NEEDS)
	$(PIP) -e '.[demo]'
	@touch $@
$(VENV)/.dev: $(VENV)/.demo
	$(PIP) -e '.[$(EVERYTHING)]'
	@touch $@
$(VENV)/.lab: $(VENV)/.dev
	$(PIP) -e '.[$(EVERYTHING),lab]'
	@touch $@
$(VENV)/.peers: $(VENV)/.dev
	$(PIP) -e '.[$(EVERYTHING),peers]'
	@touch $@

# --- the day ----------------------------------------------------------------------------------------------------------------------
daily: $(VENV)/.demo ## one day on real prices: data, scores, orders, ledger, report (RECIPE=... SESSION=...)
	$(BIN)/tradenb daily $(RECIPE) $(if $(SESSION),--session $(SESSION))
backtest: $(VENV)/.demo ## the recipe over history, walk-forward, costs on (RECIPE=...)
	$(BIN)/tradenb backtest $(RECIPE)

# --- what guards it ---------------------------------------------------------------------------------------------------------------
test: sync lint lessons suite ## everything: generated code in step, ruff, mypy, notebooks, pytest
sync: $(VENV)/.dev
	PATH="$(abspath $(BIN)):$$PATH" sh .ci/sync
lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/mypy
lessons: $(VENV)/.dev
	LOKY_MAX_CPU_COUNT=1 $(BIN)/nbdev_test --n_workers 2 --timing # two at a time, and none with processes of its own
suite: $(VENV)/.dev
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m pytest tests -n 2 --dist worksteal
coverage: $(VENV)/.dev ## how much of the library the notebooks' lessons and the suite run, by room
	PATH="$(abspath $(BIN)):$$PATH" sh .ci/coverage
bench: $(VENV)/.peers ## speed against named peers, in the same run
	$(BIN)/python -m pytest benchmarks -s --benchmark-disable-gc --benchmark-columns=min,median,rounds

# --- the site and the lab ---------------------------------------------------------------------------------------------------------
site: $(VENV)/.demo ## documentation and reports as a site
	$(BIN)/tradenb site
lab: $(VENV)/.lab hooks ## JupyterLab on the sources
	$(BIN)/jupyter lab nbs
hooks: $(VENV)/.dev
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/nbdev_install_hooks

# --- keeping notebooks ------------------------------------------------------------------------------------------------------------
execute: $(VENV)/.dev ## run every notebook in place, so that its stored outputs are fresh (NB=nbs/core/panel.ipynb for one)
	$(BIN)/jupyter nbconvert --log-level=WARN --to notebook --execute --inplace $(or $(NB),$$(find nbs -name '*.ipynb' -not -path '*/.*'))
	$(BIN)/nbdev_clean && $(BIN)/nbdev_clean --fname reports
readme: $(VENV)/.demo ## README.md from nbs/index.ipynb
	$(BIN)/python -c "from tradenb.ops.site import readme; open('README.md', 'w').write(readme('nbs/index.ipynb'))"
clean: ## remove what was built (not var/, where the store and the ledgers are)
	rm -rf _proc _docs build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .coverage htmlcov
