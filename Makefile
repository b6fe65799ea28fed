# Every target sets up .venv by itself; `make PYTHON=python3.12 test` chooses the interpreter.
PYTHON ?= python3
READY := .venv/.ready
TESTS := .venv/bin/python -m pytest --numprocesses auto --dist worksteal
MAKEFLAGS += --no-print-directory

.PHONY: help demo test test-all check smoke docs

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(READY)  ## train both stages on the embedded pictures and sample from them, into runs/demo
	@.venv/bin/nextscale demo --out runs/demo

test: $(READY)  ## the tests but for the slow ones, on all cores
	@$(TESTS) -m 'not slow'

test-all: $(READY)  ## all tests
	@$(TESTS)

check: $(READY)  ## format, lint, types, and whether the documentation builds without a warning
	@.venv/bin/ruff format --check --quiet .
	@.venv/bin/ruff check --quiet .
	@.venv/bin/mypy --no-error-summary
	@NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict --quiet

smoke: $(READY)  ## build the package, install it outside the repository, run every command once
	@.venv/bin/python scripts/smoke.py

docs: $(READY)  ## build the documentation and serve it on this machine
	@NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs serve --strict

# A file, so that a second `make` starts at once; changed requirements install again.
$(READY): pyproject.toml constraints.txt
	@test -x .venv/bin/python || $(PYTHON) -m venv .venv
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@
