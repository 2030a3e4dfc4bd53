"""What the ranks of small jobs share, because they are forked from a process that has it."""

from __future__ import annotations

import importlib

from deepspeed.accelerator import get_accelerator


def preload() -> None:
    """Loads what each rank would load, start or ask for again. Each takes longer than a rank's training."""
    for operator in ("ShareMemCommBuilder", "CPUAdamBuilder", "FusedAdamBuilder"):  # ninja each time
        get_accelerator().create_op_builder(operator).load(verbose=False)
    importlib.import_module("deepspeed.runtime.zero.muon.muon_optimizer")  # deepspeed.initialize imports it


if __name__ == "<run_path>":  # in a nursery
    preload()
