# Every target sets up what it needs: a virtual environment in .venv with Gossamer installed in it, editable.
# pip reads its usual configuration (PIP_INDEX_URL, PIP_FIND_LINKS, pip.conf), so mirrors and wheel folders work.
#
#   make demo PYTHON=python3.12      another interpreter for a new .venv
#   make test JOBS=8                 more test processes
#   make test ARGS="-k stream -x"    more options for pytest, or for the demo

PYTHON ?= python3
JOBS   ?= 2
ARGS   ?=

VENV  := .venv
PY    := $(VENV)/bin/python
STAMP := $(VENV)/.installed

# numba keys a compiled function by its own source file and not by what it calls: give every state of the sources a
# cache of its own. conftest.py computes the same digest for a pytest started without make.
ifndef NUMBA_CACHE_DIR
NUMBA_CACHE_DIR := $(CURDIR)/.cache/numba/$(shell find arch kernels sim -name '*.py' | LC_ALL=C sort | xargs cat | sha256sum | cut -c1-12)
endif
export NUMBA_CACHE_DIR

.DEFAULT_GOAL := help
.PHONY: help demo test test-all lint format docs docs-check clean distclean FORCE

help: ## show this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(firstword $(MAKEFILE_LIST)) | awk -F '\t' '{ printf "make %-11s %s\n", $$1, $$2 }'

demo: $(STAMP) ## from a trained digit classifier to cycles and answers on the accelerator
	$(PY) examples/digits/demo.py $(ARGS)

test: $(STAMP) ## the test suite without the slow tests
	$(PY) -m pytest -n $(JOBS) -m "not slow" $(ARGS)

test-all: $(STAMP) ## the whole test suite; takes minutes
	$(PY) -m pytest -n $(JOBS) $(ARGS)

lint: $(STAMP) ## ruff (rules and formatting) and mypy
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

format: $(STAMP) ## let ruff format the sources and mend what it can
	$(PY) -m ruff format .
	$(PY) -m ruff check --fix .

docs: $(STAMP) ## write the generated pages of docs/ anew
	$(PY) docs/generate.py

docs-check: $(STAMP) ## fail if a generated page of docs/ is out of date
	$(PY) docs/generate.py --check

clean: ## remove caches and build output
	rm -rf build dist out .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage *.egg-info
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean ## clean, and remove .venv
	rm -rf $(VENV)

# The stamp names the folder the environment was installed for: an editable install in a copied folder would go on
# importing the original.
ifneq ($(shell cat $(STAMP) 2>/dev/null),$(CURDIR))
$(STAMP): FORCE
endif
$(STAMP): pyproject.toml | $(PY)
	@echo "Installing Gossamer and its development tools into $(VENV) (a minute or two) ..."
	@$(PY) -m pip install -qq --disable-pip-version-check -e '.[dev]'
	@echo '$(CURDIR)' > $@

$(PY):
	@command -v $(PYTHON) >/dev/null || \
	  { echo "error: $(PYTHON) not found. On Debian or Ubuntu: apt install python3 python3-venv" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: Gossamer needs Python 3.11 or later, $(PYTHON) is older. Try: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "error: $(PYTHON) cannot create virtual environments. On Debian or Ubuntu: apt install python3-venv" >&2; exit 1; }
	@$(PYTHON) -m venv --clear $(VENV) || { rm -rf $(VENV); exit 1; }

FORCE:
