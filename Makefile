PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: demo test test-long check bench clean

demo: $(VENV)/gateway.done  ## run a whole gateway with a stand-in provider (ARGS=--once to exit)
	$(BIN)/aigw demo $(ARGS)

test: $(VENV)/test.done  ## run the suite
	$(BIN)/python -m pytest -n auto $(ARGS)

test-long: $(VENV)/test.done  ## the properties over many more histories
	HYPOTHESIS_PROFILE=long $(BIN)/python -m pytest tests/test_engines.py tests/test_limits.py tests/test_metering.py $(ARGS)

check: $(VENV)/check.done  ## format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(VENV)/bench.done  ## measure; ratios within one run
	$(BIN)/python -m benchmarks $(ARGS)

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# One stamp an extra: it is installed anew when the metadata changes.
$(VENV)/%.done: setup.cfg pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[$*]'
	@touch $@

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache
