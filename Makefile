# make demo  - a mixed run of alanine dipeptide in water, from nothing to a picture
# make test  - formatting, types and tests
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Idle OpenMP threads that spin take the cores that OpenMM needs.
export OMP_WAIT_POLICY ?= passive

.PHONY: help demo test test-physics gpu-check lint docs constraints clean

# A folder with wheels: nothing is looked for in the network.
ifdef WHEELS
export PIP_NO_INDEX := 1
export PIP_FIND_LINKS := $(abspath $(WHEELS))
export UV_NO_INDEX := 1
export UV_FIND_LINKS := $(abspath $(WHEELS))
endif

help:
	@sed -n 's/^# make/make/p' $(MAKEFILE_LIST)

# uv unpacks PyTorch's gigabytes many times faster than pip, which does it where uv cannot be had.
# constraints.txt names the version of every package, so that a set-up next year is that of today.
INSTALL = UV_CONSTRAINT=constraints.txt UV_BUILD_CONSTRAINT=constraints.txt PIP_CONSTRAINT=constraints.txt \
    $$(if test -x $(BIN)/uv; then echo $(BIN)/uv pip install --python $(BIN)/python; \
    else echo $(BIN)/pip install; fi) --quiet

$(VENV)/.ready: pyproject.toml setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "openmm-sd needs Python 3.11 or newer, not " + sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
	-$(BIN)/pip install --quiet 'uv<1'
	$(INSTALL) --editable '.[openmm-torch,dev]'
	@touch $@

# make constraints - the newest versions into constraints.txt, for 'make test' to decide about
constraints: $(VENV)/.ready
	$(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --no-annotate \
	    --custom-compile-command 'make constraints' --extra openmm-torch --extra dev --extra docs \
	    pyproject.toml --output-file constraints.txt

# The native bridge, where there is a C++ compiler; everything else works without.
PLUGIN := plugin/CMakeLists.txt plugin/pyproject.toml $(wildcard plugin/*.py) $(shell find plugin/openmmapi \
    plugin/platforms plugin/python plugin/serialization -name '*.cpp' -o -name '*.h' -o -name '*.py')
$(VENV)/.native: $(VENV)/.ready $(PLUGIN)
	@if command -v $${CXX:-c++} >/dev/null; then \
	    $(BIN)/pip install --quiet --no-build-isolation --force-reinstall --no-deps ./plugin && touch $@; \
	else echo "no C++ compiler here: the native bridge is left out" >&2; fi

demo: $(VENV)/.ready
	$(BIN)/openmm-sd demo --output demo-output

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# A process a core and one more, since tests wait for processes of their own; each gets whole files of
# tests, the slow ones first (tests/conftest.py).
PARALLEL := -n $$(nproc | awk '{print $$1 < 3 ? $$1 + 1 : 4}') --dist loadfile --no-loadscope-reorder

test: lint $(VENV)/.native
	$(BIN)/pytest -m 'not slow' $(PARALLEL)

# make test-physics - the long physics tests as well 
test-physics: $(VENV)/.ready $(VENV)/.native
	$(BIN)/pytest $(PARALLEL)

# make gpu-check - all that needs a GPU, to gpu-check.md; with WHEELS=DIR (benchmarks/gpu-wheels.txt)
# without a network
gpu-check: $(VENV)/.ready $(VENV)/.native
	$(BIN)/pip uninstall --quiet --yes acellera-openmmtorch-cpu
	$(INSTALL) --requirement benchmarks/gpu-wheels.txt
	$(BIN)/python benchmarks/gpu_check.py gpu-check.md

# make docs - the documentation as HTML, warnings are errors
docs: $(VENV)/.ready
	$(INSTALL) --editable '.[docs]'
	$(BIN)/sphinx-build -W --keep-going -q docs docs/_build

clean:
	rm -rf demo-output build dist plugin/build models/build *.egg-info models/*.egg-info .pytest_cache .mypy_cache .ruff_cache
