# Everything runs in .venv, which the first target that needs it makes.
PYTHON ?= python3
BIN := .venv/bin
INSTALL := install --disable-pip-version-check
# A module's tests stay in one process, since they share the trainings that they look at.
PYTEST := -m pytest -q --numprocesses=auto --maxprocesses=8 --dist=loadscope
# The oldest release of torch that pyproject.toml declares.
OLDEST := $(shell sed -n 's/^dependencies = \["torch>=\([0-9.]*\)"\]/\1/p' pyproject.toml)

.PHONY: help demo test slow oldest newest floor check format docs package bench soak clean

help:  ## list the targets
	@sed -n 's/^\([a-z]*\):.*  ## /\1: /p' Makefile | awk -F ': ' '{ printf "%-10s%s\n", $$1, $$2 }'

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip $(INSTALL) --editable ".[dev]"
	touch $@

# Of torch, the oldest release and its fixes.
.venv-oldest/installed: pyproject.toml
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/pip $(INSTALL) --editable ".[dev]" "torch==$(OLDEST).*" "torchaudio==$(OLDEST).*"
	touch $@

.venv-newest/installed: pyproject.toml
	$(PYTHON) -m venv .venv-newest
	.venv-newest/bin/pip $(INSTALL) --upgrade --upgrade-strategy=eager --editable ".[dev]"
	touch $@

demo: .venv/installed  ## train on the embedded digits
	$(BIN)/diffstride train digits.gin --workdir=runs/digits

test: .venv/installed  ## run the tests and the doctests
	$(BIN)/python $(PYTEST)

slow: .venv/installed  ## run the tests that take longer, and more networks
	$(BIN)/python $(PYTEST) -m slow

oldest: .venv-oldest/installed  ## run the tests with the oldest torch declared, in .venv-oldest
	.venv-oldest/bin/python $(PYTEST)

newest: .venv-newest/installed  ## run the tests with the newest torch, in .venv-newest
	.venv-newest/bin/python $(PYTEST)

floor: oldest newest  ## both; each environment takes up to 8 GB

check: .venv/installed  ## lint and check types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: .venv/installed  ## fix what ruff can fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: .venv/installed  ## build the site, into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

package: .venv/installed  ## build wheel and source distribution, into dist/, and check them
	rm -rf dist
	$(BIN)/python -m build
	DIFFSTRIDE_DIST=dist $(BIN)/python -m pytest -q tests/test_wheel.py

bench: .venv/installed  ## run the benchmarks, on a quiet machine
	$(BIN)/python -m benchmarks.layer
	$(BIN)/python -m benchmarks.network
	$(BIN)/python -m benchmarks.scaling
	$(BIN)/python -m benchmarks.signals
	$(BIN)/python -m benchmarks.frozen
	$(BIN)/python -m benchmarks.conversion_time
	$(BIN)/python -m benchmarks.budget
	$(BIN)/python -m benchmarks.processes
	$(BIN)/python -m benchmarks.render

soak: .venv/installed  ## a quarter of an hour of kills, flipped bits and full disks
	$(BIN)/python -m benchmarks.soak

clean:  ## remove environments, runs and what was built
	rm -rf .venv .venv-oldest .venv-newest runs site dist
