# Two commands: `make demo` and `make test`. Each sets up .venv by itself; nothing else is needed but Python 3.11+ and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TEST_ARGS ?=
SECONDS_EACH ?= 60

.PHONY: demo test slow fuzz long check docs wheel clean

demo: $(VENV)/.ready
	$(BIN)/tunesmith demo

test: $(VENV)/.ready-dev
	$(BIN)/python -m pytest -m "not slow and not long and not gpu" -n 2 $(TEST_ARGS)

slow: $(VENV)/.ready-dev
	$(BIN)/python -m pytest -m "slow and not long and not gpu" $(TEST_ARGS)

long: $(VENV)/.ready-dev
	$(BIN)/python -m pytest -m long $(TEST_ARGS)

fuzz: $(VENV)/.ready-dev
	$(BIN)/python -m pip install --quiet --constraint requirements/constraints.txt --editable '.[fuzz]'
	$(BIN)/python -m tests.hostile.fuzz all $(SECONDS_EACH)

check: $(VENV)/.ready-dev
	$(BIN)/ruff format --check src tests tools bench examples
	$(BIN)/ruff check src tests tools bench examples
	$(BIN)/mypy

docs: $(VENV)/.ready-dev
	$(BIN)/python tools/write_reference.py

wheel: $(VENV)/.ready-dev
	$(BIN)/python -m build --wheel --no-isolation

# torch goes in first and by itself: what comes after it asks for a range, and would fetch the newest build.
# A machine whose Python has torch already (one with CUDA, say) lends it to the environment.
$(VENV)/.ready: pyproject.toml requirements/constraints.txt
	$(PYTHON) tools/make_environment.py $(VENV)
	$(BIN)/python -m pip install --quiet --constraint requirements/constraints.txt --editable .
	touch $@

$(VENV)/.ready-dev: $(VENV)/.ready
	$(BIN)/python -m pip install --quiet --constraint requirements/constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache
