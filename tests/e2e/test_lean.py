"""What processes of jobs do without (tests/e2e/lean) changes no result."""

from __future__ import annotations

import json
import subprocess
import sys

import cpuinfo
import torch

from tests.e2e.jobs import ENV


def trained() -> list[float]:
    """Weights after three steps of an optimizer, with gradients switched on around it."""
    torch.manual_seed(1)
    weight = torch.nn.Parameter(torch.randn(5))
    optimizer = torch.optim.AdamW([weight], lr=0.1)
    for _ in range(3):
        (weight.square().sum()).backward()
        optimizer.step()
        optimizer.zero_grad()
    return weight.tolist()


def test_the_same_without_a_compiler() -> None:
    code = """
import json, sys
import torch
from tests.e2e.test_lean import trained
import cpuinfo
def f(): ...
assert torch.compile(f) is f and torch.compile(mode="default")(f) is f and torch.compiler.disable(f) is f
weights = trained()
torch.empty(2, device="meta").normal_()
print(json.dumps([weights, [name for name in sys.modules if name.startswith("torch._dynamo")], cpuinfo.get_cpu_info()]))
"""
    assert ENV["TORCHDYNAMO_DISABLE"] == "1"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=ENV, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    weights, compiler, processor = json.loads(done.stdout)
    assert weights == trained()
    assert compiler == []
    real = cpuinfo.get_cpu_info()
    assert {name: processor[name] for name in ("arch", "bits", "vendor_id_raw", "brand_raw")} == {
        name: real[name] for name in ("arch", "bits", "vendor_id_raw", "brand_raw")
    }
    assert set(processor["flags"]) <= set(real["flags"])
