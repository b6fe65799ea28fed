# Every target sets up .venv by itself; `make PYTHON=python3.12 test` chooses the interpreter.
PYTHON ?= python3
READY := .venv/.ready
MAKEFLAGS += --no-print-directory

.PHONY: help demo test check

help:  ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(READY)  ## train both stages on the embedded pictures and sample from them, into runs/demo
	@.venv/bin/nextscale demo --out runs/demo

test: $(READY)  ## the tests, on all cores
	@.venv/bin/python -m pytest --numprocesses auto --dist worksteal

check: $(READY)  ## format, lint and types
	@.venv/bin/ruff format --check --quiet .
	@.venv/bin/ruff check --quiet .
	@.venv/bin/mypy --no-error-summary

# A file, so that a second `make` starts at once; changed requirements install again.
$(READY): pyproject.toml constraints.txt
	@test -x .venv/bin/python || $(PYTHON) -m venv .venv
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@
