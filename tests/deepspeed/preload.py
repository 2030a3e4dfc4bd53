"""What the ranks of small jobs share, because they are forked from a process that has it."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator

from deepspeed.accelerator import get_accelerator


@contextlib.contextmanager
def second_device(enabled: bool) -> Iterator[None]:
    """While an engine is made, what "ratio" leaves on the GPU goes to "cpu:0", which is not the "cpu" of the offload.

    So DeepSpeed steps it with its other optimizer, as on a GPU.
    """
    accelerator = get_accelerator()
    before = accelerator._name
    accelerator._name = "cpu:0" if enabled else before
    try:
        yield
    finally:
        accelerator._name = before


def preload() -> None:
    """Loads what each rank would load, start or ask for again. Each takes longer than a rank's training."""
    for operator in ("ShareMemCommBuilder", "CPUAdamBuilder", "FusedAdamBuilder"):  # ninja each time
        get_accelerator().create_op_builder(operator).load(verbose=False)
    # DeepSpeed asks for instructions that many processors lack. torch does without them.
    get_accelerator().is_fp16_supported = lambda: True
    importlib.import_module("deepspeed.runtime.zero.muon.muon_optimizer")  # deepspeed.initialize imports it


if __name__ == "<run_path>":  # in a nursery
    preload()
