# `make demo` and `make test` are the two commands of the README.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

# What training is tested with; without any (`make test TORCH=`) its tests are skipped.
TORCH ?= torch==2.13.0

# What `make test-lowest` runs, and where the op library is built from.
LOWEST ?= tests
ops_sources := pyproject.toml $(wildcard custom_ops/*.* custom_ops/cmake/*.* custom_ops/kernels/*.*)
cpp_sources := $(wildcard custom_ops/*.cc custom_ops/*.h custom_ops/*/*.cc custom_ops/*/*.h custom_ops/*/*/*.h)

.PHONY: demo test test-all test-lowest test-package fuzz sanitize aarch64 bench-operators lint format clean

demo: $(VENV)/.installed
	$(BIN)/python tools/demo.py

# Workers share the processors: with several BLAS threads each they would wait for one another.
test test-all test-lowest: export OPENBLAS_NUM_THREADS = 1

# With a fixed seed a checkout passes or fails the same each time; `make test-all` draws new cases.
seed := --hypothesis-seed=0

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n auto -m "not slow" $(seed)

test-all: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n auto

# The lowest versions that pyproject.toml declares, in an environment of their own.
test-lowest: $(VENV)-lowest/.installed
	$(VENV)-lowest/bin/python -m pytest -n auto -m "not slow and not models" $(seed) $(LOWEST)

# Damaged files: a hundred thousand of them, two thousand of which `make test` runs, too. What fails
# is printed with the command that makes it again, `make fuzz FUZZ="--seed 7 --cases 5000"` chooses.
fuzz: $(VENV)/.installed-test
	$(BIN)/python tools/fuzz.py $(FUZZ)

# The wheel as users get it, with and without a compiler.
test-package: $(VENV)/.installed-test
	$(BIN)/python -m pytest tests/operators/test_package.py

# The op library under the address, undefined behaviour and thread sanitizers.
sanitize: $(VENV)/.installed-test
	$(BIN)/python tools/sanitize.py

# The op library on emulated processors, ARM and older x86-64: needs g++-aarch64-linux-gnu and
# qemu-user-static.
aarch64: $(VENV)/.installed-test
	$(BIN)/python tools/check_aarch64.py --runtime

# The operators beside ONNX Runtime's own.
bench-operators: $(VENV)/.installed-test
	$(BIN)/python tools/bench_operators.py

lint: $(VENV)/.installed-lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(cpp_sources)

format: $(VENV)/.installed-lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(cpp_sources)

clean:
	rm -rf $(VENV) $(VENV)-lowest build *.egg-info

$(BIN)/python:
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  echo "No virtual environment could be made: Debian and Ubuntu need 'apt install python3-venv'."; \
	  exit 1; }

$(VENV)/.installed: $(ops_sources) | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	touch $@

$(VENV)/.installed-test: $(ops_sources) | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test,measure]' $(TORCH)
	touch $@

$(VENV)/.installed-lint: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[lint]'
	touch $@

$(VENV)-lowest/.installed: $(ops_sources) tests/lowest.txt
	$(PYTHON) -m venv $(VENV)-lowest
	$(VENV)-lowest/bin/python -m pip install --quiet --disable-pip-version-check \
	  --constraint tests/lowest.txt --editable '.[test]'
	touch $@
