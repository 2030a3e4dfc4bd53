"""What the ranks of small jobs share, because they are forked from a process that has it."""

from __future__ import annotations

import functools
import importlib

import cpuinfo
from deepspeed.accelerator import get_accelerator


def preload() -> None:
    """Loads what each rank would load, start or ask for again. Each takes longer than a rank's training."""
    cpuinfo.get_cpu_info = functools.cache(cpuinfo.get_cpu_info)  # a process each time; an operator asks three times
    for operator in ("ShareMemCommBuilder", "CPUAdamBuilder", "FusedAdamBuilder"):  # ninja each time
        get_accelerator().create_op_builder(operator).load(verbose=False)
    # deepspeed.initialize imports it. It decorates functions with torch.compile, and that imports the whole compiler.
    importlib.import_module("deepspeed.runtime.zero.muon.muon_optimizer")
