# Everything a clone needs, each with one command. `make` alone lists them.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help demo check test test-all lint wheel-test bench clean

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1
export PIP_ROOT_USER_ACTION := ignore

VENV := .venv
BIN := $(VENV)/bin
DATA ?=
TESTS := not long
# Two processes, each with whole files of tests, in the order that tests/conftest.py gives them.
SHARED_OUT := -n 2 --dist loadfile --no-loadscope-reorder
OUT ?= demo$(if $(DATA),-own)
WHEEL_ENV := build/wheel-env

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.installed  ## sample videos (or DATA=folder), a small model, pictures in OUT=folder
	$(BIN)/stmae demo --out "$(OUT)" $(if $(DATA),--data "$(DATA)")

check: $(VENV)/.installed-dev lint  ## lint, types, import order and the quick tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(SHARED_OUT) -m "not slow and not long"

test: $(VENV)/.installed-dev lint wheel-test  ## everything: lint, types, import order, all tests on the built wheel

test-all: TESTS := long or not long
test-all: test  ## the same with the tests that run whole benchmarks

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

# The wheel goes into an environment of its own, which borrows the dependencies from .venv. A .pth file adds that
# folder without reading the .pth files in it, so the sources that .venv points to stay out of reach.
wheel-test: $(VENV)/.installed-dev
	rm -rf build && mkdir build
	$(BIN)/python -m build --wheel --outdir build/dist . > build/log 2>&1 || { cat build/log; exit 1; }
	$(BIN)/python -m venv --without-pip $(WHEEL_ENV)
	$(BIN)/python -m pip --python $(WHEEL_ENV)/bin/python install -qq --no-deps build/dist/*.whl
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
		> "$$($(WHEEL_ENV)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/dependencies.pth"
	OMP_NUM_THREADS=1 STMAE_WHEEL_ENV=$(WHEEL_ENV) $(WHEEL_ENV)/bin/python -m pytest -p no:cacheprovider \
		$(SHARED_OUT) -m "$(TESTS)"

bench: $(VENV)/.installed-dev  ## speed beside the peers, on this machine (BENCH="--cells base-fp32")
	$(BIN)/python benchmarks/speed.py $(BENCH)

clean:  ## remove builds and caches (not .venv, runs or the demo)
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find src tests benchmarks -name __pycache__ -prune -exec rm -rf {} +

# Set up once, and again when the requirements change.
$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing stmae into $(VENV) (once; some minutes)"
	$(BIN)/python -m pip install -qq -c constraints.txt -e .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing stmae and its tools into $(VENV) (once; some minutes)"
	$(BIN)/python -m pip install -qq -c constraints.txt -e '.[dev]'
	@touch $@ $(VENV)/.installed

# The newest Python that works; `make PYTHON=/path/to/python ...` takes another.
$(BIN)/python:
	@for python in $(or $(PYTHON),python3.13 python3.12 python3.11 python3); do \
		if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' > /dev/null 2>&1; then \
			echo "Making $(VENV) with $$($$python --version)"; \
			exec "$$python" -m venv $(VENV); \
		fi; \
	done; \
	echo "error: stmae needs Python 3.11 or newer, and $(or $(PYTHON),python3) is $$($(or $(PYTHON),python3) --version 2>&1)." >&2; \
	echo "       Install one, or name it: make PYTHON=/path/to/python3.11" >&2; \
	exit 1
