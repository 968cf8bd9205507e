# make demo  - a mixed run of alanine dipeptide in water, from nothing to a picture
# make test  - formatting, types and tests
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Idle OpenMP threads that spin take the cores that OpenMM needs.
export OMP_WAIT_POLICY ?= passive

.PHONY: help demo test test-physics lint docs clean

help:
	@sed -n 's/^# make/make/p' $(MAKEFILE_LIST)

$(VENV)/.ready: pyproject.toml setup.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "openmm-sd needs Python 3.11 or newer, not " + sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --editable '.[openmm-torch,test]'
	@touch $@

# The native bridge, where there is a C++ compiler; everything else works without.
PLUGIN := $(shell find plugin -path plugin/build -prune -o -type f -print)
$(VENV)/.native: $(VENV)/.ready $(PLUGIN)
	@if command -v $${CXX:-c++} >/dev/null; then \
	    $(BIN)/pip install --quiet --force-reinstall --no-deps ./plugin && touch $@; \
	else echo "no C++ compiler here: the native bridge is left out" >&2; fi

demo: $(VENV)/.ready
	$(BIN)/openmm-sd demo --output demo-output

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint $(VENV)/.native
	$(BIN)/pytest -m 'not slow'

# make test-physics - the long physics tests as well (about half an hour)
test-physics: $(VENV)/.ready $(VENV)/.native
	$(BIN)/pytest

# make docs - the documentation as HTML, warnings are errors
docs: $(VENV)/.ready
	$(BIN)/pip install --quiet '.[docs]'
	$(BIN)/sphinx-build -W --keep-going -q docs docs/_build

clean:
	rm -rf demo-output build plugin/build *.egg-info .pytest_cache .mypy_cache .ruff_cache
