"""What of the GPU measurements can be checked without a GPU: the targets, and that the absence of one is said."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import bench_gpu  # noqa: E402
from bench.gpu_rig import fragments, ratio  # noqa: E402

GOOD = {**bench_gpu.AT_LEAST, **bench_gpu.AT_MOST, **dict.fromkeys(bench_gpu.EXACT, True)}


def test_targets() -> None:
    assert bench_gpu.missed(GOOD) == []
    bad = {**GOOD, "gpu.d2h_over_memcpy": 0.94, "gpu.step_slowdown": 0.011, "gpu.restore_bit_exact": False}
    assert len(bench_gpu.missed(bad)) == 3


@pytest.mark.parametrize("mixed", [False, True])
def test_fragments_cover_the_state_once(mixed: bool) -> None:
    state = torch.empty(1 << 20, dtype=torch.uint8)
    pieces = fragments(state, 500, 1, mixed)
    assert sum(size for _, size, _, _ in pieces) == state.numel()
    end = 0
    for _, size, offset, _ in pieces:
        assert offset == end and size > 0
        end += size
    starts = sorted((address - state.data_ptr(), size) for address, size, _, _ in pieces)
    assert [start for start, _ in starts] == [0, *(start + size for start, size in starts[:-1])]


def test_ratio_is_of_pairs() -> None:
    assert ratio([1.0, 2.0, 3.0], [2.0, 2.0, 3.0]) == 1.0


def test_no_gpu_is_said() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here: it would measure")
    command = [sys.executable, str(ROOT / "scripts" / "bench_gpu.py")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=ROOT)
    assert done.returncode == 1 and "no CUDA device" in done.stderr
