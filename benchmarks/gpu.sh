#!/usr/bin/env bash
# Everything that a machine with a GPU can tell, in one command and without a network:
#
#   benchmarks/gpu.sh [FOLDER [STEP...]]     steps: machine build test bench; by default all of them
#
# Builds the package in place for the Python in PYTHON (python3), which has torch, pytest, setuptools and ninja;
# runs the tests that are marked cuda; runs the benchmark. Each step's log, and the benchmark's JSON, are put
# into FOLDER (build/gpu). A step that fails does not keep the next from running, but its failure is the result.
set -uo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
folder=${1:-build/gpu}
shift || true
steps=("$@")
((${#steps[@]})) || steps=(machine build test bench)

machine() {
  nvidia-smi && nvidia-smi --query --display=CLOCK,POWER,TEMPERATURE,ECC &&
    "$python" -m torch.utils.collect_env
}

build() {
  HISTLOSS_BUILD=1 HISTLOSS_CUDA=${HISTLOSS_CUDA:-1} \
    "$python" -m pip install --verbose --no-build-isolation --no-deps --no-index --editable . &&
    "$python" -c 'import json, histloss
info = histloss.backend_info()
print(json.dumps(info, indent=1))
raise SystemExit(not info["cuda"]["loaded"])'
}

# The files are named, because collecting the others would need what the examples and the emulation need.
test() {
  local files=(tests/test_{cuda,native_kernels,functional,autograd,losses}.py)
  has numpy && files+=(tests/test_peers.py) || echo "LEFT OUT: tests/test_peers.py, there is no numpy"
  has hypothesis && files+=(tests/test_properties.py) ||
    echo "LEFT OUT: tests/test_properties.py, there is no hypothesis"
  "$python" -m pytest -m cuda --durations=20 --junitxml="$folder/tests.xml" "${files[@]}"
}

bench() {
  has skimage || echo "scikit-image is not there: smooth noise stands for the photo"
  "$python" benchmarks/run.py --device cuda --output "$folder/benchmark.json"
}

has() { "$python" -c "import $1" 2>/dev/null; }

for step in "${steps[@]}"; do
  [[ $step =~ ^(machine|build|test|bench)$ ]] || { echo "there is no step '$step'" >&2 && exit 2; }
done

mkdir -p "$folder"
failed=()
for step in "${steps[@]}"; do
  echo "== $step"
  "$step" 2>&1 | tee "$folder/$step.log" || failed+=("$step")
done
echo "logs and results: $folder"
((${#failed[@]} == 0)) || { echo "FAILED: ${failed[*]}" >&2 && exit 1; }
