# `make demo` and `make test` set up everything they need in .venv; see the README.
PYTHON ?= python3
VENV ?= .venv
PIP = $(VENV)/bin/python -m pip --disable-pip-version-check install --quiet -c constraints.txt

.PHONY: demo test test-all test-gpu lint docs setup clean

demo: $(VENV)/.installed
	$(VENV)/bin/python -m benchmarks.demo

# One torch thread per worker: two workers share the cores.
test: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n 2 --durations=15

test-all: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n 2 --slow

# On a machine with CUDA and a Python that has torch, triton and pytest; nothing is installed.
# With TENFUSE_GPU_DRY=1 the same, small, on the CPU.  Most of the time goes into compilers and into
# loops of eager kernels: GPU_JOBS=6, where pytest-xdist is there, runs so many tests side by side.
test-gpu:
	PYTHONPATH=. $(PYTHON) -m pytest tests/gpu --durations=15 $(if $(GPU_JOBS),-n $(GPU_JOBS) --dist worksteal)

lint: $(VENV)/.linting
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

docs: $(VENV)/.installed
	$(VENV)/bin/python -m tenfuse.tools.codes > docs/reasons.md

setup: $(VENV)/.installed

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# Installed again only when what is to be installed has changed.
$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "setting up $(VENV)"
	$(PIP) -e ".[test]"
	@touch $@

$(VENV)/.linting: $(VENV)/.installed
	$(PIP) -e ".[dev]"
	@touch $@

clean:
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
