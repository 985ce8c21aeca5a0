# Everything runs in .venv, which the first target that needs it makes.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test check format docs bench soak clean

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --editable ".[dev]"
	touch $@

demo: .venv/installed  ## train on the embedded digits
	$(BIN)/python -m diffstride.examples.main --gin_config=digits.gin --workdir=runs/digits

# A module's tests stay in one process, since they share the trainings that they look at.
test: .venv/installed
	$(BIN)/python -m pytest -q --numprocesses=auto --maxprocesses=8 --dist=loadscope

check: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: .venv/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: .venv/installed  ## the site, into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: .venv/installed  ## on a quiet machine
	$(BIN)/python -m benchmarks.layer
	$(BIN)/python -m benchmarks.network
	$(BIN)/python -m benchmarks.scaling
	$(BIN)/python -m benchmarks.frozen
	$(BIN)/python -m benchmarks.conversion_time
	$(BIN)/python -m benchmarks.budget
	$(BIN)/python -m benchmarks.processes
	$(BIN)/python -m benchmarks.render

soak: .venv/installed  ## a quarter of an hour of kills, flipped bits and full disks
	$(BIN)/python -m benchmarks.soak

clean:
	rm -rf .venv runs site
