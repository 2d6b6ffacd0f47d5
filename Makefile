# Two commands on a fresh machine: make demo, make test. Each first makes a virtual environment with the
# pinned requirements and the package in it, compiled, where that is missing or out of date.

PYTHON ?= python3
VENV ?= .venv
export HISTLOSS_BUILD ?= 1# without a compiler, fail; "make HISTLOSS_BUILD=auto" goes on in plain PyTorch

BIN := $(abspath $(VENV))/bin
REQUIREMENTS := $(VENV)/requirements.stamp
INSTALLED := $(VENV)/installed.stamp
SOURCES := $(shell find csrc -name '*.h' -o -name '*.cpp')

.PHONY: demo test sanitize lint format bench clean

demo: $(INSTALLED)
	$(BIN)/python examples/recolor.py

test: $(INSTALLED)
	$(BIN)/python -m pytest

# A copy of the package with its library under AddressSanitizer and UBSan. Python itself is not instrumented,
# so the runtime is loaded before it, and leaks, of which it has many at exit, are not looked for.
SANITIZED := build/sanitize/package
sanitize: $(REQUIREMENTS)
	HISTLOSS_SANITIZE=1 $(BIN)/python setup.py --quiet build --build-lib $(SANITIZED)
	cd $(SANITIZED) && LD_PRELOAD="$$(c++ -print-file-name=libasan.so) $$(c++ -print-file-name=libstdc++.so)" \
		ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
		$(BIN)/python -m pytest $(CURDIR)/tests/test_native_kernels.py

lint: $(REQUIREMENTS)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(SOURCES)

format: $(REQUIREMENTS)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	$(BIN)/clang-format -i $(SOURCES)

bench: $(INSTALLED)
	$(BIN)/python benchmarks/run.py

clean:
	rm -rf $(VENV) build dist *.egg-info histloss/*.so .*_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(REQUIREMENTS): requirements-dev.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --requirement requirements-dev.txt
	touch $@

$(INSTALLED): $(REQUIREMENTS) setup.py build_backend.py pyproject.toml $(SOURCES)
	$(BIN)/python -m pip install --quiet --no-build-isolation --no-deps --editable .
	touch $@
