"""What scripts of small jobs have alike: arguments, the loop in its two kinds, and the file with their results."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from small_model import digest

import ff_deepspeed


def parser() -> argparse.ArgumentParser:
    """--config: DeepSpeed's, the JSON itself.  --result: see `write`."""
    made = argparse.ArgumentParser()
    made.add_argument("--config", type=json.loads, required=True)
    made.add_argument("--result", type=Path, required=True)
    made.add_argument("--steps", type=int, default=8)
    return made


def train(
    engine: Any, loader: Any, micro_step: Callable[[Any], torch.Tensor], after: Callable[[torch.Tensor], None],
    usual: bool,
) -> None:  # fmt: skip
    """micro_step(batch): its loss.  after(sum of losses): behind each step.  usual: not the exact loop."""
    if usual:
        ff_deepspeed.client_state(lambda: {"step": engine.global_steps})
        engine.load_checkpoint("nowhere")
        mean = torch.zeros(())
        for batch in loader:
            mean += micro_step(batch)
            if engine.micro_steps % engine.gradient_accumulation_steps() == 0:
                after(mean)
                mean = torch.zeros(())
    else:
        for batches in ff_deepspeed.batches(engine, loader):
            with ff_deepspeed.iteration():
                mean = torch.zeros(())
                for batch in batches:
                    mean += micro_step(batch)
                after(mean)


def write(result: Path, engine: Any, **fields: Any) -> None:
    """Results of this rank, beside `result`: fields, and a digest of the engine's state. All ranks wait for all."""
    file = result.with_suffix(f".rank{dist.get_rank()}.json")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"digest": digest(engine), **fields}))
    dist.barrier()
