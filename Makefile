# Two commands matter: `make demo` shows the main job on real data, `make test` runs the tests. Each makes .venv itself.

PYTHON ?= python3
BIN := .venv/bin
# Native code for this processor alone is built in a third of the time; `all` is what .ci/run tests and wheels should have.
export EQUIPES_INSTRUCTION_SETS ?= host
INSTALL := $(BIN)/python -m pip install -qq --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test lint types docs format clean help

help:
	@echo "make demo    train, evaluate and simulate ethanol on bundled data (about 4 minutes after set-up)"
	@echo "make test    run the tests"
	@echo "make lint    ruff: rules and formatting        make format  let ruff format"
	@echo "make types   mypy on the package               make docs    build the documentation into site/"
	@echo "make clean   remove .venv and everything built"

# The stamp files make a second run start at once; a changed requirement or native source installs again. The extras name
# the package that is installed already, so that its native part is built once.
.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/.package: pyproject.toml constraints.txt CMakeLists.txt $(wildcard src/equipes/kernels/native/*.[ch]pp) | .venv/bin/python
	@echo "Installing equipes into .venv (the first time takes a few minutes)"
	$(INSTALL) --editable .
	@touch $@

.venv/.test: .venv/.package
	$(INSTALL) 'equipes[test]'
	@touch $@

.venv/.dev: .venv/.test
	$(INSTALL) 'equipes[dev]'
	@touch $@

demo: .venv/.package
	PATH="$(CURDIR)/$(BIN):$$PATH" bash examples/demo.sh

test: .venv/.test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 $(PYTEST_ARGS)

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: .venv/.dev
	$(BIN)/ruff format .

types: .venv/.dev
	$(BIN)/mypy

docs: .venv/.dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf .venv build dist site demo .pytest_cache .mypy_cache .ruff_cache .hypothesis
