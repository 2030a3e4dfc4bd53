#!/usr/bin/env bash
# Everything that needs a GPU, in one go: builds the copy engine, runs its device tests on the GPU (and on the stand-in),
# whole jobs with kills, measures both, and leaves gpu.json and gpu_jobs.json. Needs python3 with torch, pytest and what
# FFTrainer needs, g++, nvcc; for whole jobs of a framework DeepSpeed and megatron-core; no network; under 8 minutes with
# pytest-xdist.
#
#   scripts/gpu_check.sh [DIRECTORY]      the numbers and the logs go there (default: out/gpu)
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-out/gpu}
mkdir -p "$out"
export PYTHONPATH="$PWD" PYTHONUNBUFFERED=1 PATH="$PATH:/usr/local/cuda/bin"
failed=0

echo "== machine"
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader || true
python3 -c 'import os, torch; print("torch", torch.__version__, "CUDA", torch.version.cuda, "cores", os.cpu_count())'

echo "== build"
time python3 -m ff_core.csrc.build
python3 -c 'import ff_core; print(ff_core.build_info())'

echo "== tests"
parallel=()
python3 -c 'import xdist' 2>/dev/null && parallel=(-n 4)
python3 -m pytest -q -p no:cacheprovider "${parallel[@]}" tests/copy/test_device.py tests/state/test_device.py \
    tests/worker/test_warm_device.py tests/e2e/test_gpu.py tests/e2e/test_two_gpus.py 2>&1 | tee "$out/tests.log" || failed=1

echo "== measurements"
python3 scripts/bench_gpu.py --json "$out/gpu.json" 2>&1 | tee "$out/bench.log" || failed=1
if python3 -c 'import deepspeed' 2>/dev/null; then
    python3 scripts/bench_gpu_jobs.py --sizes 100m --rounds 2 --steps 50 --within 120 --kills 2 --json "$out/gpu_jobs.json" --out "$out/jobs" 2>&1 | tee -a "$out/bench.log" || failed=1
else
    echo "whole jobs are not measured: DeepSpeed is not installed"
fi
exit "$failed"
