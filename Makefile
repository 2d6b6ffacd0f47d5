# Two commands on a fresh machine: make demo, make test. Each first makes a virtual environment with the
# pinned requirements and the package in it, compiled, where that is missing or out of date.

PYTHON ?= python3
VENV ?= .venv
export HISTLOSS_CUDA_ARCHS ?= 75+PTX# one compiles soonest, and its PTX runs on every newer GPU; empty: all
export HISTLOSS_BUILD ?= 1# without a compiler, fail; "make HISTLOSS_BUILD=auto" goes on in plain PyTorch

BIN := $(abspath $(VENV))/bin
REQUIREMENTS := $(VENV)/requirements.stamp
INSTALLED := $(VENV)/installed.stamp
SOURCES := $(shell find csrc -name '*.h' -o -name '*.cpp' -o -name '*.cuh' -o -name '*.cu')
EMULATOR := $(shell find tests/emulation -name '*.h' -o -name '*.cpp' -o -name '*.cu')

.PHONY: demo test test-browser sanitize test-cuda-emulated lint format bench bench-all bench-guard clean \
	train-color-transfer train-colorization train-edges2photo \
	train-colorization-gan train-unpaired-colorization train-colorization-classes \
	evaluate-color-transfer evaluate-colorization evaluate-edges2photo compare-colorization register3d

demo: $(INSTALLED)
	$(BIN)/python examples/recolor.py

# Minutes on two cores, with photos that come with scikit-image; a run that was stopped goes on. What a run
# holds, and how to train on other photos: examples/RESULTS.md and the scripts' --help.
DEEPHIST := color-transfer colorization edges2photo
TASKS := $(DEEPHIST) colorization-gan unpaired-colorization colorization-classes
$(TASKS:%=train-%): train-%: $(INSTALLED)
	$(BIN)/python examples/$(subst -,_,$*).py --resume

$(DEEPHIST:%=evaluate-%): evaluate-%: $(INSTALLED)
	$(BIN)/python examples/$(subst -,_,$*).py --evaluate

compare-colorization: $(INSTALLED)
	$(BIN)/python examples/compare_colorization.py

# Volumes by mutual information, beside SimpleITK: a quarter of an hour on two cores, for its sake.
register3d: $(INSTALLED)
	for transform in affine rigid; do \
		$(BIN)/python examples/register3d.py --transform $$transform --compare --threads 2 \
			--output examples/results/register3d || exit 1; \
	done

test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2

test-browser: $(INSTALLED) # needs Debian's packages chromium and chromium-driver
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/browser

# A copy of the package with its library under AddressSanitizer and UBSan. Python is not instrumented: their
# runtime is loaded before it, and leaks, which Python has at exit, are not looked for. An error aborts, so that
# the traceback names the test.
SANITIZED := build/sanitize/package
sanitize: $(REQUIREMENTS)
	HISTLOSS_SANITIZE=1 HISTLOSS_CUDA=0 $(BIN)/python setup.py --quiet build --build-lib $(SANITIZED)
	cd $(SANITIZED) && \
		OMP_NUM_THREADS=1 LD_PRELOAD="$$(c++ -print-file-name=libasan.so) $$(c++ -print-file-name=libstdc++.so)" \
		ASAN_OPTIONS=detect_leaks=0:abort_on_error=1 UBSAN_OPTIONS=print_stacktrace=1:abort_on_error=1 \
		$(BIN)/python -m pytest --numprocesses 2 --capture=sys \
			$(CURDIR)/tests/test_native_kernels.py $(CURDIR)/tests/test_native_sums.py

# The CUDA kernels on the CPU: compiled for speed, then under AddressSanitizer and UBSan, then ThreadSanitizer,
# which is not to look at Python and PyTorch.
EMULATED := $(BIN)/python -m pytest --numprocesses 2 --capture=sys tests/emulation
test-cuda-emulated: $(INSTALLED)
	$(BIN)/python tests/emulation/build.py
	OMP_NUM_THREADS=1 $(EMULATED)
	OMP_NUM_THREADS=1 HISTLOSS_EMULATION=asan \
		LD_PRELOAD="$$(c++ -print-file-name=libasan.so) $$(c++ -print-file-name=libstdc++.so)" \
		ASAN_OPTIONS=detect_leaks=0:abort_on_error=1 UBSAN_OPTIONS=print_stacktrace=1:abort_on_error=1 \
		$(EMULATED)/test_kernels.py
	OMP_NUM_THREADS=1 HISTLOSS_EMULATION=tsan LD_PRELOAD="$$(c++ -print-file-name=libtsan.so)" \
		TSAN_OPTIONS=ignore_noninstrumented_modules=1:halt_on_error=1:abort_on_error=1 \
		$(EMULATED)/test_kernels.py

lint: $(REQUIREMENTS)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(SOURCES) $(EMULATOR)

format: $(REQUIREMENTS)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	$(BIN)/clang-format -i $(SOURCES) $(EMULATOR)

# Two minutes: is this library worth installing? Then everything, in about 25; it writes
# benchmarks/results/<version>/<hardware>.json.
bench: $(INSTALLED)
	$(BIN)/python benchmarks/run.py

bench-all: $(INSTALLED)
	$(BIN)/python benchmarks/run.py --suite all

# Has a change made the library slower? Half a minute of small work, whose ratios to the reference must be those
# of the committed result within a factor of two: absolute times are a machine's own.
GUARD ?= build/guard.json
bench-guard: $(INSTALLED)
	$(BIN)/python benchmarks/run.py --suite guard --output $(GUARD)
	version=$$($(BIN)/python -c 'import histloss; print(histloss.__version__)') && \
		$(BIN)/python benchmarks/compare.py benchmarks/results/$$version/guard.json $(GUARD) --metric ratio --noise 1

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
